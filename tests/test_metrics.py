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


def test_mse_and_the_active_fraction_of_each_unit_are_over_all_images(model, images, monkeypatch):
    monkeypatch.setattr(metrics, "PART", 70)  # a last short part
    mse, activity = metrics.mse(model, images, images), metrics.activity(model.encode(images))
    theirs = Report(N_bottleneck=4)
    theirs.load_state_dict(model.state_dict())
    assert mse.item() == pytest.approx((theirs(images) - images).square().mean().item(), rel=1e-5)
    code = torch.relu(theirs.fc2(torch.relu(theirs.fc1(images))))
    assert activity.tolist() == pytest.approx((code > 0).float().mean(0).tolist())
    assert activity[2] == 0 and activity.max() > 0


def test_pca_is_the_best_linear_code():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(200, 30, generator=generator) @ torch.diag(torch.linspace(1, 0.1, 30))
    mean, components, variances = metrics.pca(images)
    centred = images - images.mean(0)
    u, s, v = torch.linalg.svd(centred, full_matrices=False)
    residual = centred - u[:, :5] * s[:5] @ v[:5]
    errors = metrics.pca_mse(variances)
    assert errors[5] == pytest.approx(residual.square().mean().item(), rel=1e-4)
    assert len(errors) == 31 and errors[30] == 0
    torch.testing.assert_close(mean, images.mean(0))
    torch.testing.assert_close((components @ v.T).abs(), torch.eye(30), atol=0.01, rtol=0)
    torch.testing.assert_close(variances, s.square() / 200, rtol=1e-4, atol=1e-6)
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()  # not left to the solver


def test_the_nearest_is_the_nearest_other_one():
    vectors = torch.randn(1100, 3, generator=torch.Generator().manual_seed(0))  # more than one part
    labels = torch.arange(1100) % 7
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    assert metrics.nearest(vectors, vectors).equal(torch.arange(1100))
    nearest = distances.fill_diagonal_(math.inf).argmin(1)
    assert metrics.nearest(vectors, vectors, skip_self=True).equal(nearest)
    expected = (labels[nearest] == labels).float().mean().item()
    assert metrics.neighbour_accuracy(vectors, labels) == pytest.approx(expected)


def test_random_codes_have_the_codes_mean_and_covariance_and_none_is_negative():
    generator = torch.Generator().manual_seed(0)
    codes = 50 + torch.randn(2000, 3, generator=generator) @ torch.tensor([[2.0, 1, 0], [0, 1, 0], [0, 0, 0]])
    random = metrics.random_like(codes, 2000, seed=1)
    torch.testing.assert_close(random.mean(0), codes.mean(0), atol=0.3, rtol=0)
    torch.testing.assert_close(random.T.cov(), codes.T.cov(), atol=0.4, rtol=0)
    assert metrics.random_like(codes - 50, 10, seed=1).min() == 0
    assert not metrics.random_like(codes, 10, 1).equal(metrics.random_like(codes, 10, 2))


def test_noise_is_the_same_for_the_same_seed():
    images = torch.zeros(50, 784)
    noise = metrics.normal_like(images, seed=0)
    assert noise.equal(metrics.normal_like(images, seed=0))
    assert not noise.equal(metrics.normal_like(images, seed=1))
    assert noise.std() == pytest.approx(1, rel=0.02) and noise.mean() == pytest.approx(0, abs=0.02)


@torch.inference_mode()
def test_importance_of_a_network_without_live_units_is_0(model, images):
    model.fc2.bias.fill_(-100)
    assert metrics.importance(model, model.encode(images), images).tolist() == [0, 0, 0, 0]
