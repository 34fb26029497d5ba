"""The lab's numbers by numpy alone: what the commands should print, store and draw, by textbook formulas.

What PyTorch draws at random for a seed is taken as data. Images here are (N, 784) in [0, 1], weights a dict.
"""

import contextlib
import functools
import io

import numpy as np
import pytest
import torch

from labkit import data, figures, metrics


def digits(count, seed):
    """Return shapes with noise in the form of MNIST's digits: uint8 (count, 28, 28) and (count,)."""
    rng = np.random.default_rng(seed)
    shapes = np.kron(np.random.default_rng(9).random((10, 7, 7)) > 0.6, np.ones((4, 4)))
    labels = rng.integers(10, size=count)
    images = shapes[labels] * rng.uniform(50, 150, (count, 1, 1)) + rng.uniform(0, 90, (count, 28, 28))
    images = [np.roll(image, rng.integers(-2, 3, 2), (0, 1)) for image in images]
    return np.array(images).astype(np.uint8), labels.astype(np.uint8)


SETS = {"train": digits(330, 1), "t10k": digits(240, 2)}
TRAIN_IMAGES, IMAGES = (SETS[name][0].reshape(-1, 784) / 255 for name in SETS)
LABELS = SETS["t10k"][1]


def write_sets(folder, sets=SETS):
    """Write images and labels as MNIST's four files into the folder of a data set."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, arrays in sets.items():
        for kind, array in zip(("images-idx3", "labels-idx1"), arrays):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (folder / f"{name}-{kind}-ubyte").write_bytes(header + array.tobytes())


def run(folder, main, *args):
    """Call a command's main() in a folder, on the sets in it.

    Return the lines that it printed, runs of spaces as one, and its Figures. They are not drawn into files,
    which takes long: what is in them can be read from the Figures.
    """
    out, drawn = io.StringIO(), []
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(folder)
        patch.setattr(figures, "to_bytes", lambda figure, suffix=".png": drawn.append(figure) or b"")
        patch.setattr(metrics, "PART", 100)  # so that there are several parts, the last one shorter
        patch.setattr(metrics, "IMPORTANCE_DECODINGS", 900)  # the first 150 images for 6 units
        with contextlib.suppress(SystemExit):  # by which a comparison ends
            main([*map(str, args), "--data-dir", ".", "--device", "cpu"])
    return [" ".join(line.split()) for line in out.getvalue().splitlines()], drawn


def read_weights(path, dtype=np.float64):
    weights = torch.load(path, weights_only=True)
    return {name: tensor.numpy().astype(dtype) for name, tensor in weights.items()}


def layer(weights, number, inputs):
    """Return the outputs of a layer: ReLU after the first three, a sigmoid after the last."""
    sums = inputs @ weights[f"fc{number}.weight"].T + weights[f"fc{number}.bias"]
    return 1 / (1 + np.exp(-sums.clip(-80, 80))) if number == 4 else np.maximum(sums, 0)


def encode(weights, images):
    return layer(weights, 2, layer(weights, 1, images))


def decode(weights, codes):
    return layer(weights, 4, layer(weights, 3, codes))


def errors(outputs, images):
    return ((outputs - images) ** 2).mean(1)


def psnr(mse):
    return 10 * np.log10(1 / max(mse, 1e-12))


def noise_for(images, seed):
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).numpy()


def initial_weights(units, seed, init="mean"):
    """Return PyTorch's weights for a seed, changed so that the network paints the mean image."""
    torch.manual_seed(seed)
    sizes = {"fc1": (784, 392), "fc2": (392, units), "fc3": (units, 392), "fc4": (392, 784)}
    layers = torch.nn.ModuleDict({name: torch.nn.Linear(*size) for name, size in sizes.items()})
    weights = {name: tensor.numpy().astype(np.float64) for name, tensor in layers.state_dict().items()}
    if init == "mean":
        mean, shrink = TRAIN_IMAGES.mean(0).clip(1e-3, 1 - 1e-3), max(1, units / 64)
        weights["fc4.bias"] = np.log(mean / (1 - mean))
        weights["fc4.weight"] *= 0.3
        weights["fc2.bias"][:] = 30 / shrink
        weights["fc2.weight"] *= 10
        weights["fc3.weight"] *= shrink
        weights["fc3.bias"] = -30 / shrink * weights["fc3.weight"].sum(1)
    return weights


def gradients(weights, inputs, targets):
    """Return the mean squared error and its gradients, by the chain rule from the last layer to the first."""
    values, found = [inputs], {}
    for number in (1, 2, 3, 4):
        values.append(layer(weights, number, values[-1]))
    outputs = values[-1]
    error = 2 * (outputs - targets) / targets.size * outputs * (1 - outputs)
    for number in (4, 3, 2, 1):
        found[f"fc{number}.weight"], found[f"fc{number}.bias"] = error.T @ values[number - 1], error.sum(0)
        error = error @ weights[f"fc{number}.weight"] * (values[number - 1] > 0)
    return ((outputs - targets) ** 2).mean(), found


