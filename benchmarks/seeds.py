"""Train many seeds with train.py and print a table: dead units, test MSE, first loss.

    python benchmarks/seeds.py --seeds 5           # both starts on MNIST: half an hour on two cores
    python benchmarks/seeds.py --inits mean --seeds 5 --precisions bfloat16
    python benchmarks/seeds.py --inits mean --seeds 5 --noises 0.2 --lrs 0.003

Each run has one thread and adds a row to the CSV: after Ctrl-C the same command continues, and no run is done
twice. After a change of the recipe, delete the CSV. `--figure FILE` draws the seeds of the first size, noise,
rate and precision.
"""

import argparse
import csv
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))
import model
import train
from labkit import checkpoint, cli, data, figures, files, metrics

REPORT = 0.02796  # test MSE of the report's own weights, of whose 8 units 3 are dead
RUN = ("dataset", "epochs", "init", "bottleneck", "noise", "lr", "precision", "seed")
RESULT = ("dead", "first_loss", "test_mse", "denoised_mse", "reached")
STARTS = {"report": "PyTorch's", "mean": "this project's"}


def train_once(run, data_dir):
    """Train with the options `run` in this process, with one thread; return their RESULT."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(None):
        weights = f"{folder}/model.pth"
        train.main([*(f"--{name}={value}" for name, value in run.items()),
                    "-s", weights, "-p", f"{folder}/loss.png", "--data-dir", str(data_dir)])
        return result(weights, run["dataset"], data_dir)


@torch.inference_mode()
def result(weights, dataset, data_dir):
    """Return the RESULT of a run from its `weights`, beside which lies its checkpoint.

    RESULT: units that never fire on the training images, the first epoch's loss, the test MSE, that with
    0.2 x N(0, 1) added to the inputs, and the first epoch whose test MSE is the report's, or "".
    """
    network, _ = model.load(weights)
    history = checkpoint.read(weights.removesuffix(".pth") + ".ckpt")["history"]
    _, (train_images, _), (images, _) = data.load(dataset, data_dir, "train", "test")
    codes = torch.cat([network.encode(data.to_float(part)) for part in train_images.split(metrics.PART)])
    images = data.to_float(images)
    denoised = metrics.mse(network, images + 0.2 * metrics.normal_like(images, 0), images).item()
    reached = [epoch for epoch, row in enumerate(history, 1) if row["test_loss"] <= REPORT]
    return (int((metrics.activity(codes) == 0).sum()), history[0]["loss"], history[-1]["test_loss"], denoised,
            reached[0] if reached else "")


def train_missing(runs, rows, args):
    """Train those of `runs`, dicts of RUN, that are not in `rows`; add each to it and to the CSV."""
    done = [{name: row[name] for name in RUN} for row in rows]
    missing = [run for run in runs if run not in done]
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        futures = {pool.submit(train_once, run, args.data_dir): run for run in missing}
        try:
            for number, future in enumerate(as_completed(futures), 1):
                rows.append(futures[future] | dict(zip(RESULT, map(str, future.result()))))
                files.write_csv(args.csv, (*RUN, *RESULT), rows)
                print(f"{number}/{len(missing)}:", *rows[-1].values(), flush=True)
        except BaseException:  # a run that failed, or Ctrl-C
            pool.shutdown(cancel_futures=True)
            raise


def print_table(rows, images):
    """Print a Markdown table of `rows`, dicts of RUN and RESULT; PCA's MSE is on the test set `images`."""
    header = ("epochs", "initial weights", "units", "noise", "learning rate", "precision", "seeds",
              "dead units", "test MSE: mean", "best", "worst", "PCA's", "denoised", "first epoch's loss",
              f"epochs to {REPORT:.4f}")
    print(f"\n| {' | '.join(header)} |\n{'|---' * len(header)}|")
    kinds, pca_mse = {}, metrics.pca_mse(metrics.pca(images)[2])
    for row in sorted(rows, key=lambda row: int(row["bottleneck"])):
        kinds.setdefault(tuple(row[name] for name in RUN[1:-1]), []).append(row)

    for (epochs, init, units, noise, lr, precision), runs in kinds.items():
        dead, first_loss, mse, denoised, reached = (
            [float(row[name] or "inf") for row in runs] for name in RESULT)
        numbers = (statistics.mean(mse), min(mse), max(mse), pca_mse[int(units)],
                   statistics.mean(denoised), statistics.mean(first_loss))
        cells = (epochs, STARTS[init], units, noise, lr, precision, len(runs),
                 f"{sum(dead):.0f} of {len(runs) * int(units)}", *(f"{number:.4f}" for number in numbers),
                 ", ".join("never" if epoch == float("inf") else f"{epoch:.0f}" for epoch in sorted(reached)))
        print(f"| {' | '.join(map(str, cells))} |")


