"""Several networks, measured on the same images: a line each, a table, comparison.csv and two figures."""

import math
import os
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from labkit import LabError, UsageError, data, figures, files, metrics, testset

MAX_DRAWN = 12  # networks in comparison.png
COLUMNS = ("network", "dataset", "epochs", "units", "live_units", "mse", "psnr_db", "pca_mse", "times_pca",
           "denoised_mse", "neighbour_accuracy", "error")
HEADER = (f"{'network':28}  {'data set':13}  epochs  units  live     MSE  PSNR  x PCA  denoised  "
          "neighbours")
EXPLANATION = ("x PCA: the MSE, divided by PCA's with as many numbers; denoised: the MSE for noisy inputs;\n"
               "neighbours: images whose nearest other code is of the same digit")


class Network(NamedTuple):
    """A network that was measured, and what it makes of the digits of its test set."""

    row: dict  # of COLUMNS
    test: testset.TestSet
    outputs: torch.Tensor


def find(paths):
    """Return the files that `paths` name: every .pth below a folder, and what wildcards match.

    Raises UsageError where there is none.
    """
    found = []
    for path in paths:
        below = sorted(path.rglob("*.pth")) if path.is_dir() else []
        matching = sorted(Path().glob(str(path))) if not path.is_absolute() and "*" in str(path) else []
        found += below or matching or [path]
        if path.is_dir() and not below:
            raise UsageError(f"-l {path}: there is no .pth file in this folder or below")
    return found


def short_names(paths):
    """Return the part of each path that differs: without the folders and the file's name that all share."""
    parts = [list(path.parts) for path in paths]
    while len({tuple(p[:1]) for p in parts}) == 1 and all(len(p) > 1 for p in parts):
        parts = [p[1:] for p in parts]
    while len({tuple(p[-1:]) for p in parts}) == 1 and all(len(p) > 1 for p in parts):
        parts = [p[:-1] for p in parts]
    return [os.path.join(*p) for p in parts]


def compare(paths, load, args, device, out):
    """Measure the networks in the files `paths`, read by the function `load`; write the results to `out`.

    A file that cannot be used is a line with the reason. Returns whether all could be. Raises OSError.
    """
    written = [out / "comparison.csv", out / "comparison.png", out / "sizes.png"]
    files.announce(*written)
    test_sets = {}  # by the name that was asked for
    networks, failed = [], {}
    for name, path in zip(tqdm(short_names(paths), unit="network", leave=False, disable=None), paths):
        try:
            model, record = load(path)
            dataset = args.dataset or data.trained_on(record)
            if dataset not in test_sets:
                test_sets[dataset] = testset.load(dataset, args.data_dir, args.seed, device)
            epochs = record["epochs"] if record else "?"
            networks.append(measure(name, epochs, model.to(device), test_sets[dataset], args.noise))
        except (LabError, OSError) as error:
            failed[name] = " ".join(str(error).split())

    networks.sort(key=lambda network: network.row["mse"])
    rows = [network.row for network in networks]
    reasons = [f"{name}: {reason}" for name, reason in failed.items()]
    print("\n".join([HEADER, *map(line, rows), *reasons, EXPLANATION]))
    for path in written:
        path.unlink(missing_ok=True)  # an older one could show other networks
    errors = [{"network": name, "error": reason} for name, reason in failed.items()]
    files.write_csv(written[0], COLUMNS, rows + errors)
    if networks:
        draw_digits(networks, written[1])
    if len({row["units"] for row in rows}) > 1:
        draw_sizes(networks, written[2])
    print(f"wrote {', '.join(path.name for path in written if path.exists())} to {out}")
    return not failed


def measure(name, epochs, model, test, noise):
    """Return the Network of a `model` called `name`, trained for `epochs`, a number or "?".

    Raises LabError if its numbers are not finite.
    """
    codes = model.encode(test.images)
    mse = metrics.mse(model, test.images, test.images).item()
    if not math.isfinite(mse):
        raise LabError("its outputs are not finite: train it again with a lower --lr")
    units = codes.shape[1]
    pca_mse = test.pca_mse[min(units, 784)]
    denoised_mse = metrics.mse(model, test.images + noise * test.normal, test.images)
    row = {"network": name, "dataset": test.dataset, "epochs": epochs, "units": units,
           "live_units": int((metrics.activity(codes) > 0).sum()), "mse": mse, "psnr_db": metrics.psnr(mse),
           "pca_mse": pca_mse, "times_pca": mse / max(pca_mse, 1e-12), "denoised_mse": denoised_mse.item(),
           "neighbour_accuracy": metrics.neighbour_accuracy(codes, test.labels)}
    return Network(row, test, model(test.images[testset.first_of_each(test.labels)]))


def line(row):
    """Return the line of a table that shows `row`, the numbers of a network."""
    return (f"{figures.label(row['network'], 28):28}  {row['dataset']:13}  {row['epochs']:>6}  "
            f"{row['units']:5}  {row['live_units']:4}  {row['mse']:6.4f}  {row['psnr_db']:4.1f}  "
            f"{row['times_pca']:5.2f}  {row['denoised_mse']:8.4f}  {row['neighbour_accuracy']:10.1%}")


def draw_digits(networks, path):
    """Draw the same ten digits by the best networks, `networks` in the order of their MSE, into a file."""
    test = networks[0].test
    drawn = [network for network in networks if network.test.dataset == test.dataset][:MAX_DRAWN]
    captions = [f"{figures.label(network.row['network'], 60)}: MSE {network.row['mse']:.4f}"
                for network in drawn]
    title = f"The same images of {test.dataset} by each network, the lowest MSE first"
    if len(networks) > len(drawn):
        title += f" ({len(networks) - len(drawn)} more are not drawn)"
    figure = Figure()
    digits = test.images[testset.first_of_each(test.labels)]
    rows = torch.stack([digits, *(network.outputs for network in drawn)])
    figures.image_column(figure, title, rows.unbind(1), ["test images", *captions])
    figures.sign(figure, measured_on(test))
    files.write(path, figures.to_bytes(figure))


def draw_sizes(networks, path):
    """Draw the MSE of each network over its number of units, and PCA's, into a file."""
    figure = Figure((7, 4.5))
    tests = {network.test.dataset: network.test for network in networks}
    figures.size_curve(figure, [network.row for network in networks],
                       {name: test.pca_mse for name, test in tests.items()})
    figures.sign(figure, "; ".join(map(measured_on, tests.values())))
    files.write(path, figures.to_bytes(figure))


def measured_on(test):
    """Return on what networks were measured, in words."""
    return f"measured on the {len(test.images):,} test images of {test.dataset}"
