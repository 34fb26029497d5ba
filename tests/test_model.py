import pytest
import torch
from conftest import Report

import train
from labkit import data, metrics
from labkit.job import Job
from model import autoencoderMLP4Layer


def test_computes_what_the_report_describes():
    theirs, ours = Report(), autoencoderMLP4Layer()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    X = torch.rand(3, 2, 784)
    torch.testing.assert_close(ours(X), theirs(X))
    assert ours.encode(X).shape == (3, 2, 8) and ours.encode(X).min() >= 0
    assert sum(p.numel() for p in ours.parameters()) == 622_504


@pytest.mark.parametrize("sizes", [(784, 0, 784), (784, -1, 784), (1, 8, 784), (784, 8, 0)])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match="at least 1"):
        autoencoderMLP4Layer(*sizes)


def test_tensors_of_another_size_are_refused():
    model = autoencoderMLP4Layer()
    for X in (torch.zeros(2, 28, 28), torch.zeros(783), torch.tensor(0.0)):
        with pytest.raises(ValueError, match="N_input = 784"):
            model(X)
    with pytest.raises(ValueError, match="N_bottleneck = 8"):
        model.decode(torch.zeros(2, 7))


def dead_after_a_short_run(images, init, seed):
    model, optimizer, _ = train.build(8, images, init, seed=seed)
    batches = data.batches(images, 128, seed)
    for epoch in range(2):
        batches.sampler.set_epoch(epoch)
        train.train_epoch(model, batches, optimizer, 0, Job("cpu"))
    return int((metrics.evaluate(model, images.in_order())[1] == 0).sum())


def test_no_unit_dies_from_our_start_and_some_do_from_pytorchs(small):
    _, images = data.load("glyphs", None, "train")
    assert [dead_after_a_short_run(images, "mean", seed) for seed in range(4)] == [0, 0, 0, 0]
    assert sum(dead_after_a_short_run(images, "report", seed) for seed in range(4)) > 0


def test_our_start_paints_the_mean_image(small):
    _, images = data.load("glyphs", None, "train")
    model, _, _ = train.build(8, images)
    painted = model(data.to_float(images.images[:100])).mean(0)
    mean = data.to_float(images.images).mean(0)
    assert (painted - mean).abs().mean() < 0.03 < (0.5 - mean).abs().mean()
