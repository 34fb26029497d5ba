"""Image sets: found on disk, downloaded or drawn; resident on the device; batches by index.

    name, train_set, test_set = load(None, "data", "train", "test")  # MNIST, or glyphs without it
    for images in batches(train_set.to(device), 2048, seed=0):       # float32 (2048, 784) in [0, 1]

Four gzipped IDX archives become uint8 tensors of all images, (N, 784), on the device. A shuffled index
picks the images of a batch, which alone become float32: bytes take a quarter of the memory and train as fast.
"""

import gzip
import math
import os
import socket
import sys
import zlib
from contextlib import redirect_stdout, suppress
from importlib.metadata import version
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from labkit import LabError, files, glyphs

FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}  # torchvision's
DATASETS = (*FOLDERS, "glyphs")
ARCHIVES = {"train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
            "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")}
MAX_BYTES = 1 << 30  # of an unpacked archive: a gzip file can unpack to any size
TIMEOUT = 5  # seconds to wait for each answer of a mirror


class DataError(LabError):
    """Images that are unusable; the text says why and what to do."""


class UnavailableError(DataError):
    """A data set that is neither on disk nor can be downloaded: the problem, and what to do."""

    def __init__(self, problem, cure):
        super().__init__(problem, cure)  # unchanged, so that other processes can unpickle the error
        self.problem, self.cure = problem, cure

    def __str__(self):
        return f"{self.problem}: {self.cure}, or use --dataset glyphs"


class Images(Dataset):
    """All images of a split on one device: `images` uint8 (N, 784), `labels` int64 (N,).

    `dataset[index]`, with a tensor of indices, is a batch: float32 (len(index), 784) in [0, 1].
    """

    def __init__(self, images, labels):
        self.images, self.labels = images.flatten(1), labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return to_float(self.images.index_select(0, index))  # images[index] took 1 ms more per batch

    def to(self, device):
        """Return these Images on `device`."""
        return Images(self.images.to(device), self.labels.to(device))

    def part(self, rank, world_size):
        """Return every world_size-th image, starting with number `rank`."""
        return Images(self.images[rank::world_size], self.labels[rank::world_size])

    def in_order(self):
        """Return an iterator over all images as batches of float32."""
        return map(to_float, self.images.split(2_000))  # larger batches took a third longer

    def mean(self):
        """Return the mean image, float32 (784,) in [0, 1]."""
        return sum(to_float(images).sum(0) for images in self.images.split(10_000)) / len(self)


def to_float(images):
    """Return uint8 images in [0, 255], of any shape, as float32 in [0, 1]."""
    return images.float().div_(255)  # in place: `/` took up to 4 ms more per batch, for new memory


class ShuffledIndices(Sampler):
    """An epoch's shuffled order, one index tensor per batch: one gather instead of 2,048 Python calls.

    The order depends on `seed` and set_epoch() alone and is the same on every device. Rank r gets every
    world_size-th image of a batch, starting with its r-th. All ranks get equally many, so up to
    world_size - 1 images of a short last batch are left out.
    """

    def __init__(self, dataset, batch_size, seed, rank=0, world_size=1):
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.set_epoch(0)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return math.ceil(self.even_count() / self.batch_size)

    def __iter__(self):
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        order = torch.randperm(len(self.dataset), generator=generator).to(self.dataset.images.device)
        for batch in order[: self.even_count()].split(self.batch_size):
            yield batch[self.rank :: self.world_size]

    def even_count(self):
        return len(self.dataset) // self.world_size * self.world_size


def epoch_seed(seed, epoch):
    """Return the seed of one epoch, so that a resumed run draws the numbers of an uninterrupted one."""
    return (1_000_003 * seed + epoch) % 2**63


def batches(dataset, batch_size, seed, rank=0, world_size=1):
    """Return a DataLoader of an epoch's batches for one rank; the last one may be shorter.

    `batch_size` counts the images of all ranks together and is a multiple of `world_size`.
    """
    sampler = ShuffledIndices(dataset, batch_size, seed, rank, world_size)
    return DataLoader(dataset, batch_size=None, sampler=sampler)


def load(dataset, data_dir, *splits):
    """Return the name of the data set used, then the Images of each of `splits`, "train" or "test".

    `dataset` is one of DATASETS, or None for MNIST, and glyphs with a warning if MNIST is unavailable.
    Raises DataError, OSError.
    """
    name = dataset or "mnist"
    if name == "glyphs":
        return name, *(Images(*glyphs.load(split)) for split in splits)
    try:
        return name, *load_archives(name, Path(data_dir), splits)
    except UnavailableError as error:
        if dataset:
            raise
        print(f"warning: {error.cure} for results on MNIST: {error.problem}", file=sys.stderr)
        print("warning: using glyphs instead, digits drawn from fonts: their results are not MNIST's",
              file=sys.stderr)
        return load("glyphs", data_dir, *splits)


