"""What lab1.py works on: a network, a test set, and the images of it that figures show."""

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

import torch

from labkit import LabError, UsageError, data, figures, metrics
from labkit.picture import find_digit

MAX_SHOWN = 100  # images in a figure
PER_WORD = 10  # images for worst, best and digit=7


@dataclasses.dataclass
class TestSet:
    """A whole test set. Images are float32 (N, 784) in [0, 1]."""

    dataset: str  # its name
    images: torch.Tensor
    labels: torch.Tensor  # int64 (N,)
    normal: torch.Tensor  # N(0, 1) for every pixel of the images
    components: torch.Tensor  # the principal components of the images, (784, 784)
    pca_mse: list  # with 0 to 784 of them


class Shown(NamedTuple):
    """The chosen images, float32 (n, 784), their names, and the row of each in the test set or None.

    `photos` has the Digit of each picture of one's own, and None for a test image.
    """

    images: torch.Tensor
    names: list
    rows: list
    photos: list


@dataclasses.dataclass
class Lab(TestSet):
    """What every experiment of lab1.py gets: a test set, a network, and its options."""

    model: torch.nn.Module
    weights: str  # the name of their file in figures
    shown: Shown  # the images to draw
    noise: float  # of step 5
    steps: int  # of step 6
    seed: int  # of random codes


def load(dataset, data_dir, seed, device):
    """Return the TestSet of data.load(`dataset`, `data_dir`) on `device`; `seed` is the noise's.

    Raises DataError, OSError.
    """
    name, (images, labels) = data.load(dataset, data_dir, "test")
    images = data.to_float(images.to(device))
    _, components, variances = metrics.pca(images)
    normal = metrics.normal_like(images, seed)
    return TestSet(name, images, labels.to(device), normal, components, metrics.pca_mse(variances))


def set_up(args, model, record, device):
    """Return the Lab of a network that the options `args` describe. Raises LabError, OSError."""
    path = args.load[0]
    test = load(args.dataset or data.trained_on(record), args.data_dir, args.seed, device)
    codes = model.to(device).encode(test.images)
    if not (codes.isfinite().all() and model.decode(codes).isfinite().all()):
        raise LabError(f"{path} gives codes or outputs that are not finite: train again with a lower --lr")
    shown = select(args.index, model, test)
    weights = figures.label(str(Path(*path.parts[-2:])), 60)

    print(f"{test.dataset}: {len(codes):,} test images through {path}, {codes.shape[1]} units, on {device}")
    print(figures.small_print(record))
    return Lab(**vars(test), model=model, weights=weights, shown=shown, noise=args.noise, steps=args.steps,
               seed=args.seed)


def select(words, model, test):
    """Return the images of the TestSet `test` that `words`, the arguments of -i, choose, as Shown.

    Raises UsageError and PictureError.
    """
    images, labels = test.images, test.labels
    errors = metrics.mse_per_image(model(images), images) if {"worst", "best"} & {*words} else None
    shown, names, rows, photos = [], [], [], []
    for item in parse_words(words, labels, errors):
        own = not isinstance(item, int)
        photos.append(find_digit(item) if own else None)
        shown.append(photos[-1].image.to(images) if own else images[item])
        names.append(figures.label(item, 24) if own else test_image_name(labels, item))
        rows.append(None if own else item)
    return Shown(torch.stack(shown), names, rows, photos)


def parse_words(words, labels, errors):
    """Return what `words` choose, as a list of indices of test images and paths of pictures.

    Without words it is the first image of every digit. `errors` are the MSE of the test images, needed for
    "worst" and "best" alone. Raises UsageError.
    """
    if not words:
        return first_of_each(labels)

    chosen = []
    for word in words:
        if word in ("worst", "best"):
            found = errors.argsort(descending=word == "worst").tolist()[:PER_WORD]
        elif word.startswith("digit="):
            digit = word.removeprefix("digit=")
            found = [index for index, label in enumerate(labels.tolist()) if str(label) == digit][:PER_WORD]
        elif word.isdecimal():
            short = len(word) < 10  # int() refuses more than 4,300 digits
            found = [int(word)] if short and int(word) < len(labels) else []
        else:
            found = [word] if Path(word).suffix or os.path.isfile(word) else []
        if not found:
            raise UsageError(f"-i {word}: expected an index from 0 to {len(labels) - 1}, worst, best, "
                             "digit=0 ... digit=9 or a picture file, with spaces in between")
        chosen += found

    if len(chosen) > MAX_SHOWN:
        raise UsageError(f"-i chooses {len(chosen)} images: a figure shows at most {MAX_SHOWN}")
    return chosen


def first_of_each(labels):
    """Return the index of the first image of every digit there is."""
    return [(labels == digit).nonzero()[0].item() for digit in labels.unique()]


def in_pairs(shown, images, labels):
    """Return `shown` as Shown of an even number of images: the last test image is added to an odd one."""
    if len(shown.names) % 2 == 0:
        return shown
    last = len(images) - 1
    name = f"{test_image_name(labels, last)}, added to make a pair"
    return Shown(torch.cat([shown.images, images[-1:]]), [*shown.names, name], [*shown.rows, last],
                 [*shown.photos, None])


def test_image_name(labels, index):
    """Return the name of a test image in figures: its digit and its index."""
    return f"{labels[index]} (image {index})"
