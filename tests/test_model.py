import pytest
import torch
from conftest import Report

import train
from labkit import data, metrics
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


def test_the_labs_scripts_find_what_they_ask_of_a_model():
    model = autoencoderMLP4Layer()
    assert model.type == "MLP4" and model.input_shape == (1, 784)
    images = torch.rand(3, 784)
    assert torch.jit.script(model)(images).equal(model(images))


@pytest.fixture(scope="module")
def images(drawings):
    return data.load("glyphs", None, "train")[1].images


def train_shortly(bottleneck, images, init, seed=0, epochs=2):
    model, optimizer, _ = train.build(train.Settings(bottleneck=bottleneck, init=init, seed=seed), images)
    for epoch in range(epochs):
        train.train_epoch(model, data.batches(images, 128, seed, epoch), optimizer, 0)
    return model


def test_no_unit_dies_from_our_start_and_some_do_from_pytorchs(images):
    def dead(init, seed):
        model = train_shortly(8, images, init, seed)
        return int((metrics.activity(model.encode(data.to_float(images))) == 0).sum())

    assert [dead("mean", seed) for seed in range(4)] == [0, 0, 0, 0]
    assert any(dead("report", seed) > 0 for seed in range(4))


def test_our_start_paints_the_mean_image(images):
    model, _, _ = train.build(train.Settings(), images)
    painted = model(data.to_float(images[:100])).mean(0)
    mean = data.mean_image(images)
    assert (painted - mean).abs().mean() < 0.03 < (0.5 - mean).abs().mean()


@pytest.mark.parametrize("bottleneck, expected", [(1, 30), (8, 30), (64, 30), (128, 15)])
def test_codes_start_around_30_and_lower_in_large_bottlenecks(bottleneck, expected, images):
    model, _, _ = train.build(train.Settings(bottleneck=bottleneck), images)
    codes = model.encode(data.to_float(images))
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
    start["fc4.bias"] = torch.logit(data.mean_image(images), eps=1e-3)
    model, _, _ = train.build(train.Settings(), images)
    assert all(tensor.equal(start[name]) for name, tensor in model.state_dict().items())


def test_large_bottlenecks_learn(images):
    model, floats = train_shortly(784, images, "mean", epochs=4), data.to_float(images)
    mean = (floats - floats.mean(0)).square().mean()
    assert metrics.mse(model, floats, floats) < 0.9 * mean
