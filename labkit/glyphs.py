"""The stand-in for MNIST: digits drawn from matplotlib's fonts and warped at random, in MNIST's sizes."""

from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

SIZES = {"train": 60_000, "test": 10_000}
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif",
         "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralItalic", "STIXGeneralBol", "STIXGeneralBolIta",
         "cmr10", "cmss10", "cmtt10", "cmb10")  # which every matplotlib ships


def load(split):
    """Return the images of "train" or "test", uint8 (N, 28, 28), and their labels, int64 (N,).

    They are the same every time: each split has a fixed seed.
    """
    generator = torch.Generator().manual_seed(list(SIZES).index(split))
    return warp(stencils(), SIZES[split], generator)


def stencils():
    """Return every digit in every font, float32 (10 * fonts, 1, 56, 56) in [0, 1], digit by digit.

    As in MNIST, a digit fills 20 of 28 pixels, here twice the size for the detail, and sits in the middle.
    """
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    fonts = [ImageFont.truetype(str(folder / f"{name}.ttf"), 80) for name in FONTS]
    return torch.stack([stencil(digit, font) for digit in "0123456789" for font in fonts])


def stencil(digit, font):
    """Return one digit in one of Pillow's fonts, float32 (1, 56, 56)."""
    left, top, right, bottom = font.getbbox(digit)
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), digit, fill=255, font=font)
    image.thumbnail((40, 40))
    canvas = Image.new("L", (56, 56))
    canvas.paste(image, ((56 - image.width) // 2, (56 - image.height) // 2))
    return torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8).view(1, 56, 56) / 255


def warp(stencils, count, generator):
    """Return `count` stencils, chosen and warped at random, uint8 (count, 28, 28), and their labels.

    The warps are affine and elastic, as in Simard et al., "Best Practices for Convolutional Neural Networks
    Applied to Visual Document Analysis" (2003).
    """
    labels = torch.randint(10, (count,), generator=generator)
    images = torch.empty(count, 28, 28, dtype=torch.uint8)
    for digit, image in zip(labels.split(2_500), images.split(2_500)):  # chunks need little memory
        font = torch.randint(len(FONTS), digit.shape, generator=generator)
        grid = random_grid(len(digit), generator)
        warped = F.grid_sample(stencils[digit * len(FONTS) + font], grid, align_corners=False)
        image.copy_((warped.squeeze(1) * 255).round())
    return images, labels


def random_grid(count, generator):
    """Return where each pixel of `count` warped images comes from, (count, 28, 28, 2) in [-1, 1]."""

    def uniform(low, high):
        return torch.rand(count, generator=generator) * (high - low) + low

    angle, shear = uniform(-0.25, 0.25), uniform(-0.3, 0.3)
    width, height = uniform(0.85, 1.25), uniform(0.85, 1.1)
    cos, sin = angle.cos(), angle.sin()
    entries = [width * cos, shear - sin, uniform(-0.1, 0.1), sin, height * cos, uniform(-0.1, 0.1)]
    affine = torch.stack(entries, 1).view(count, 2, 3)
    grid = F.affine_grid(affine, (count, 1, 28, 28), align_corners=False)

    bends = torch.randn(count, 2, 5, 5, generator=generator) * 0.09
    elastic = F.interpolate(bends, (28, 28), mode="bicubic", align_corners=True)
    return grid + elastic.permute(0, 2, 3, 1)
