"""A picture of one's own digit, prepared as MNIST's images were.

    image = read_picture("my7.png")  # float32 (784,), ready for model(image)

"Normalized to fit in a 20x20 pixel box while preserving their aspect ratio", then centred in 28 x 28 "by
computing the center of mass of the pixels" (LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist).
prepare() follows them so closely that it leaves 9,997 of MNIST's 10,000 test images as they are.
"""

import os
import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError

from labkit import LabError

MOST_PIXELS = 50_000_000
WORKING_SIZE = 256  # pixels to which pictures are reduced: grain averages out, a digit of a tenth keeps 25
LEAST_SIDE = 8  # pixels of the reduced picture; a narrower strip shows no digit
LEAST_CONTRAST = 0.1  # of the strongest ink to its paper: a hard pencil has 0.15, the texture of a table 0.08
LEAST_SIGNAL = 6  # the strongest ink in units of the grain, which by itself reaches 4
LEAST_LIKENESS = 0.7  # sharpness times slenderness: a faint pencil has 0.9, the shadow of a finger 0.6
PAD = 0.8  # of its box, which a window on a screen fills; a marker's digit fills 0.6
BLOT, PEN, RULED = 3.5, 12, 30  # sizes in widths of a stroke: a blot has 3, thin pens 12, squared paper 50
WIDEST = 3  # times a digit's height; a wider part is a line
LEVELS = (0.2, 0.35, 0.5, 0.65)  # of the strongest ink: a faint second stroke has 0.3, rules up to 0.6
FAINT = 0.1  # of the strongest ink; below it lie the texture of paper and the ringing of JPEG


class PictureError(LabError):
    """A picture that is unusable; the text names the file and says what to do."""


class Digit(NamedTuple):
    """A digit found in a picture."""

    image: torch.Tensor  # float32 (784,) in [0, 1], prepared as MNIST's images were
    grey: torch.Tensor  # the picture, float64 (H, W) from 0, black, to 1
    frame: tuple  # top, left, bottom, right of the digit in `grey`, in pixels, the latter two exclusive


def read_picture(path):
    """Return the digit in the picture at `path` as float32 (784,) in [0, 1]. Raises PictureError."""
    return find_digit(path).image


def find_digit(path):
    """Return the Digit in the picture at `path`, any that Pillow reads, dark on light or light on dark.

    A picture of 28 x 28 pixels that prepare() leaves alone is returned as it is. Raises PictureError.
    """
    grey = load_grey(path)
    for image in (grey, 1 - grey):
        if grey.shape == (28, 28) and image.any() and prepare(image).equal(image.float()):
            return Digit(image.float().flatten(), grey, (0, 0, 28, 28))

    if min(grey.shape) < LEAST_SIDE:
        raise PictureError(f"{path} is too small or too narrow to show a digit: take a larger picture")
    ink, frame, count = clearest_ink(grey)
    if count == 0:
        raise PictureError(f"{path} has no ink in it, or too little: draw large, with a thick pen, in clear "
                           "contrast to the paper")
    if count > 1:
        raise PictureError(f"{path} shows {count} parts of like height, not one digit: crop it to one")
    image = prepare(ink).flatten()
    return Digit(image / image.max(), grey, frame)  # a thin pen's strongest pixel becomes 1, as MNIST's is


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
                frames = getattr(image, "n_frames", 1)
                if frames == 1 or image.format == "MPO":  # a phone's JPEG, with a second picture for depth
                    image.draft(None, (WORKING_SIZE, WORKING_SIZE))  # decodes a large JPEG at a fraction
                    return to_grey(ImageOps.exif_transpose(image))
        reason = f"holds {frames} pictures: save one of them by itself"
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
    """Return a Pillow image as grey float64 (H, W) in [0, 1], both at most WORKING_SIZE."""
    deep = image.mode[0] in "IF"  # 16 bits or floats, which convert("RGBA") would cut off
    if not deep:
        image = image.convert("RGBA")
    elif image.mode != "F":
        image = image.convert("I").convert("F")
    scale = WORKING_SIZE / max(image.size)
    if scale < 1:
        image = image.resize([max(1, round(scale * size)) for size in image.size], Image.Resampling.BOX)

    shape = image.height, image.width, -1
    if deep:
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.float32).double()
        pixels = pixels.nan_to_num(0, 0, 0).clamp(min=0).view(shape)[..., 0]
        return pixels / pixels.max().clamp(min=1e-9)  # white is 1, 4095 or 65535

    pixels = torch.frombuffer(bytearray(image.convert("LA").tobytes()), dtype=torch.uint8).double() / 255
    grey, alpha = pixels.view(shape).unbind(2)
    light_ink = alpha.min() < 1 and (grey * alpha).sum() > alpha.sum() / 2
    return grey * alpha + (0 if light_ink else 1 - alpha)  # what is transparent is paper


