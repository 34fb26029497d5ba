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


@pytest.fixture(scope="module")
def images(drawings):
    return data.load("glyphs", None, "train")[1]


def train_shortly(bottleneck, images, init, seed=0, epochs=2):
    model, optimizer, _ = train.build(bottleneck, images, init, seed=seed)
    batches = data.batches(images, 128, seed)
    for epoch in range(epochs):
        batches.sampler.set_epoch(epoch)
        train.train_epoch(model, batches, optimizer, 0, Job("cpu"))
    return model


def test_no_unit_dies_from_our_start_and_some_do_from_pytorchs(images):
    def dead(init, seed):
        model = train_shortly(8, images, init, seed)
        return int((metrics.activity(model, images.in_order()) == 0).sum())

    assert [dead("mean", seed) for seed in range(4)] == [0, 0, 0, 0]
    assert any(dead("report", seed) > 0 for seed in range(4))


def test_our_start_paints_the_mean_image(images):
    model, _, _ = train.build(8, images)
    painted = model(data.to_float(images.images[:100])).mean(0)
    mean = images.mean()
    assert (painted - mean).abs().mean() < 0.03 < (0.5 - mean).abs().mean()


@pytest.mark.parametrize("bottleneck, expected", [(1, 30), (8, 30), (64, 30), (128, 15)])
def test_codes_start_around_30_and_lower_in_large_bottlenecks(bottleneck, expected, images):
    model, _, _ = train.build(bottleneck, images)
    codes = model.encode(data.to_float(images.images))
    assert codes.min() > 0
    assert codes.mean().item() == pytest.approx(expected, abs=2)
    assert (codes.std(0) > 0.1).all()  # each differs from image to image


def test_the_start_is_pytorchs_weights_scaled(images):
    """So that runs, tables and reference weights stay what they are."""
    torch.manual_seed(0)
    start = autoencoderMLP4Layer().state_dict()
    start["fc2.weight"] *= 10
    start["fc2.bias"].fill_(30)
    start["fc3.bias"] = -30 * start["fc3.weight"].sum(1)
    start["fc4.weight"] *= 0.3
    start["fc4.bias"] = torch.logit(images.mean(), eps=1e-3)
    model, _, _ = train.build(8, images)
    assert all(tensor.equal(start[name]) for name, tensor in model.state_dict().items())


def test_large_bottlenecks_learn(images):
    mean = metrics.constant_mse(images.mean(), images.in_order())
    model = train_shortly(784, images, "mean", epochs=4)
    assert metrics.mse(model, images.in_order()) < 0.9 * mean