def train(weights, epochs, batch_size, lr, noise, seed):
    """Train `weights` with Adam (Kingma and Ba, arXiv 1412.6980); yield each epoch's mean loss per image."""
    m, v = ({name: np.zeros_like(value) for name, value in weights.items()} for _ in range(2))
    step = 0
    for epoch in range(1, epochs + 1):
        total = 0
        torch.manual_seed(data.noise_seed(seed, epoch, 0))
        for batch in data.batches(torch.tensor(SETS["train"][0]).flatten(1), batch_size, seed, epoch):
            targets = batch.numpy().astype(np.float64)
            inputs = targets + noise * torch.randn(batch.shape).numpy() if noise else targets
            loss, gradient = gradients(weights, inputs, targets)
            total += loss * len(batch)
            step += 1
            for name, g in gradient.items():
                m[name] = 0.9 * m[name] + 0.1 * g
                v[name] = 0.999 * v[name] + 0.001 * g**2
                update = m[name] / (1 - 0.9**step) / (np.sqrt(v[name] / (1 - 0.999**step)) + 1e-8)
                weights[name] = weights[name] - lr * update
        yield total / len(TRAIN_IMAGES)


def same_digit(vectors, labels):
    """Return of how many vectors the nearest other one has the same label, as a fraction."""
    vectors = vectors - vectors.mean(0)  # does not change distances, but their rounding
    right = 0
    for rows in np.array_split(np.arange(len(vectors)), len(vectors) // 1000 + 1):
        distances = (vectors**2).sum(1) - 2 * vectors[rows] @ vectors.T
        distances[np.arange(len(rows)), rows] = np.inf
        right += (labels[distances.argmin(1)] == labels[rows]).sum()
    return right / len(vectors)


@functools.cache
def of_images(test_set):
    """Return the mean, principal components and variances of the images that the function `test_set` returns,
    and of how many the nearest other one is of the same digit."""
    images, labels = test_set()
    centred = images - images.mean(0)
    _, squares, components = np.linalg.svd(centred.T @ centred)
    return images.mean(0), components, squares / len(images), same_digit(images, labels)


def importance(weights, codes, images, count):
    """Return each unit's share of the error that holding it at its mean adds, on the first `count` images."""
    before, rises = errors(decode(weights, codes[:count]), images[:count]).mean(), []
    for unit, mean in enumerate(codes.mean(0)):
        held = codes[:count].copy()
        held[:, unit] = mean
        rises.append(errors(decode(weights, held), images[:count]).mean() - before)
    rises = np.clip(rises, 0, None)
    return rises / max(rises.sum(), 1e-12)


def expect(weights, test_set, noise, seed, count):
    """Return the numbers of the experiments as metrics.json has them, but for own pictures and steps.

    The function `test_set` returns images and labels; importance is measured on the first `count` images.
    """
    images, labels = test_set()
    units = len(weights["fc2.bias"])
    codes, normal = encode(weights, images), noise_for(images, seed)
    mean, components, variances, pixels_same = of_images(test_set)
    plain, pca_mse = errors(decode(weights, codes), images), variances[units:].sum() / 784

    noisy = images + np.float32(noise) * normal
    clipped, unclipped = errors(noisy.clip(0, 1), images), errors(noisy, images)
    denoised = errors(decode(weights, encode(weights, noisy)), images)
    levels = {level: decode(weights, encode(weights, images + np.float32(level) * normal))
              for level in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)}
    of_codes = np.linalg.svd(codes - codes.mean(0), full_matrices=False)[1] ** 2
    return {
        "reconstruction": {
            "mse": plain.mean(), "psnr_db": psnr(plain.mean()), "pca_mse": pca_mse,
            "pca_psnr_db": psnr(pca_mse),
            "mse_of_each_digit": {digit: plain[labels == digit].mean() for digit in range(10)}},
        "denoising": {
            "noise": noise, "clipped_mse": clipped.mean(), "noisy_mse": unclipped.mean(),
            "noisy_psnr_db": psnr(unclipped.mean()), "mse": denoised.mean(), "psnr_db": psnr(denoised.mean()),
            "closer_than_clipped": (denoised < clipped).mean(),
            "closer_than_noisy": (denoised < unclipped).mean(),
            "mse_at_noise": {level: errors(outputs, images).mean() for level, outputs in levels.items()}},
        "bottleneck": {
            "units": units, "live_units": (codes > 0).any(0).sum(),
            "active_fraction_of_each_unit": list((codes > 0).mean(0)),
            "importance_of_each_unit": list(importance(weights, codes, images, count))},
        "codes": {
            "plane_variance": of_codes[:2].sum() / of_codes.sum(),
            "neighbour_accuracy": same_digit(codes, labels),
            "pca_neighbour_accuracy": same_digit((images - mean) @ components[:units].T, labels),
            "pixel_neighbour_accuracy": pixels_same}}