def draw(rows):
    """Return a figure of the test MSE of every seed in `rows`, above it how many of its units are dead."""
    title = "Test MSE after {epochs} epochs, {dataset}, {bottleneck} units: one dot per seed"
    figure = Figure((8, 4), layout="constrained")
    axes = figure.add_subplot(title=title.format(**rows[0]), xlabel="seed", ylabel="test MSE", ymargin=0.15)
    for init, color in (("report", "tab:red"), ("mean", "tab:blue")):
        runs = [row for row in rows if row["init"] == init]
        dots = [(int(row["seed"]), float(row["test_mse"])) for row in runs]
        dead = sum(int(row["dead"]) for row in runs)
        label = f"{STARTS[init]} initial weights, {dead} dead units" + " (numbers: per seed)" * (dead > 0)
        axes.plot(*zip(*dots), "o", color=color, label=label)
        for row, dot in zip(runs, dots):
            if row["dead"] != "0":
                axes.annotate(row["dead"], dot, (0, 6), textcoords="offset points", ha="center", color=color)
    if rows[0]["dataset"] == "mnist":
        label = f"the report's own weights: 3 dead, {REPORT:.4f}"
        axes.axhline(REPORT, color="grey", linestyle=":", label=label)
    axes.set_ylim(bottom=0)
    axes.set_xticks(sorted({int(row["seed"]) for row in rows}))
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def parse():
    raw = argparse.RawDescriptionHelpFormatter  # keeps the line breaks
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--dataset", choices=data.DATASETS, default="mnist")
    add("--data-dir", type=Path, default=cli.DATA_DIR)
    add("--epochs", type=cli.number(int, 1, 10**9), default=50)
    add("--seeds", type=cli.number(int, 1, 10**9), default=20, help="seeds 0 to N - 1 (default: %(default)s)")
    add("--inits", nargs="+", choices=STARTS, default=list(STARTS))
    add("--sizes", nargs="+", type=int, default=[8], help="of the bottleneck (default: 8)")
    add("--noises", nargs="+", type=float, default=[0.0], help="train.py's --noise (default: 0)")
    add("--lrs", nargs="+", type=float, default=[0.001], help="train.py's --lr (default: 0.001)")
    add("--precisions", nargs="+", default=["float32"], help="train.py's --precision (default: float32)")
    add("--csv", type=Path, default=Path("outputs/seeds.csv"), help="(default: %(default)s)")
    add("--figure", type=Path)
    add("--workers", type=int, default=2, help="runs at a time (default: %(default)s)")
    return parser.parse_args()


def main():
    args = parse()
    files.require_writable(*filter(None, (args.csv, args.figure)))
    _, (test_images, _) = data.load(args.dataset, args.data_dir, "test")
    rows = list(csv.DictReader(args.csv.open())) if args.csv.exists() else []
    values = product([args.dataset], [args.epochs], args.inits, args.sizes, args.noises, args.lrs,
                     args.precisions, range(args.seeds))
    runs = [dict(zip(RUN, map(str, run))) for run in values]
    train_missing(runs, rows, args)

    print_table([row for row in rows if row["dataset"] == args.dataset], data.to_float(test_images))
    if args.figure:
        same = {name: runs[0][name] for name in RUN if name not in ("init", "seed")}
        figure = draw([row for row in rows if same.items() <= row.items()])
        files.write(args.figure, figures.to_bytes(figure, args.figure.suffix))


if __name__ == "__main__":
    with cli.errors_in_one_line("seeds.py"):
        main()
