"""Images in, batches out.

    name, train, test = load(None, "data", "train", "test")  # MNIST, or glyphs where it can't be had
    for images, share in batches(train, 2048, seed=0):       # float32, (2048, 784), in [0, 1]

The way of an image: IDX file -> one uint8 tensor of all images (N, 784), resident on the device ->
a shuffled index -> one batch, float32 in [0, 1]. A quarter of the memory of resident float32
images, and as fast: a batch of 2,048 is gathered in 0.2 ms and converted in 0.15 ms, of 45 ms a step.
"""

import shutil
import socket
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

DATASETS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST", "glyphs": None}
SIZES = {"train": 60_000, "test": 10_000}  # of glyphs: MNIST's
TIMEOUT = 5  # seconds without an answer; torchvision tries two mirrors
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Italic",
         "STIXGeneral", "STIXGeneralItalic", "STIXGeneralBol", "STIXGeneralBolIta", "cmr10", "cmss10", "cmti10", "cmtt10")


class DataError(Exception):
    """A data set that can't be had; the text says what to do."""


class InstallationError(DataError):
    """A torchvision that doesn't work; the text says what to install."""


def load(dataset, data_dir, *splits, device="cpu"):
    """Return the name of the data set used, then the Images of each of `splits`, "train" or "test".

    `dataset` is a key of DATASETS, or None: MNIST, and where that can't be had, glyphs with a warning
    on stderr. Raises DataError.
    """
    name = dataset or "mnist"
    try:
        arrays = glyphs(splits) if name == "glyphs" else from_torchvision(name, data_dir, splits)
    except DataError as error:
        if dataset or isinstance(error, InstallationError):
            raise
        print(f"warning: {error}\nwarning: using glyphs instead, digits drawn from fonts: their figures are not MNIST's",
              file=sys.stderr)
        return load("glyphs", data_dir, *splits, device=device)
    return name, *(Images(images, labels, device) for images, labels in arrays)


def device(name):
    """Return torch.device(name), for argparse. Raises ValueError where it can't be used."""
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(name) from error
    return torch.device(name)


def to_float(images):
    """uint8 in [0, 255] to float32 in [0, 1], any shape: the one place where images become floats."""
    return images.float().div_(255)  # in place: images / 255 takes up to 4 ms more a batch, for memory new to the process


class Images(Dataset):
    """All images of a split, resident on one device: `images` uint8 (N, 784), `labels` int64 (N,).

    `dataset[index, share]`, with `index` a tensor, is a batch, float32 (len(index), 784), and its share.
    """

    def __init__(self, images, labels, device="cpu"):
        self.images, self.labels = images.flatten(1).to(device), labels.to(device)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, batch):
        index, share = batch
        return to_float(self.images.index_select(0, index)), share  # images[index]: 1 ms more a batch


class Shuffle(Sampler):
    """One index tensor a batch, so that a batch costs one gather instead of 2,048 Python calls.

    Every epoch has an order of its own, given by `seed` and set_epoch alone and the same on every device.
    Of each batch this process, `rank` of `world`, gets every `world`-th image. With the index comes the
    share, the number of pixels a process has of the batch on average: a sum of errors over the share,
    averaged over the processes, is the batch's mean error even where a batch does not divide evenly.
    """

    def __init__(self, dataset, batch_size, seed, rank=0, world=1):
        self.dataset, self.batch_size, self.seed, self.rank, self.world = dataset, batch_size, seed, rank, world
        self.set_epoch(0)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self):
        count, pixels = self.dataset.images.shape
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        order = torch.randperm(count, generator=generator).to(self.dataset.images.device)
        for batch in order.split(self.batch_size):
            yield batch[self.rank :: self.world], len(batch) * pixels / self.world


def epoch_seed(seed, epoch):
    """Return a seed for one epoch of a run: so a resumed run has the random numbers of an undisturbed one."""
    return (1_000_003 * seed + epoch) % 2**63


def batches(dataset, batch_size, seed, rank=0, world=1):
    """Return a DataLoader of an epoch's batches, see Images and Shuffle; the last one is shorter."""
    return DataLoader(dataset, batch_size=None, sampler=Shuffle(dataset, batch_size, seed, rank, world))


