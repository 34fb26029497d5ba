"""Image sets: found on disk, downloaded or drawn; resident on the device; batches by index.

    name, train_set, test_set = load(None, "data", "train", "test")  # MNIST, or glyphs without it
    for images in batches(train_set.to(device), 2048, seed=0):       # float32 (2048, 784) in [0, 1]

A set is one uint8 tensor of all images, (N, 784), on the device. A shuffled index picks the images of a
batch, which alone become float32: bytes take a quarter of the memory and train as fast.
"""

import math
import sys

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from labkit import archives, glyphs

DATASETS = (*archives.FOLDERS, "glyphs")


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
        pairs = archives.load(name, data_dir, splits)
    except archives.UnavailableError as error:
        if dataset:
            raise
        print(f"warning: {error.cure} for results on MNIST: {error.problem}", file=sys.stderr)
        print("warning: using glyphs instead, digits drawn from fonts: their results are not MNIST's",
              file=sys.stderr)
        return load("glyphs", data_dir, *splits)
    return name, *(Images(*pair) for pair in pairs)
