import math

import pytest
import torch
from conftest import Report

from labkit import data, metrics
from model import autoencoderMLP4Layer


@pytest.fixture
def images():
    return data.to_float(data.load("glyphs", None, "test")[1].images)


@pytest.fixture
def model():
    """A network of four units, of which number 2 is dead."""
    torch.manual_seed(0)
    model = autoencoderMLP4Layer(N_bottleneck=4)
    with torch.no_grad():
        model.fc2.bias.fill_(1)
        model.fc2.bias[2] = -100
    return model


def test_psnr_is_in_decibels_of_the_whole_range():
    assert metrics.psnr(1) == 0 and metrics.psnr(0.01) == pytest.approx(20)
    assert metrics.psnr(0) > 100 and math.isfinite(metrics.psnr(0))  # JSON has no infinity


def test_mse_and_the_active_fraction_of_each_unit_are_over_all_images(model, images):
    batches = images[:200], images[200:]
    mse, activity = metrics.mse(model, batches), metrics.activity(model, batches)
    theirs = Report(N_bottleneck=4)
    theirs.load_state_dict(model.state_dict())
    expected = (theirs(images) - images).square().mean().item()
    assert mse.item() == pytest.approx(expected, rel=1e-5)
    code = torch.relu(theirs.fc2(torch.relu(theirs.fc1(images))))
    assert activity.tolist() == pytest.approx((code > 0).float().mean(0).tolist())
    assert activity[2] == 0 and activity.max() > 0


def test_the_mse_of_one_image_painted_for_all(images):
    image = images[0]
    expected = (images - image).square().mean().item()
    assert metrics.constant_mse(image, images.split(250)) == pytest.approx(expected, rel=1e-5)


def test_pca_is_the_best_linear_code():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(200, 30, generator=generator) @ torch.diag(torch.linspace(1, 0.1, 30))
    centred = images - images.mean(0)
    u, s, v = torch.linalg.svd(centred, full_matrices=False)
    residual = centred - u[:, :5] * s[:5] @ v[:5]
    assert metrics.pca_mse(images, 5) == pytest.approx(residual.square().mean().item(), rel=1e-4)
    assert metrics.pca_mse(images, 30) == pytest.approx(0, abs=1e-6)
    assert metrics.pca_mse(images, 40) == 0


def test_noise_is_the_same_for_the_same_seed():
    images = torch.zeros(50, 784)
    noise = metrics.normal_like(images, seed=0)
    assert noise.equal(metrics.normal_like(images, seed=0))
    assert not noise.equal(metrics.normal_like(images, seed=1))
    assert noise.std() == pytest.approx(1, rel=0.02) and noise.mean() == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("decodings, count", [(80_000, 300), (400, 100)])
@torch.inference_mode()
def test_importance_is_what_holding_a_unit_costs_and_sums_to_1(decodings, count, model, images, monkeypatch):
    monkeypatch.setattr(metrics, "IMPORTANCE_DECODINGS", decodings)  # 400 for 4 units: 100 images
    codes = model.encode(images)
    importance = metrics.importance(model, codes, images)
    assert importance.sum() == pytest.approx(1) and importance[2] == 0

    means, codes, images = codes.mean(0), codes[:count], images[:count]
    rises = []
    for unit in (0, 1, 3):
        held = codes.clone()
        held[:, unit] = means[unit]
        rise = (model.decode(held) - images).square().mean() - (model.decode(codes) - images).square().mean()
        rises.append(max(0, rise.item()))
    expected = torch.tensor(rises) / sum(rises)
    torch.testing.assert_close(importance[[0, 1, 3]], expected, rtol=0, atol=0.005)


@torch.inference_mode()
def test_importance_of_a_network_without_live_units_is_0(model, images):
    model.fc2.bias.fill_(-100)
    assert metrics.importance(model, model.encode(images), images).tolist() == [0, 0, 0, 0]


@torch.inference_mode()
def test_reconstruction_is_measured_over_all_images_and_digit_by_digit(model, images):
    labels = torch.arange(300) % 3
    numbers = metrics.reconstruction(model, images, labels)
    errors = (model(images) - images).square().mean(1)
    assert numbers["mse"] == pytest.approx(errors.mean().item(), rel=1e-5)
    assert numbers["psnr_db"] == pytest.approx(-10 * math.log10(numbers["mse"]))
    assert numbers["pca_mse"] == metrics.pca_mse(images, 4)
    assert numbers["mse_of_each_digit"] == pytest.approx(
        {digit: errors[digit::3].mean().item() for digit in range(3)}, rel=1e-5)


@torch.inference_mode()
def test_denoising_adds_noise_that_is_not_clipped_and_compares_with_the_clean_images(model, images):
    numbers = metrics.denoising(model, images, noise=0.3, seed=1)
    noisy = images + 0.3 * metrics.normal_like(images, seed=1)
    assert numbers["noisy_mse"] == pytest.approx(0.09, rel=0.02)
    clipped = (noisy.clamp(0, 1) - images).square().mean().item()
    assert numbers["clipped_mse"] == pytest.approx(clipped, rel=1e-5)
    assert numbers["mse"] == pytest.approx((model(noisy) - images).square().mean().item(), rel=1e-5)
    assert numbers["mse_at_noise"][0.3] == pytest.approx(numbers["mse"], rel=1e-6)
    clean = (model(images) - images).square().mean().item()
    assert numbers["mse_at_noise"][0.0] == pytest.approx(clean, rel=1e-5)
