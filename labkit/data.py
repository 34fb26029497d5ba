"""Image sets: found on disk, downloaded by torchvision or drawn; shuffled batches of them.

    name, train_set, test_set = load(None, "data", "train", "test")  # MNIST, or glyphs without it
    for images in batches(train_set.images, 2048, seed=0, epoch=1):  # float32 (2048, 784) in [0, 1]

A set is one uint8 tensor of all images. A shuffled index picks the images of a batch, which alone become
float32: bytes take a quarter of the memory and train as fast.
"""

import gzip
import math
import socket
import sys
import textwrap
import zlib
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import torch

from labkit import LabError, glyphs

FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}  # torchvision's
DATASETS = (*FOLDERS, "glyphs")
NOT_MNIST = "not-mnist"  # other images in MNIST's place
FILES = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
         "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}
MNIST_CHECKSUMS = {"train-images-idx3-ubyte": 0xF3639B56, "train-labels-idx1-ubyte": 0xBA07E8EF,
                   "t10k-images-idx3-ubyte": 0xE4CA5F57, "t10k-labels-idx1-ubyte": 0xEE8604D9}
TIMEOUT = 5  # seconds to wait for each answer of a mirror; torchvision sets none


class DataError(LabError):
    """Images that are unusable; the text says why and what to do."""


class Images(NamedTuple):
    """All images of a split: `images` uint8 (N, 784), `labels` int64 (N,) from 0 to 9."""

    images: torch.Tensor
    labels: torch.Tensor


def to_float(images):
    """Return uint8 images in [0, 255], of any shape, as float32 in [0, 1]."""
    return images.float().div_(255)  # in place: `/` took up to 4 ms more per batch, for new memory


def batches(images, batch_size, seed, epoch, rank=0, world_size=1):
    """Yield an epoch's batches of `images`, uint8 (N, 784), shuffled, as float32 (n, 784) in [0, 1].

    The order depends on `seed` and `epoch` alone, so that a resumed run sees the batches of an uninterrupted
    one. `batch_size`, a multiple of `world_size`, counts the images of all ranks, of which each gets equally
    many: up to world_size - 1 images of an epoch are left out. The last batch may be shorter.
    """
    generator = torch.Generator().manual_seed((1_000_003 * seed + epoch) % 2**63)
    count = len(images) // world_size * world_size
    order = torch.randperm(len(images), generator=generator)[:count].to(images.device)
    for batch in order.split(batch_size):
        yield to_float(images.index_select(0, batch[rank::world_size]))  # images[...] took 1 ms more


def noise_seed(seed, epoch, rank):
    """Return the seed of an epoch's noise in one process: each epoch and process has its own.

    So has the shuffling: noise that repeated its numbers would depend on the order of the images.
    """
    return zlib.crc32(f"noise {seed} {epoch} {rank}".encode())


def mean_image(images):
    """Return the mean of `images`, uint8 (N, 784), float32 (784,) in [0, 1]."""
    return sum(to_float(part).sum(0) for part in images.split(10_000)) / len(images)


def checksum(tensor):
    """Return the CRC-32 of the bytes of a uint8 tensor."""
    return zlib.crc32(tensor.cpu().contiguous().numpy())


def trained_on(record):
    """Return the data set to load for weights with a `record` of their training; None if it is unknown."""
    return record["dataset"].removeprefix("not-") if record else None


