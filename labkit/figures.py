"""How a figure looks: the loss curve, rows of images, what each unit does. Each is drawn into a Figure."""

import io
import math
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator, ScalarFormatter

from labkit import UsageError

MAX_HEIGHT = 10.2  # inches, of a screen
CAPTION_HEIGHT = 0.25
BOTTOM = 0.3  # for the small print
COLORS = ("#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499",
          "#777777")  # Paul Tol's muted scheme, which colour-blind readers can tell apart


def require_format(path):
    """Raise UsageError unless matplotlib can write a file of the suffix of `path`, or of none: PNG."""
    if (path.suffix[1:].lower() or "png") not in Figure().canvas.get_supported_filetypes():
        raise UsageError(f"{path}: matplotlib cannot write this format: try .png, .pdf or .svg")


def to_bytes(figure, suffix=".png"):
    """Return a Figure as the bytes of a file with `suffix`."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a file's name may be in any script
        figure.savefig(buffer, format=suffix[1:] or "png", dpi=150)
    return buffer.getvalue()


def label(name, length):
    """Return the name of a file as figures show it: one line of at most `length` characters."""
    text = " ".join(name.encode("utf-8", "replace").decode().split())
    if len(text) <= length:
        return text
    half = (length - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def small_print(record):
    """Return how weights were trained, in a line; `record` is what they say of it, or None."""
    if record is None:
        return "these weights do not say how they were trained"
    settings = record["settings"]
    parts = [f"{key.replace('_', ' ')} {value:g}" if isinstance(value, (int, float)) else f"{key} {value}"
             for key, value in settings.items() if key != "epochs"]
    return ", ".join([f"trained on {record['dataset']}, {record['epochs']} epochs", *parts])


def sign(figure, text):
    """Write the small print `text` at the bottom of a figure."""
    size = min(7, 125 * figure.get_figwidth() / len(text))  # fits into the figure
    figure.text(0.5, 0.06 / figure.get_figheight(), text, ha="center", va="bottom", fontsize=size,
                color="0.4", parse_math=False)


def loss_curve(figure, history, record):
    """Draw the loss of every epoch in `history` of a run; `record` says how it was trained."""
    figure.set_size_inches(7, 4)
    figure.subplots_adjust(left=0.11, right=0.97, bottom=0.17, top=0.92)
    last = history[-1]
    title = f"Training on {record['dataset']}: test loss {last['test_loss']:.4f} after epoch {len(history)}"
    axes = figure.add_subplot(title=title, xlabel="epoch", ylabel="loss (MSE)")
    epochs = range(1, len(history) + 1)
    marker = "." if len(history) < 10 else ""  # without one, a line of one point is invisible
    noise = record["settings"]["noise"]
    training = "training images" + (f" with {noise:g} × noise" if noise else "") + ", mean over the epoch"
    axes.plot(epochs, [epoch["loss"] for epoch in history], marker=marker, label=training)
    axes.plot(epochs, [epoch["test_loss"] for epoch in history], marker=marker, label="test images")
    axes.set_xlim(0.5, len(history) + 0.5)
    highest = max(max(epoch["loss"], epoch["test_loss"]) for epoch in history)
    axes.set_ylim(0, 1.3 * highest)  # room for the legend above the curves
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    sign(figure, small_print(record))


def image_rows(figure, title, tiles, captions, columns=5, width=None, bottom=BOTTOM):
    """Draw rows of grey images with a caption above each; `tiles` are the images (rows, 784) of each place.

    The rows stand in `columns`: fewer if there are fewer rows, more if the figure would be taller than a
    screen. Return the axes of each row, in which an image and its gap are 30 wide. Values are in [0, 1].
    """
    rows = torch.stack([*tiles], 1)
    count, length, _ = rows.shape
    columns = min(columns, count)
    width = width or (10 if count <= 30 else 16)  # inches, as all sizes below but those of fonts
    title_height = 0.4 + 0.2 * title.count("\n")
    while columns < count and rows_height(count, length, columns, width) > MAX_HEIGHT - title_height - bottom:
        columns += 1
    height = rows_height(count, length, columns, width) + title_height + bottom

    figure.set_size_inches(width, height)
    title_size = min(11, 130 * width / max(map(len, title.split("\n"))))  # fits into the figure
    figure.suptitle(title, y=1 - 0.1 / height, va="top", fontsize=title_size, parse_math=False)
    figure.subplots_adjust(
        left=0.01, right=0.99, bottom=bottom / height, top=1 - (title_height + CAPTION_HEIGHT) / height,
        wspace=0.06, hspace=CAPTION_HEIGHT * columns * length / width)
    fontsize = min(9, 110 * width / columns / max(map(len, captions)))  # fits into a column

    pictures = F.pad(rows.view(count, length, 28, 28), (1, 1), value=1)  # a white gap between two images
    pictures = pictures.transpose(1, 2).flatten(2).numpy(force=True)
    for number, (picture, caption) in enumerate(zip(pictures, captions), 1):
        axes = figure.add_subplot(math.ceil(count / columns), columns, number, xticks=[], yticks=[])
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
        axes.set_title(caption, fontsize=fontsize, pad=3, parse_math=False)
        axes.axis("off")
    return figure.axes


def photo_rows(figure, title, photos, tiles, captions):
    """Draw image_rows(), and before each image that was read from a picture that picture.

    `photos` has the Digit of such an image, else None. A frame shows what was taken for the digit.
    """
    counts = torch.tensor([2 if photo else 1 for photo in photos])
    tiles = [tile.repeat_interleave(counts.to(tile.device), 0) for tile in tiles]
    captions = [text for photo, caption in zip(photos, captions)
                for text in (["the picture, its digit framed"] if photo else []) + [caption]]
    axes = image_rows(figure, title, tiles, captions)
    for photo, place in zip(photos, (counts.cumsum(0) - counts).tolist()):
        if photo:
            axes[place].images[0].remove()
            picture = axes[place].inset_axes((0, 0, 1, 1), xticks=[], yticks=[])
            picture.imshow(photo.grey.numpy(), cmap="gray", vmin=0, vmax=1)
            picture.spines[:].set_color("0.8")  # the edge of white paper
            top, left, bottom, right = photo.frame
            frame = Rectangle((left, top), right - left, bottom - top, fill=False, color="tab:red")
            picture.add_patch(frame)


def image_column(figure, title, tiles, captions):
    """Draw image_rows() in one column, as wide as a screen's height allows; return the axes of each row."""
    width = min(10, (9.2 / len(captions) - CAPTION_HEIGHT) * len(tiles))
    return image_rows(figure, title, tiles, captions, columns=1, width=width)


