from pathlib import Path

import matplotlib
import pytest
import torch

from labkit import data, glyphs

LABELS = [4, 9, 3, 0, 3, 9, 7, 3, 7, 3]
INK = [29.0, 42.7, 26.0, 45.9, 27.1, 34.3, 32.7, 47.2, 22.3, 26.9]  # the mean grey level of ten images
ROW = [0] * 8 + [212, 255, 21, 0, 0, 0, 171, 255, 186] + [0] * 11  # of the first one


def test_every_font_ships_with_matplotlib():
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    assert [font for font in glyphs.FONTS if not (folder / f"{font}.ttf").is_file()] == []


def test_the_images_are_the_same_everywhere():
    """Up to the rounding of other processors and other versions of PyTorch and Pillow."""
    images, labels = glyphs.load("train")
    assert labels[:10].tolist() == LABELS
    assert images[0, 16].tolist() == pytest.approx(ROW, abs=8)
    ink = images[:10].flatten(1).float().mean(1)
    assert ink.tolist() == pytest.approx(INK, abs=1)


def test_glyphs_are_the_same_every_time_and_look_like_mnist():
    _, train, test = data.load("glyphs", None, "train", "test")
    images, labels = glyphs.load.__wrapped__("train")  # drawn again
    assert train.images.equal(images.flatten(1)) and train.labels.equal(labels)
    assert train.images.shape == (1000, 784) and test.images.shape == (300, 784)
    assert train.images.dtype == torch.uint8
    assert not train.images[:300].equal(test.images) and not train.labels[:300].equal(test.labels)
    assert train.labels.unique().tolist() == list(range(10))
    assert 0.08 < data.to_float(train.images).mean() < 0.18  # MNIST: 0.13
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 0).float().mean() > 0.99