def paper(grey):
    """Return how light the paper of `grey`, (H, W), is at each pixel: a closing removes the dark strokes.

    The window is a quarter of the picture wide, more than a stroke. Beyond the border the picture goes on as
    it is there: what runs along it, a table's edge or the dark of a vignette, is paper, too.
    """
    root = int((max(grey.shape) / 4) ** 0.5) // 2 * 2 + 1  # of the window's width

    def maximum(x):
        for step in (1, root):  # of `root` neighbours, then of `root` such maxima
            x = F.max_pool2d(x, (root, 1), 1, dilation=(step, 1))
            x = F.max_pool2d(x, (1, root), 1, dilation=(1, step))
        return x

    return -maximum(-maximum(F.pad(grey[None], (root * root - 1,) * 4, mode="replicate")))[0]


def clearest_ink(grey):
    """Return the digit's ink in `grey`, (H, W) from 0 to 1, its frame, and how many digits there seem to be.

    Dark and light ink are tried at each level: the sharpest, most slender strokes win. 0 digits: no ink.
    """
    dark = 1 - grey / paper(grey).clamp(min=0.05)  # a quotient: in a shadow both are darker
    light = (grey + paper(-grey)) / grey.max().clamp(min=0.05)
    best, found = 0, (None, None, 0)
    for ink, sign, trust in ((dark, 1, 1), (light, -1, 0.3)):  # paper between strokes looks like light ink
        ink = ink - ink.quantile(0.25)  # grain lifts the paper; three quarters of a picture may be ink
        grain = 1.05 * torch.cat([ink.diff(dim=0).flatten(), ink.diff(dim=1).flatten()]).abs().median()
        strongest = ink.flatten().topk(16).values[-1]  # what has fewer pixels is a speck
        if strongest < max(LEAST_CONTRAST, LEAST_SIGNAL * grain):
            continue
        strength = (ink / strongest).clamp(0, 1)
        for level in LEVELS:
            digit, count, free = choose_parts(strength, strength > max(level, 3 * grain / strongest))
            frame = (*digit.nonzero().amin(0).tolist(), *(digit.nonzero().amax(0) + 1).tolist())
            score = trust * (1 - level) * likeness(sign * grey, strength, digit, frame, free)
            if score > best:
                near = grown(digit, 2) & (strength > FAINT)  # the strokes with their soft edges
                best, found = score, (strength.where(near, 0), frame, count)
    return found


