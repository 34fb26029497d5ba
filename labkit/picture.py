"""A picture of one's own digit, prepared as MNIST's images were.

    image = read_picture("my7.png")  # float32 (784,), ready for model(image)

"Normalized to fit in a 20x20 pixel box while preserving their aspect ratio", then centred in 28 x 28 "by
computing the center of mass of the pixels" (LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist). So
prepare() leaves an image of MNIST as it is: 9,997 of the 10,000 test images.
"""

import warnings

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError

from labkit import LabError

MOST_PIXELS = 50_000_000
WORKING_SIZE = 400  # averaged down to this first: the grain of a photograph goes, the strokes stay
FAINT = 0.1  # of the darkest ink; below it lie the texture of paper and the ringing of JPEG
LEAST_CONTRAST = 0.1  # of the way from black to white


class PictureError(LabError):
    """A picture that can't be used; the text is one line that names the file and says what to do."""


def read_picture(path):
    """Return the digit in the picture at `path`, any that Pillow reads, as float32 (784,) in [0, 1].

    Dark ink on light paper, or light on dark. Raises PictureError.
    """
    ink = find_ink(load_grey(path))
    if ink is None:
        raise PictureError(f"{path}: no ink in it: draw with a thick pen, in clear contrast to the paper")
    return prepare(ink).flatten()


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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd headers: the picture can be read, or it is an error
            with Image.open(path) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise Image.DecompressionBombError
                return to_grey(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError:
        reason = f"more than {MOST_PIXELS // 10**6} million pixels: scale it down"
    except FileNotFoundError:
        reason = "not there: check the name"
    except UnidentifiedImageError:
        reason = "not a picture that can be read: save it as PNG or JPEG"
    except Exception as error:  # of a damaged file, Pillow's decoders raise whatever they run into
        reason = getattr(error, "strerror", None) or "damaged or cut short: save it again"
    raise PictureError(f"{path}: {reason}")


def to_grey(image):
    """Return a Pillow image on white as grey, float64 (H, W) in [0, 1], both at most WORKING_SIZE."""
    if image.mode.startswith("I"):
        image, white = image.convert("I").convert("F"), 65535  # 16 bits: convert("L") would cut them off
    else:
        image, white = image.convert("RGBA"), 255
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("L")
    scale = WORKING_SIZE / max(image.size)
    if scale < 1:
        image = image.resize([max(1, round(scale * size)) for size in image.size], Image.Resampling.BOX)
    dtype = torch.float32 if image.mode == "F" else torch.uint8
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=dtype)
    return pixels.view(image.height, image.width).double() / white


def find_ink(grey):
    """Return the ink in `grey`, (H, W), from 0, paper, to 1, the strongest; None if there is none."""
    border = torch.cat([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    if border.median() < grey.quantile(torch.tensor([0.001, 0.999], dtype=grey.dtype)).mean():
        grey = 1 - grey  # light on dark: as if dark on light
    ink = 1 - grey / paper(grey).clamp(min=0.05)  # a quotient: half the light halves ink and paper
    ink = ink - ink.median()

    strongest, grain = ink.quantile(0.999), 1.5 * ink.abs().median()
    if strongest < max(LEAST_CONTRAST, 8 * grain):
        return None
    ink = (ink / strongest).clamp(0, 1)
    reach = max(grey.shape) // 50 + 1
    near_stroke = F.max_pool2d((ink > 0.5).double()[None], 2 * reach + 1, stride=1, padding=reach)[0] > 0
    return ink.where(near_stroke & (ink > max(FAINT, 5 * grain / strongest)), 0)


def paper(grey):
    """Return how light the paper of `grey`, (H, W), is at each pixel: what is dark and narrow goes."""
    window = max(grey.shape) // 4 // 2 * 2 + 1  # odd, and wider than any stroke

    def lightest(x):
        for kernel in ((window, 1), (1, window)):
            x = F.max_pool2d(x, kernel, stride=1, padding=[k // 2 for k in kernel])
        return x

    return -lightest(-lightest(grey[None]))[0]  # a closing: maximum, then minimum
