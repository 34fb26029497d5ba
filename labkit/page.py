"""The page to play with a model: page.html and the model in one file, which makes no requests."""

import base64
import copy
import hashlib
import json
import re
import zlib
from pathlib import Path

import torch

from labkit import lesson, metrics
from labkit.metrics import mse_per_image

MAX_UNITS = 64
PER_CLASS, WORST = 30, 20  # test images in the page
MAX_COMPONENTS = 40  # of PCA in the page


@torch.inference_mode()
def explore_page(model, images, labels, dataset, weights_name, record):
    """Return explore.html as text, with `model`, an autoencoderMLP4Layer of 1 to MAX_UNITS units, in it.

    `images` are the whole test set, float32 (N, 784) in [0, 1], `labels` int64 (N,) from 0 to 9; `dataset`
    and `weights_name` are shown as they are. `record` says how the weights were trained, {"dataset",
    "epochs", "settings"}, or is None. Codes and outputs must be finite. All numbers but "mse" and
    "importance" are those of the rounded weights.
    """
    rounded, layers = round_weights(model)
    codes = rounded.encode(images)
    errors = mse_per_image(rounded.decode(codes), images)
    chosen, worst = choose(labels, errors)
    centre, axes, variance = metrics.plane(codes.double())
    mean, components, variances = metrics.pca(images.double())
    data = {
        "dataset": dataset,
        "weights": weights_name,
        "record": record,
        "testImages": len(images),
        "mse": mse_per_image(model(images), images).mean().item(),
        "roundedMse": errors.mean().item(),
        "layers": layers,
        "importance": metrics.importance(model, model.encode(images), images).tolist(),
        "low": codes.amin(0).tolist(),
        "high": codes.amax(0).tolist(),
        "index": chosen,
        "labels": labels[chosen].tolist(),
        "worst": [chosen.index(image) for image in worst],
        "pixels": pack((images[chosen] * 255).round().to(torch.uint8)),
        "codes": pack(codes[chosen]),
        "map": {"centre": centre.tolist(), "axes": axes.tolist(), "variance": variance},
        "pca": {"count": MAX_COMPONENTS, **pack_layer(*round_rows(components[:MAX_COMPONENTS]), mean)},
        "pcaErrors": [round(error, 6) for error in metrics.pca_mse(variances)],
    }
    words = lesson.words(dataset)
    data |= {"thing": words.a, "names": words.names, "texts": lesson.texts(words, data),
             "experiments": lesson.experiments(words, data, codes[chosen])}
    return fill(Path(__file__).with_name("page.html").read_text("utf-8"), data)


@torch.no_grad()
def round_weights(model):
    """Return a copy of `model` with its weights rounded to 8 bits, and its layers as the page holds them.

    It makes the page a third as large as float32 would. On MNIST it adds 0.00004 to the test MSE, 0.0171.
    """
    rounded, layers = copy.deepcopy(model), []
    for layer in (rounded.fc1, rounded.fc2, rounded.fc3, rounded.fc4):
        integers, steps = round_rows(layer.weight)
        layer.weight.copy_(integers * steps[:, None])
        layers.append(pack_layer(integers, steps, layer.bias))
    return rounded, layers


def round_rows(weight):
    """Return `weight`, float (rows, columns), as int8 in [-127, 127], and the step of each row, (rows,).

    A row is its integers times its step.
    """
    steps = weight.abs().amax(1).clamp(min=1e-30) / 127
    return (weight / steps[:, None]).round().to(torch.int8), steps


def choose(labels, errors):
    """Return the indices of the test images to embed, ascending, and of the worst of them, worst first."""
    worst = errors.argsort(descending=True)[:WORST].tolist()
    first = [(labels == label).nonzero()[:PER_CLASS, 0].tolist() for label in range(10)]
    return sorted(set(worst).union(*first)), worst


def pack_layer(integers, steps, bias):
    """Return a layer as the page holds it: its weight is `integers`, int8 (rows, columns), times `steps`."""
    return {"integers": pack(integers), "steps": pack(steps.float()), "bias": pack(bias.float())}


def pack(values):
    """Return the bytes of a tensor, compressed, in base64."""
    return base64.b64encode(zlib.compress(values.cpu().contiguous().numpy().tobytes(), 9)).decode()


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