def likeness(grey, strength, digit, frame, free):
    """Return how sharp and slender the strokes of `digit`, a mask (H, W), are; 0 if they are no digit's.

    `grey` is negative for light ink. `free` says that the digit is away from the picture's border.
    """
    top, left, bottom, right = frame
    height, width, area = bottom - top, right - left, digit.sum().item()
    size = max(height, width)
    outline = digit & grown(~digit, 1)
    slender = size * outline.sum().item() / (2 * area)
    if width > WIDEST * height or slender < BLOT or area > PAD * height * width and 2 * width > height:
        return 0
    if not free and slender > RULED:
        return 0

    reach = size // 2
    around = slice(max(0, top - reach), bottom + reach), slice(max(0, left - reach), right + reach)
    ink, page = grey[digit].median(), grey[around][~grown(digit, 2)[around]].median()
    contrast = (page - ink) / torch.maximum(ink.abs(), page.abs()).clamp(min=0.05)
    sharpness = span(strength)[outline].mean() / strength[digit].mean()
    found = (contrast * sharpness).nan_to_num(0).item() * min(slender, PEN) * (1 if free else 0.5)
    return found if found >= LEAST_LIKENESS else 0


def choose_parts(strength, mask):
    """Return the digit in `mask`, (H, W), how many parts are like it, and whether it is away from the border.

    The digit is the part with most and sharpest edges, of `strength`, and what belongs to it, as a 5's bar.
    """
    names, boxes = parts(mask)
    first, last = boxes[:, :2], boxes[:, 2:]
    size = last - first
    free = ((first > 0) & (last < torch.tensor(mask.shape))).all(1)
    weight = names.flatten().bincount((span(strength).square() * mask).flatten(), len(boxes))
    weight[size[:, 1] > WIDEST * size[:, 0]] *= 0.1
    main = weight.where(free, weight / 4).argmax()  # a pen or a table reaches the border
    inside = ((first > first[main]) & (last < last[main])).all(1) & (weight > 0.2 * weight[main])
    if inside.any():  # a box was drawn round the digit
        main = weight.where(inside, 0).argmax()

    weight = weight / weight[main]
    down, across = torch.maximum(first - last[main], first[main] - last).T / size[main].max()  # gaps
    near = (down < 0.15) & (across < 0.15) & (weight > 0.01)
    stacked = (down < 0.35) & (across < 0) & (weight > 0.12)  # a 5's bar, a broken 6; not a blot
    apart = (across > 0.1) | (down > 0.35)
    box = ((first < first[main]) & (last > last[main])).all(1)
    alike = apart & free & (size[:, 0] > 0.5 * size[main, 0]) & (weight > 0.1)
    belongs = (near | stacked) & (free | ~free[main]) & ~alike & ~box
    return belongs[names] & mask, 1 + alike.sum().item(), free[main].item()


def parts(mask):
    """Return the connected parts of `mask`: each pixel's part, (H, W), 0 for none, and their boxes, (n, 4).

    A box is top, left, bottom, right. Most numbers name no part; their boxes are 0.
    """
    names = torch.arange(1, mask.numel() + 1).view(mask.shape).where(mask, 0)
    while True:  # a pixel takes the largest name around it, and so do all pixels of its name
        seen = F.max_pool2d(names[None].double(), 3, 1, 1)[0].long().where(mask, 0)
        renamed = torch.arange(mask.numel() + 1).scatter_reduce(0, names.flatten(), seen.flatten(), "amax")
        renamed[0] = 0
        while not renamed.equal(renamed[renamed]):
            renamed = renamed[renamed]
        if names.equal(renamed[seen]):
            break
        names = renamed[seen]

    places = mask.nonzero()
    numbers = names[mask][:, None].expand(-1, 4)
    ends = torch.cat([places, -1 - places], 1)
    boxes = ends.new_zeros(mask.numel() + 1, 4).scatter_reduce(0, numbers, ends, "amin", include_self=False)
    return names, boxes * torch.tensor([1, 1, -1, -1])


def grown(mask, reach):
    """Return `mask`, (H, W), with all pixels within `reach` of it."""
    return F.max_pool2d(mask[None].double(), 2 * reach + 1, 1, reach)[0] > 0


def span(strength):
    """Return by how much `strength`, (H, W), differs within the 3 x 3 pixels around each."""
    strength = strength[None]
    return (F.max_pool2d(strength, 3, 1, 1) + F.max_pool2d(-strength, 3, 1, 1))[0]