def from_torchvision(name, data_dir, splits):
    """Return [(images, labels), ...] of a data set of torchvision's, downloaded into `data_dir` on first use.

    Only the four archives are kept and trusted, after torchvision has checked their MD5: they are unpacked
    into a scratch folder on every run (0.3 s), since torchvision reads an unpacked file without a check, even
    one that a killed run left half-written. Raises DataError.
    """
    try:
        from torchvision import datasets  # here: takes 2 s, and glyphs don't need it
        from torchvision.datasets.utils import check_integrity
    except ModuleNotFoundError as error:
        raise InstallationError(f"{error}: pip install -r requirements.txt") from error
    except (ImportError, RuntimeError) as error:  # RuntimeError: operator torchvision::nms does not exist
        raise InstallationError(f"torchvision {version('torchvision')} does not work beside torch {version('torch')}: "
                                "pip install --force-reinstall torch torchvision") from error
    cls = getattr(datasets, DATASETS[name])
    raw = Path(data_dir, cls.__name__, "raw")
    with tempfile.TemporaryDirectory() as scratch:
        unpacked = Path(scratch, cls.__name__, "raw")
        unpacked.mkdir(parents=True)
        missing, damaged = [], []
        for file, md5 in cls.resources:
            if check_integrity(raw / file, md5):
                shutil.copyfile(raw / file, unpacked / file)
            else:
                (damaged if (raw / file).exists() else missing).append(file)
        socket.setdefaulttimeout(TIMEOUT)  # torchvision sets none
        try:
            sets = [cls(scratch, train=split == "train", download=True) for split in splits]
            if missing or damaged:
                raw.mkdir(parents=True, exist_ok=True)
                for file in missing + damaged:
                    shutil.move(unpacked / file, raw / file)
        except Exception as error:  # a download fails in many ways: HTTP, TLS, MD5, a full disk
            if not missing + damaged:
                raise
            state = f"{raw / damaged[0]} is damaged (delete it)" if damaged else f"{name} is not in {data_dir}"
            raise DataError(f"{state} and could not be downloaded ({' '.join(str(error).split())}): put "
                            f"{', '.join(missing + damaged)} into {raw}") from error
        finally:
            socket.setdefaulttimeout(None)
    return [(s.data, s.targets) for s in sets]


def glyphs(splits):
    """Return [(images, labels), ...]: digits drawn from FONTS and warped at random, in MNIST's sizes.

    Stands in for MNIST on a machine that can't reach a mirror. Images are uint8 (N, 28, 28), labels int64
    (N,); "train" and "test" come from disjoint random streams and are the same on every run. The warp is
    Simard et al.'s, "Best Practices for Convolutional Neural Networks" (2003): affine plus elastic.
    """
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    fonts = Path(matplotlib.get_data_path(), "fonts", "ttf")
    stencils = []
    for digit in "0123456789":
        for font in FONTS:
            big = ImageFont.truetype(str(fonts / f"{font}.ttf"), 80)
            left, top, right, bottom = big.getbbox(digit)
            image = Image.new("L", (right - left, bottom - top))
            ImageDraw.Draw(image).text((-left, -top), digit, fill=255, font=big)
            image.thumbnail((40, 40))  # as in MNIST: 20 of 28 pixels, drawn here at twice the size
            canvas = Image.new("L", (56, 56))
            canvas.paste(image, ((56 - image.width) // 2, (56 - image.height) // 2))
            stencils.append(torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8).view(1, 56, 56))
    stencils = torch.stack(stencils) / 255
    return [draw(stencils, SIZES[split], torch.Generator().manual_seed(["train", "test"].index(split))) for split in splits]


def draw(stencils, count, generator):
    """Return `count` warped images, uint8 (count, 28, 28), and their labels, int64 (count,)."""

    def uniform(n, low, high):
        return torch.rand(n, generator=generator) * (high - low) + low

    labels = torch.randint(10, (count,), generator=generator)
    images = torch.empty(count, 28, 28, dtype=torch.uint8)
    for digit, image in zip(labels.split(2_500), images.split(2_500)):  # chunks: small temporaries, however many images
        n = len(digit)
        font = torch.randint(len(FONTS), (n,), generator=generator)
        angle, shear = uniform(n, -0.25, 0.25), uniform(n, -0.3, 0.3)
        width, height = uniform(n, 0.85, 1.25), uniform(n, 0.85, 1.1)
        cos, sin = angle.cos(), angle.sin()
        affine = torch.stack([width * cos, shear - sin, uniform(n, -0.1, 0.1),
                              sin, height * cos, uniform(n, -0.1, 0.1)], 1).view(n, 2, 3)
        grid = F.affine_grid(affine, (n, 1, 28, 28), align_corners=False)
        bends = torch.randn(n, 2, 5, 5, generator=generator) * 0.09
        grid = grid + F.interpolate(bends, (28, 28), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
        warped = F.grid_sample(stencils[digit * len(FONTS) + font], grid, align_corners=False)
        image.copy_((warped.squeeze(1) * 255).round())
    return images, labels
