"""Every figure: the loss curve, rows of images, what each unit does. Each is drawn into an empty Figure."""

import io
import math
import os
import sys
import warnings

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

MAX_HEIGHT = 10.2  # inches, of a screen
CAPTION_HEIGHT = 0.25


def to_bytes(figure, format="png"):
    """Return a Figure as the bytes of a file in `format`, one of matplotlib's. Raises ValueError."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a file's name may be in any script
        figure.savefig(buffer, format=format, dpi=150)
    return buffer.getvalue()


def label(name, length):
    """Return the name of a file as figures show it: one line of at most `length` characters."""
    text = " ".join(name.encode("utf-8", "replace").decode().split())
    if len(text) <= length:
        return text
    half = (length - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def can_write(format):
    """Return whether matplotlib can write `format`, "png" for example, on this machine."""
    try:
        return bool(to_bytes(Figure((1, 1)), format))
    except (ValueError, RuntimeError, OSError):
        return False


def loss_curve(figure, history, dataset, noise):
    """Draw the loss of every epoch in `history` on `dataset`; `noise` times N(0, 1) was added in training."""
    figure.set_size_inches(7, 4)
    figure.subplots_adjust(left=0.11, right=0.97, bottom=0.12, top=0.92)
    last = history[-1]
    title = f"Training on {dataset}: test loss {last['test_loss']:.4f} after epoch {last['epoch']}"
    axes = figure.add_subplot(title=title, xlabel="epoch", ylabel="loss (MSE)")
    epochs = [epoch["epoch"] for epoch in history]
    marker = "." if len(history) < 10 else ""  # without one, a line of one point is invisible
    training = "training images" + (f" with {noise:g} × noise" if noise else "") + ", mean over the epoch"
    axes.plot(epochs, [epoch["loss"] for epoch in history], marker=marker, label=training)
    axes.plot(epochs, [epoch["test_loss"] for epoch in history], marker=marker, label="test images")
    axes.set_xlim(0.5, last["epoch"] + 0.5)
    highest = max(max(epoch["loss"], epoch["test_loss"]) for epoch in history)
    axes.set_ylim(0, 1.3 * highest)  # room for the legend above the curves
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def image_rows(figure, title, rows, captions, columns):
    """Draw rows of grey images, (count, images per row, 784) in [0, 1], with a caption above each.

    They stand in `columns`: fewer if there are fewer rows, more if the figure would be taller than a screen.
    Return the axes of each row.
    """
    count, length, _ = rows.shape
    columns = min(columns, count)
    width = 10 if count <= 30 else 16  # inches, as all sizes below but those of fonts
    title_height = 0.35 + 0.2 * title.count("\n")
    while columns < count and rows_height(count, length, columns, width) > MAX_HEIGHT - title_height:
        columns += 1
    height = rows_height(count, length, columns, width) + title_height
    image_height = width / columns / length

    figure.set_size_inches(width, height)
    title_size = min(12, 130 * width / max(map(len, title.split("\n"))))  # fits into the figure
    figure.suptitle(title, y=1 - 0.1 / height, va="top", fontsize=title_size, parse_math=False)
    figure.subplots_adjust(
        left=0.01, right=0.99, bottom=0.05 / height, top=1 - (title_height + CAPTION_HEIGHT) / height,
        wspace=0.06, hspace=CAPTION_HEIGHT / image_height)
    fontsize = min(9, 110 * width / columns / max(map(len, captions)))  # fits into a column

    pictures = F.pad(rows.view(count, length, 28, 28), (1, 1), value=1)  # a white gap between two images
    pictures = pictures.transpose(1, 2).flatten(2).numpy(force=True)
    for number, (picture, caption) in enumerate(zip(pictures, captions), 1):
        axes = figure.add_subplot(math.ceil(count / columns), columns, number, xticks=[], yticks=[])
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
        axes.set_title(caption, fontsize=fontsize, pad=3, parse_math=False)
        axes.axis("off")
    return figure.axes


def rows_height(count, length, columns, width):
    """Return the height of `count` rows of `length` images with their captions in a figure of `width`."""
    return math.ceil(count / columns) * (width / columns / length + CAPTION_HEIGHT)


def unit_caption(unit, low, high, activity, importance):
    """Return the caption of the row of a bottleneck unit."""
    if activity == 0:
        return f"unit {unit}: DEAD, active on no test image"
    return f"unit {unit}: {low:.1f} to {high:.1f}, active on {activity:.1%}, carries {importance:.1%}"


def unit_rows(figure, title, examples, rows, captions, positions):
    """Draw an image and its reconstruction, `examples` (2, 784), and below them what each unit does.

    `rows` (units, images, 784) are outputs over the range of each unit; `positions` (units,), from 0 to 1,
    are where in its range the image itself is.
    """
    _, length, pixels = rows.shape
    blank = torch.ones(1, length - 2, pixels, device=rows.device)
    first = torch.cat([examples[None], blank], 1)
    columns = 1 if len(rows) <= 8 else 2 if len(rows) <= 16 else 3
    captions = ["input | output", *captions]
    first_axes, *unit_axes = image_rows(figure, title, torch.cat([first, rows]), captions, columns)

    for axes, position in zip(unit_axes, positions.tolist()):
        axes.autoscale(False)
        x = 14.5 + 30 * (length - 1) * min(max(position, 0), 1)  # an image and its gap are 30 pixels wide
        axes.plot(x, 28, "^", color="tab:red", markersize=5, clip_on=False)


def has_display():
    """Return whether a window can open; only Linux can be without a display."""
    return sys.platform != "linux" or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())


def interactive_pyplot():
    """Return matplotlib.pyplot if it opens windows here, else None."""
    if not has_display():
        return None
    import matplotlib.pyplot as plt
    from matplotlib.backends.registry import BackendFilter, backend_registry

    windowless = plt.get_backend().lower() in backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE)
    return None if windowless else plt
