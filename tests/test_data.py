import pytest
import torch
from conftest import ROOT

from labkit import data


def numbered(count):
    """Return Images of one pixel, its grey level the image's number."""
    return data.Images(torch.arange(count).to(torch.uint8).view(count, 1), torch.zeros(count))


def epoch(batches, number):
    """Return the numbers of the images in each batch of an epoch."""
    batches.sampler.set_epoch(number)
    return [(x.flatten() * 255).round().int().tolist() for x in batches]


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own():
    images = numbered(100)
    batches = data.batches(images, 32, seed=1)
    first, second = epoch(batches, 1), epoch(batches, 2)
    assert [len(batch) for batch in first] == [32, 32, 32, 4] == [len(batch) for batch in second]
    assert len(batches) == 4
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(100)) and first != second
    assert epoch(batches, 1) == first != epoch(data.batches(images, 32, seed=2), 1)


def test_processes_train_on_equally_many_images_of_the_same_batches():
    images = numbered(100)
    whole = epoch(data.batches(images, 32, seed=1), 1)
    halves = [epoch(data.batches(images, 32, 1, rank, 2), 1) for rank in range(2)]
    assert [sorted(sum(batch, [])) for batch in zip(*halves)] == [sorted(batch) for batch in whole]
    thirds = [epoch(data.batches(images, 33, 1, rank, 3), 1) for rank in range(3)]
    assert [[len(batch) for batch in third] for third in thirds] == [[11, 11, 11]] * 3  # 1 is left out


def test_processes_evaluate_every_image_once():
    seen = [numbered(100).part(rank, 3).images.flatten().tolist() for rank in range(3)]
    assert sorted(sum(seen, [])) == list(range(100))


def test_a_batch_is_float32_in_0_1():
    _, images = data.load("glyphs", None, "test")
    batch = next(iter(data.batches(images, 64, seed=0)))
    assert batch.dtype == torch.float32 and batch.shape == (64, 784)
    assert batch.min() == 0 and batch.max() == 1


def test_the_mean_image_is_over_all_images():
    images = data.load("glyphs", None, "train")[1]
    torch.testing.assert_close(images.mean(), (images.images / 255).mean(0))


@pytest.mark.skipif(not (ROOT / "data/MNIST/raw").exists(), reason="no MNIST in data/")
def test_real_mnist():
    name, train, test = data.load("mnist", ROOT / "data", "train", "test")
    assert name == "mnist" and train.images.shape == (60_000, 784) and test.images.shape == (10_000, 784)
    assert data.to_float(train.images).mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert train.labels.bincount()[:3].tolist() == [5923, 6742, 5958]
