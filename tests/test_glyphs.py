import hashlib
import platform
from pathlib import Path

import matplotlib
import pytest
import torch

from labkit import data, glyphs

IMAGES = {"e79b76e2746dc1362e094ae6c0b1f634864cffce5b6e0b65db70bffbf8ad5a88",  # PyTorch 2.14 and 2.15
          "b6435643722796f27a3f74f205a9b6ab952477c9860f8950c6eb4ff87dd3069e",  # 2.6: a few grey levels differ
          "a44bbc76cc6857d80bfa997b23d3abb4e0155362139a4f0a00cf410f937c6f7e"}  # processors without AVX


def sha256(tensor):
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def test_every_font_ships_with_matplotlib():
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    assert [font for font in glyphs.FONTS if not (folder / f"{font}.ttf").is_file()] == []


def test_the_stencils_are_the_same_everywhere():
    expected = "248aded494e8c8ba70f8a8910665caf0d3fe5fd5ab7aca6276932bc19f70552a"
    assert sha256(glyphs.stencils()) == expected


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors round otherwise")
def test_the_images_are_the_same_everywhere():
    images, labels = glyphs.load("train")
    assert sha256(images) in IMAGES
    assert sha256(labels) == "15243e9f20311efd9b98002be1df8ec7b584869b02ce41f1d603cb99ee02059c"


def test_glyphs_are_the_same_every_time_and_look_like_mnist():
    _, train, test = data.load("glyphs", None, "train", "test")
    images, labels = glyphs.load.__wrapped__("train")  # drawn again
    assert train.images.equal(images.flatten(1)) and train.labels.equal(labels)
    assert train.images.shape == (2000, 784) and test.images.shape == (600, 784)
    assert train.images.dtype == torch.uint8
    assert not train.images[:600].equal(test.images)
    assert train.labels.unique().tolist() == list(range(10))
    assert 0.08 < data.to_float(train.images).mean() < 0.18  # MNIST: 0.13
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 0).float().mean() > 0.99
