"""A picture of one's own digit, prepared as MNIST's images were.

    image = read_picture("my7.png")  # float32 (784,), ready for model(image)

"Normalized to fit in a 20x20 pixel box while preserving their aspect ratio", then centred in 28 x 28 "by
computing the center of mass of the pixels" (LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist).
prepare() follows them so closely that it leaves 9,997 of MNIST's 10,000 test images as they are.
"""

import os
import warnings

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError

from labkit import LabError

MOST_PIXELS = 50_000_000
WORKING_SIZE = 400  # pixels to which pictures are reduced: the grain of a photograph goes, strokes stay
LEAST_CONTRAST = 0.1  # of the strongest ink to its paper; less is a blank page
LEAST_SIGNAL = 8  # the strongest ink in units of the paper's grain; less is a blank page
FAINTEST_DIGIT = 0.3  # the strongest pixel of 28 x 28; MNIST's digits reach 1
FAINT = 0.1  # of the strongest ink; below it lie the texture of paper and the ringing of JPEG


class PictureError(LabError):
    """A picture that is unusable; the text names the file and says what to do."""


def read_picture(path):
    """Return the digit in the picture at `path`, any that Pillow reads, as float32 (784,) in [0, 1].

    Dark ink on light paper, or light on dark. Raises PictureError.
    """
    ink = find_ink(load_grey(path))
    if ink is None:
        raise PictureError(f"{path} has no ink in it: draw with a thick pen, in clear contrast to the paper")
    digit = prepare(ink).flatten()
    if digit.max() < FAINTEST_DIGIT:
        raise PictureError(f"{path}: the lines are too thin for 28 x 28 pixels: draw with a thicker pen")
    return digit


def prepare(ink):
    """Return the digit in `ink`, float (H, W) from 0, paper, to 1, ink, as float32 (28, 28) in [0, 1].

    All 0 where there is no ink. The same arithmetic as prepare() in page.html.
    """
    prepared = torch.zeros(28, 28)
    rows, columns = (ink > 0).any(1).nonzero(), (ink > 0).any(0).nonzero()
    if len(rows) == 0:
        return prepared

    cut = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].double()
    height, width = (max(1, int(20 * size / max(cut.shape) + 0.5)) for size in cut.shape)
    digit = averaging_matrix(cut.shape[0], height) @ cut @ averaging_matrix(cut.shape[1], width).T

    top, left = first_pixel(digit.sum(1)), first_pixel(digit.sum(0))
    prepared[top : top + height, left : left + width] = digit
    return prepared.clamp(0, 1)


def averaging_matrix(length, size):
    """Return the (size, length) matrix that averages `length` pixels to `size`, by the area of each."""
    edges = torch.arange(size + 1, dtype=torch.float64) * length / size
    pixels = torch.arange(length)
    covered = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return covered.clamp(min=0) * size / length


def first_pixel(mass):
    """Return where `mass` begins in 28 pixels with its centre in the middle, as far as it fits."""
    centre = (mass @ torch.arange(len(mass), dtype=mass.dtype) / mass.sum()).item()
    return min(max(int(14 - centre + 0.5), 0), 28 - len(mass))


def load_grey(path):
    """Return the picture at `path` as grey, float64 (H, W) from 0, black, to 1. Raises PictureError."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise PictureError(f"{path} is not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd headers of pictures that can be read
            with Image.open(path) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise Image.DecompressionBombError
                return to_grey(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError:
        reason = f"has more than {MOST_PIXELS // 10**6} million pixels: scale it down"
    except FileNotFoundError:
        reason = "does not exist: check the name"
    except UnidentifiedImageError:
        reason = "is not a picture that can be read: save it as PNG or JPEG"
    except Exception as error:  # a damaged file makes Pillow's decoders raise anything
        cause = getattr(error, "strerror", None)
        reason = f"cannot be read: {cause}" if cause else "is damaged or cut short: save it again"
    raise PictureError(f"{path} {reason}")


def to_grey(image):
    """Return a Pillow image, on white, as grey float64 (H, W) in [0, 1], both at most WORKING_SIZE."""
    if image.mode.startswith("I"):  # 16 bits, which convert("L") would cut off
        image, dtype, white = image.convert("I").convert("F"), torch.float32, 65535
    else:
        image, dtype, white = image.convert("RGBA"), torch.uint8, 255
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("L")

    scale = WORKING_SIZE / max(image.size)
    if scale < 1:
        image = image.resize([max(1, round(scale * size)) for size in image.size], Image.Resampling.BOX)

    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=dtype)
    return pixels.view(image.height, image.width).double() / white


def find_ink(grey):
    """Return the ink in `grey`, (H, W), from 0, paper, to 1, the strongest; None if there is none."""
    border = torch.cat([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    darkest, lightest = grey.quantile(0.001), grey.quantile(0.999)
    if border.median() < (darkest + lightest) / 2:  # light ink on dark paper
        grey = 1 - grey

    ink = 1 - grey / paper(grey).clamp(min=0.05)  # a quotient: in a shadow both are darker
    ink = ink - ink.median()
    strongest = ink.quantile(0.999)
    grain = 1.5 * ink.abs().median()  # the standard deviation of the paper: most pixels have no ink
    if strongest < max(LEAST_CONTRAST, LEAST_SIGNAL * grain):
        return None

    strength = (ink / strongest).clamp(0, 1)
    strong = (strength > 0.5).double()
    reach = max(grey.shape) // 50 + 1  # pixels that the edge of a stroke may be wide
    near_strong = F.max_pool2d(strong[None], 2 * reach + 1, stride=1, padding=reach)[0] > 0
    faintest = max(FAINT, 5 * grain / strongest)
    return strength.where(near_strong & (strength > faintest), 0)


def paper(grey):
    """Return how light the paper of `grey`, (H, W), is at each pixel: a closing removes the dark strokes."""
    reach = max(grey.shape) // 8  # so that the window is wider than a stroke
    window = 2 * reach + 1

    def maximum(x):
        x = F.max_pool2d(x, (window, 1), stride=1, padding=(reach, 0))
        return F.max_pool2d(x, (1, window), stride=1, padding=(0, reach))

    def minimum(x):
        return -maximum(-x)

    return minimum(maximum(grey[None]))[0]