def rows_height(count, length, columns, width):
    """Return the height of `count` rows of `length` images with their captions in a figure of `width`."""
    return math.ceil(count / columns) * (width / columns / length + CAPTION_HEIGHT)


def interpolation_rows(figure, title, tiles, captions):
    """Draw rows of start | decoded images | end, and below them where on the line each image lies."""
    *_, last = image_rows(figure, title, tiles, captions, columns=1, bottom=BOTTOM + 0.2)
    steps = len(tiles) - 2
    every = math.ceil(steps / 12)  # more labels would run into each other
    between = [f"{step}/{steps - 1}" if step % every == 0 else "" for step in range(1, steps - 1)]
    for number, text in enumerate(["start", "0", *between, "1", "end"]):
        last.text(14.5 + 30 * number, 31, text, ha="center", va="top", fontsize=8)


def unit_rows(figure, title, examples, rows, captions, positions):
    """Draw an image and its reconstruction, `examples` (2, 784), and below them what each unit does.

    `rows` (units, images, 784) are outputs over the range of each unit; `positions` (units,), from 0 to 1,
    are where in its range the image itself is.
    """
    count, length, pixels = rows.shape
    first = torch.cat([examples, torch.ones(length - 2, pixels, device=rows.device)])
    tiles, captions = torch.cat([first[None], rows]).unbind(1), ["input | output", *captions]
    if count <= 10:
        first_axes, *unit_axes = image_column(figure, title, tiles, captions)
    else:
        first_axes, *unit_axes = image_rows(figure, title, tiles, captions, columns=2 if count <= 16 else 3)

    marker = dict(marker="^", color="tab:red", markersize=5, linestyle="none")
    legend = ("each row moves one unit over the range of 98% of the test images\n"
              "importance: how much the error rises with the unit held at its mean; the sum is 100%")
    first_axes.title.set_x(1 / length)  # above the two
    first_axes.legend(handles=[Line2D([], [], label="this image's value", **marker)], loc="center right",
                      title=legend, fontsize=7, title_fontsize=7, frameon=False, handletextpad=0.1)
    for axes, position in zip(unit_axes, positions.tolist()):
        axes.autoscale(False)
        x = 14.5 + 30 * (length - 1) * min(max(position, 0), 1)
        axes.plot(x, 28, clip_on=False, **marker)


