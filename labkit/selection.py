"""Which images lab1.py shows: the words of -i, and the images that they name."""

from pathlib import Path

import torch

from labkit import UsageError
from labkit.metrics import mse_per_image
from labkit.picture import read_picture

MAX_SHOWN = 100  # images in a figure
PER_WORD = 10  # images for worst, best and digit=7


def select(words, model, images, labels):
    """Return the images that the words of -i name, float32 (n, 784), and a name for each.

    `images` (N, 784) and `labels` (N,) are the test set. Raises UsageError and PictureError.
    """
    errors = mse_per_image(model(images), images) if {"worst", "best"} & {*words} else None
    chosen = parse_words(words, labels, errors)
    shown = [images[item] if isinstance(item, int) else read_picture(item).to(images) for item in chosen]
    names = [test_image_name(labels, item) if isinstance(item, int) else Path(item).name for item in chosen]
    return torch.stack(shown), names


def parse_words(words, labels, errors):
    """Return what the words of -i name, as a list: indices of test images and paths of pictures.

    No words: the first image of every digit. `errors` are the test images' MSE, for "worst" and "best"
    alone. Raises UsageError.
    """
    if not words:
        return [(labels == digit).nonzero()[0].item() for digit in labels.unique()]
    chosen = []
    for word in words:
        if word in ("worst", "best"):
            found = errors.argsort(descending=word == "worst").tolist()[:PER_WORD]
        elif word.startswith("digit=") and word[6:].isdecimal():
            found = (labels == int(word[6:])).nonzero().flatten().tolist()[:PER_WORD]
        elif word.isdecimal():
            found = [int(word)] if int(word) < len(labels) else []
        else:
            found = [word] if Path(word).suffix or Path(word).is_file() else []
        if not found:
            raise UsageError(f"-i {word}: takes indices from 0 to {len(labels) - 1}, worst, best, "
                             "digit=0 ... digit=9, and picture files")
        chosen += found

    if len(chosen) > MAX_SHOWN:
        raise UsageError(f"-i names {len(chosen)} images: a figure shows {MAX_SHOWN} at the most")
    return chosen


def test_image_name(labels, index):
    """Return what a test image is called: its digit and its index."""
    return f"{labels[index]}, image {index}"
