"""A data set's gzipped IDX archives: read from disk, downloaded by torchvision where missing or damaged."""

import gzip
import math
import os
import socket
import zlib
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path

import torch

from labkit import LabError, files

FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}  # torchvision's
ARCHIVES = {"train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
            "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")}
MAX_BYTES = 1 << 30  # of an unpacked archive: a gzip file can unpack to any size
TIMEOUT = 5  # seconds to wait for each answer of a mirror


class DataError(LabError):
    """Images that are unusable; the text says why and what to do."""


class UnavailableError(DataError):
    """A data set that is not on disk and cannot be downloaded: the problem, and what to do."""

    def __init__(self, problem, cure):
        super().__init__(problem, cure)  # unchanged, so that other processes can unpickle the error
        self.problem, self.cure = problem, cure

    def __str__(self):
        return f"{self.problem}: {self.cure}, or use --dataset glyphs"


def load(dataset, data_dir, splits):
    """Return for each of `splits` its images, uint8 (N, 28, 28), and labels, int64 (N,).

    `dataset` is one of FOLDERS. Archives that are missing or damaged are downloaded first; an unpacked file
    beside its archive is not read, since nothing tells whether it is complete. Raises DataError, OSError.
    """
    raw = Path(data_dir) / FOLDERS[dataset] / "raw"
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
            download(dataset, raw, missing + damaged)
        except DataError:
            raise
        except Exception as error:  # a download fails in many ways: HTTP, TLS, MD5, a full disk
            problem, cure = f"{dataset} is not in {data_dir}", f"put {dataset}'s .gz archives into {raw}"
            if damaged:
                problem, cure = f"{damaged[0]} is damaged", f"replace {raw / damaged[0]}"
            reason = " ".join(str(error).split())[:80]
            raise UnavailableError(f"{problem} and could not be downloaded ({reason})", cure) from error
        tensors |= {file: read_idx(raw / file) for file in missing + damaged}

    pairs = [[tensors[file] for file in ARCHIVES[split]] for split in splits]
    for split, (images, labels) in zip(splits, pairs):
        require_pair(images, labels, raw / ARCHIVES[split][0])
    return [(images, labels.long()) for images, labels in pairs]


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


def require_pair(images, labels, path):
    """Raise DataError unless two tensors, read from `path` and its labels' file, fit together."""
    same_count = images.dim() == 3 and labels.shape == images.shape[:1]
    if not same_count or images.shape[1:] != (28, 28) or labels.max() > 9:
        shapes = f"{tuple(images.shape)} and {tuple(labels.shape)}"
        raise DataError(f"{path} and its labels are of shapes {shapes}; "
                        "expected (N, 28, 28) and (N,) with labels from 0 to 9: delete the wrong file")


def download(dataset, raw, archives):
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

    source = getattr(datasets, FOLDERS[dataset])
    new_folders = files.missing_folders(raw / "archive")
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torchvision sets none
    try:
        for file, md5 in source.resources:
            if file in archives:
                download_file([mirror + file for mirror in source.mirrors], raw / file, md5)
    finally:
        socket.setdefaulttimeout(timeout)
        files.remove_empty(new_folders)


def download_file(urls, path, md5):
    """Download `path` from the first of `urls` that has it. Raises what the last one raised."""
    from torchvision.datasets.utils import download_url

    part = files.temporary_path(path)
    try:
        for number, url in enumerate(urls, 1):
            try:
                with redirect_stdout(None):  # where older torchvisions report
                    download_url(url, part.parent, part.name, md5)
                break
            except Exception:
                if number == len(urls):
                    raise
        part.replace(os.path.realpath(path))
    finally:
        part.unlink(missing_ok=True)