def code_map(figure, title, names, coordinates, labels, low, high, decoded, pairs):
    """Draw codes in a plane | the images decoded over it, and below them pairs of images.

    `names` are the axes', `coordinates` (N, 2) the codes', `labels` (N,) from 0 to 9. The corners of what is
    drawn are `low` and `high`, (2,), and `decoded`, (rows, columns, 784), the images over it from the top.
    `pairs` are (n, 2, 784).
    """
    (left, bottom), (right, top) = low.tolist(), high.tolist()
    figure.set_size_inches(11, 8.2)
    figure.suptitle(title, y=0.985, va="top", fontsize=11, parse_math=False)
    dots = figure.add_axes((0.06, 0.33, 0.43, 0.55), title="codes of the test images", xlabel=names[0])
    dots.set(xlim=(left, right), ylim=(bottom, top), ylabel=names[1])
    coordinates, labels = coordinates.numpy(force=True), labels.numpy(force=True)
    for digit, color in enumerate(COLORS):
        of_digit = coordinates[labels == digit]
        dots.plot(*of_digit.T, ".", color=color, markersize=2.5, alpha=0.6, rasterized=True)
        if len(of_digit):
            outline = [withStroke(linewidth=4, foreground=color)]
            dots.text(*np.median(of_digit, 0), str(digit), fontsize=15, weight="bold", ha="center",
                      va="center", color="white", path_effects=outline)

    plane = figure.add_axes((0.56, 0.33, 0.42, 0.55), title="images decoded from the same plane",
                            xlabel=names[0], ylabel=names[1])
    plane.imshow(tiled(decoded), cmap="gray", vmin=0, vmax=1, aspect="auto",
                 extent=(left, right, bottom, top))
    strip = figure.add_axes((0.06, 0.035, 0.92, 0.18))
    framed = F.pad(pairs.transpose(0, 1).unflatten(2, (28, 28)), (1, 1, 1, 1), value=1).flatten(2)
    strip.imshow(tiled(framed, 30), cmap="gray", vmin=0, vmax=1)
    strip.set_title("decoded from random codes, normal with the codes' mean and covariance | below: the "
                    "nearest test images", fontsize=9)
    strip.axis("off")


def tiled(images, size=28):
    """Return images (rows, columns, size * size) as one picture, a numpy array."""
    rows, columns, _ = images.shape
    picture = images.view(rows, columns, size, size).transpose(1, 2)
    return picture.reshape(rows * size, columns * size).numpy(force=True)


def size_curve(figure, rows, pca_mse):
    """Draw the MSE of each network, in `rows`, over its units, and PCA's.

    `pca_mse` has, for the name of each data set, the list of PCA's with 0, 1, ... components.
    """
    figure.subplots_adjust(left=0.15, right=0.97, bottom=0.17, top=0.92)
    axes = figure.add_subplot(title="Test MSE and size of the code", xlabel="units, or components of PCA",
                              ylabel="MSE over the whole test set", xscale="log", yscale="log")
    largest = max(row["units"] for row in rows)
    for color, (name, linear) in zip(COLORS, pca_mse.items()):
        sizes = range(1, min(2 * largest, len(linear) - 2) + 1)  # the error of all 784 is 0
        axes.plot(sizes, [linear[size] for size in sizes], color=color, alpha=0.6, label=f"PCA, {name}")
        own = [row for row in rows if row["dataset"] == name]
        axes.plot([row["units"] for row in own], [row["mse"] for row in own], "o", color=color,
                  label=f"networks, {name}")
    axes.set_xlim(0.9, 1.1 * largest)
    axes.xaxis.set_major_locator(FixedLocator(sorted({row["units"] for row in rows})))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