def load_archives(name, data_dir, splits):
    """Return the Images of each of `splits`; archives that are missing or damaged are downloaded first.

    An unpacked file beside its archive is not read, since nothing tells whether it is complete.
    """
    raw = data_dir / FOLDERS[name] / "raw"
    tensors, missing, damaged = {}, [], []
    for file in [file for split in splits for file in ARCHIVES[split]]:
        try:
            tensors[file] = read_idx(raw / file)
        except FileNotFoundError:
            missing.append(file)
        except DataError:
            damaged.append(file)

    if missing or damaged:
        try:
            download(name, raw, missing + damaged)
        except DataError:
            raise
        except Exception as error:  # a download fails in many ways: HTTP, TLS, MD5, a full disk
            what = f"{damaged[0]} is damaged" if damaged else f"{name} is not in {data_dir}"
            cure = f"replace {raw / damaged[0]}" if damaged else f"put its {len(missing)} archives into {raw}"
            reason = " ".join(str(error).split())[:80]
            raise UnavailableError(f"{what} and could not be downloaded ({reason})", cure) from error
        tensors |= {file: read_idx(raw / file) for file in missing + damaged}
    pairs = [ARCHIVES[split] for split in splits]
    return [checked_images(tensors[images], tensors[labels], raw / images) for images, labels in pairs]


def read_idx(path):
    """Return the uint8 tensor in a gzipped IDX file, whose checksum gzip compares.

    IDX is MNIST's own format: two zero bytes, the type (8: uint8), the number of dimensions, four bytes for
    the size of each, the values. Raises DataError, OSError.
    """
    try:
        with gzip.open(path) as file:
            content = bytearray(file.read(MAX_BYTES))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error})") from error

    header = 4 + 4 * content[3] if len(content) > 3 else 0
    shape = [int.from_bytes(content[start : start + 4], "big") for start in range(4, header, 4)]
    count = math.prod(shape)
    if content[:3] != b"\0\0\x08" or count == 0 or len(content) != header + count:
        raise DataError(f"{path} is damaged (not an IDX file of bytes)")
    return torch.frombuffer(content, dtype=torch.uint8, offset=header).view(shape)


def checked_images(images, labels, path):
    """Return Images of two tensors, read from `path` and its labels' file, if they fit. Raises DataError."""
    same_count = images.dim() == 3 and labels.shape == images.shape[:1]
    if not same_count or images.shape[1:] != (28, 28) or labels.max() > 9:
        shapes = f"{tuple(images.shape)} and {tuple(labels.shape)}"
        raise DataError(f"{path} and its labels are of shapes {shapes}; "
                        "expected (N, 28, 28) and (N,) with labels from 0 to 9: delete the wrong file")
    return Images(images, labels.long())


def download(name, raw, archives):
    """Download `archives` of a data set into the folder `raw`, each with the right MD5 or not at all.

    Raises DataError if torchvision does not work, and whatever a failed download raises.
    """
    try:
        from torchvision import datasets  # here, because it takes seconds to import
    except ModuleNotFoundError as error:
        raise DataError(f"{error}: pip install -r requirements.txt") from error
    except (ImportError, RuntimeError) as error:  # RuntimeError: operator torchvision::nms does not exist
        versions = f"torchvision {version('torchvision')} does not work beside torch {version('torch')}"
        raise DataError(f"{versions}: pip install --force-reinstall torch torchvision") from error

    source = getattr(datasets, FOLDERS[name])
    new_folders = [folder for folder in (raw, *raw.parents) if not folder.exists()]
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torchvision sets none
    try:
        for file, md5 in source.resources:
            if file in archives:
                download_file([mirror + file for mirror in source.mirrors], raw / file, md5)
    finally:
        socket.setdefaulttimeout(timeout)
        with suppress(OSError):  # a folder with a file in it stays
            for folder in new_folders:
                folder.rmdir()


def download_file(urls, path, md5):
    """Download `path` from the first of `urls` that has it."""
    from torchvision.datasets.utils import download_url

    part = files.temporary_path(path)
    try:
        for url in urls:
            try:
                with redirect_stdout(None):  # where older torchvisions report
                    download_url(url, part.parent, part.name, md5)
                return part.replace(os.path.realpath(path))
            except Exception:
                if url == urls[-1]:
                    raise
    finally:
        part.unlink(missing_ok=True)