def load(dataset, data_dir, *splits):
    """Return the name of the data set used, then the Images of each of `splits`, "train" or "test".

    `dataset` is one of DATASETS, or None for MNIST, and glyphs with a warning if MNIST is unavailable. Other
    images in MNIST's place are called NOT_MNIST, with a warning. Raises DataError, OSError.
    """
    name = dataset or "mnist"
    if name not in DATASETS:  # as weights from elsewhere may say of themselves
        raise DataError(f"data set {name} is unknown: give --dataset one of {', '.join(DATASETS)}")
    if name == "glyphs":
        return name, *(Images(images.flatten(1), labels) for images, labels in map(glyphs.load, splits))

    files = [file for split in splits for file in FILES[split]]
    try:
        tensors = dict(zip(files, read_or_download(name, data_dir, files)))
    except DataError as error:
        if dataset:
            raise
        print(f"warning: {error}", file=sys.stderr)
        print("warning: using glyphs instead, digits drawn from fonts: their results are not MNIST's",
              file=sys.stderr)
        return load("glyphs", data_dir, *splits)

    others = [file for file in files if name == "mnist" and checksum(tensors[file]) != MNIST_CHECKSUMS[file]]
    if others:
        name = NOT_MNIST
        print(f"warning: {', '.join(others)} in {data_dir}: not MNIST's, so the results are called {name}",
              file=sys.stderr)
    sets = [Images(*(tensors[file] for file in FILES[split])) for split in splits]
    if any(len(images) != len(labels) for images, labels in sets):
        raise DataError(f"{data_dir} holds different numbers of images and labels of {name}: put its four "
                        "files there anew")
    return name, *(Images(images.flatten(1), labels.long()) for images, labels in sets)


def read_or_download(dataset, data_dir, files):
    """Return the uint8 tensor in each of `files`, with torchvision's help if one is missing or damaged.

    Raises DataError, OSError.
    """
    try:
        return [read_file(file, dataset, data_dir) for file in files]
    except DataError as problem:
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(TIMEOUT)
        try:
            from torchvision import datasets  # here, because it takes seconds to import

            with redirect_stdout(None):  # on which it tells of each mirror that failed
                getattr(datasets, FOLDERS[dataset])(data_dir, download=True)
        except Exception as error:  # a download fails in many ways: no torchvision, HTTP, TLS, a full disk
            reason = textwrap.shorten(str(error), 80, placeholder=" …")
            raise DataError(f"{problem}; {dataset} could not be downloaded either ({reason})") from error
        finally:
            socket.setdefaulttimeout(timeout)
    return [read_file(file, dataset, data_dir) for file in files]


def read_file(name, dataset, data_dir):
    """Return the uint8 tensor in the first sound file called `name` in the folders where people keep it.

    It may be gzipped; a copy may have "(1)" in its name, and Kaggle's a dot before idx. Raises DataError.
    """
    raw = Path(data_dir, FOLDERS[dataset], "raw")
    places = [raw, raw.parent, Path(data_dir, dataset, FOLDERS[dataset], "raw"), Path(data_dir, dataset)]
    if dataset == "mnist":  # the others' files have the same names
        places.append(Path(data_dir))

    labels = "labels" in name
    problem = f"put {dataset}'s four files into {raw}: there is no {name}.gz"
    for path in [path for place in places for path in sorted(place.glob(name.replace("-idx", "?idx") + "*"))]:
        try:
            tensor = read_idx(path)
            if tensor.dim() == 1 and tensor.max() < 10 if labels else tensor.shape[1:] == (28, 28):
                return tensor
            problem = f"{path} holds no {'labels from 0 to 9' if labels else 'images of 28 x 28'}: replace it"
        except (OSError, EOFError, zlib.error, ValueError) as error:
            problem = f"{path} is damaged ({error}): replace it"
    raise DataError(problem)


def read_idx(path):
    """Return the uint8 tensor in an IDX file, gzipped or not.

    IDX is MNIST's own format: two zero bytes, the type (8: uint8), the number of dimensions, four bytes for
    the size of each, the values. Raises ValueError, OSError, EOFError, zlib.error.
    """
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        content = bytearray(file.read(1 << 30))  # no more: a gzip file can unpack to any size
    header = 4 + 4 * content[3] if len(content) > 3 else 0
    shape = [int.from_bytes(content[start : start + 4], "big") for start in range(4, header, 4)]
    if content[:3] != b"\0\0\x08" or math.prod(shape) == 0 or len(content) != header + math.prod(shape):
        raise ValueError("not an IDX file of bytes")
    return torch.frombuffer(content, dtype=torch.uint8, offset=header).view(shape)
