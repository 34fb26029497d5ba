"""The page to play with a model: page.html and the model in one file, which makes no requests."""

import base64
import hashlib
import json
import re
from pathlib import Path

import torch

from labkit import LabError
from labkit.metrics import mse_per_image

MAX_UNITS = 64
PER_DIGIT, WORST = 30, 20  # test images in the page


class PageError(LabError):
    """A model that the page cannot show; the text says why."""


def require_room(model):
    """Raise PageError if `model` has more than MAX_UNITS units."""
    units = model.fc2.out_features
    if units > MAX_UNITS:
        raise PageError(f"{units} units: the page has room for {MAX_UNITS}")


@torch.inference_mode()
def explore_page(model, images, labels, importance, dataset, weights_name):
    """Return explore.html as text, with `model`, an autoencoderMLP4Layer of 1 to 64 units, in it.

    `images` are the whole test set, float32 (N, 784) in [0, 1], `labels` int64 (N,) from 0 to 9, `importance`
    (N_bottleneck,) fractions that sum to 1, or all 0; `dataset` and `weights_name` are shown as they are.
    Codes and outputs must be finite.
    """
    codes = model.encode(images)
    errors = mse_per_image(model.decode(codes), images)
    chosen, worst = choose(labels, errors)
    centre, axes, variance = map_axes(codes)
    data = {
        "dataset": dataset,
        "weights": weights_name,
        "testImages": len(images),
        "mse": errors.mean().item(),
        "layers": [{"weight": pack_floats(layer.weight), "bias": pack_floats(layer.bias)}
                   for layer in (model.fc1, model.fc2, model.fc3, model.fc4)],
        "importance": importance.tolist(),
        "low": codes.amin(0).tolist(),
        "high": codes.amax(0).tolist(),
        "index": chosen,
        "labels": labels[chosen].tolist(),
        "worst": [chosen.index(image) for image in worst],
        "pixels": pack_bytes((images[chosen] * 255).round().to(torch.uint8)),
        "codes": pack_floats(codes[chosen]),
        "map": {"centre": centre.tolist(), "axes": axes.tolist(), "variance": variance},
    }
    return fill(Path(__file__).with_name("page.html").read_text("utf-8"), data)


def choose(labels, errors):
    """Return the indices of the test images to embed, ascending, and of the worst of them, worst first."""
    worst = errors.argsort(descending=True)[:WORST].tolist()
    first = [(labels == digit).nonzero()[:PER_DIGIT, 0].tolist() for digit in range(10)]
    return sorted(set(worst).union(*first)), worst


def map_axes(codes):
    """Return the centre of `codes`, (N, units), two axes, (2, units), and their fraction of the variance.

    The axes are the first two principal components; one or two units are axes themselves.
    """
    units = codes.shape[1]
    if units <= 2:
        return torch.zeros(units), torch.eye(2, units), 1.0
    centre = codes.double().mean(0)
    variances, directions = torch.linalg.eigh((codes - centre).T.cov())  # ascending
    axes = directions[:, [-1, -2]].T
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    axes = axes * largest.sign()  # otherwise the sign would be left to chance
    return centre, axes, (variances[-2:].sum() / variances.sum().clamp(min=1e-12)).item()


def pack_floats(values):
    """Return floats in base64, of each float32 the upper three bytes, rounded: 15 bits of its fraction.

    Float16 has 10; with it the page of 8 units would have 2 MB instead of 2.9 MB.
    """
    rounded = values.float().cpu().contiguous().view(torch.int32) + 128
    return pack_bytes(torch.stack([rounded >> 8, rounded >> 16, rounded >> 24], -1).to(torch.uint8))


def pack_bytes(values):
    """Return a uint8 tensor in base64."""
    return base64.b64encode(values.cpu().numpy().tobytes()).decode()


def fill(template, data):
    """Return the page with `data` in it. Nothing but its own script and style may run, by their hashes."""
    for tag in ("script", "style"):
        text = re.search(f"<{tag}>(.*?)</{tag}>", template, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        template = template.replace(f"{tag}-hash", f"'sha256-{digest}'", 1)
    text = json.dumps(data, allow_nan=False)
    for character in "<>&":  # so that no name can end the element
        text = text.replace(character, f"\\u{ord(character):04x}")
    return template.replace("__DATA__", text, 1)
