"""Train many seeds with train.py and print a table: dead units, test MSE, first loss.

    python benchmarks/seeds.py                     # MNIST, 20 seeds of both starts: an hour on two cores
    python benchmarks/seeds.py --inits mean --sizes 2 4 16 32 --seeds 3
    python benchmarks/seeds.py --inits mean --noises 0.2 --seeds 5
    python benchmarks/seeds.py --inits mean --noises 0.2 --lrs 0.003 --seeds 5

Each run adds a row to the CSV: after Ctrl-C the same command continues, and no run is done twice. After a
change of the recipe, delete the CSV. `--figure FILE` draws the seeds of the first size, noise and rate.
"""

import argparse
import csv
import io
import math
import os
import signal
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))
import train
from labkit import LabError, checkpoint, cli, data, figures, files, metrics, run_files

REPORT = 0.02796  # test MSE of the report's own weights, of whose 8 units 3 are dead
RUN = ("dataset", "epochs", "init", "bottleneck", "noise", "lr", "seed")
RESULT = ("dead", "first_loss", "test_mse", "denoised_mse", "reached")
STARTS = {"report": "PyTorch's initial weights", "mean": "this project's"}


def train_once(run, data_dir, threads):
    """Train with the options `run` and return their RESULT, for use in a process of its own.

    RESULT: units that never fire on the training images, the first epoch's loss, the test MSE, that with
    0.2 x N(0, 1) added to the inputs, and the first epoch whose test MSE is the report's, or "".
    """
    torch.set_num_threads(threads)
    options = [f"--{name}={value}" for name, value in run.items()]
    errors = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        outputs = ["-s", f"{folder}/model.pth", "-p", f"{folder}/loss.png"]
        try:
            with redirect_stdout(nowhere), redirect_stderr(errors):
                train.main([*options, *outputs, "--data-dir", data_dir])
        except SystemExit as end:
            if end.code > 128:  # a signal: Ctrl-C ends the worker, too
                os._exit(end.code)
            raise LabError(errors.getvalue()) from end
        model = checkpoint.load_weights(f"{folder}/model.pth")
        history = checkpoint.read(f"{folder}/model.ckpt")["history"]

    _, train_set, test_set = data.load(run["dataset"], data_dir, "train", "test")
    dead = int((metrics.activity(model, train_set.in_order()) == 0).sum())
    images = data.to_float(test_set.images)
    with torch.inference_mode():
        denoised = model(images + 0.2 * metrics.normal_like(images, 0))
    reached = [row["epoch"] for row in history if row["test_loss"] <= REPORT]
    return (dead, history[0]["loss"], history[-1]["test_loss"], F.mse_loss(denoised, images).item(),
            reached[0] if reached else "")


def print_table(rows, images):
    """Print a Markdown table of `rows`, dicts of RUN and RESULT; PCA's MSE is on the test set `images`."""
    header = ("epochs", "initial weights", "units", "noise", "learning rate", "seeds", "dead units",
              "test MSE: mean", "best", "worst", "PCA's", "denoised", "first epoch's loss",
              f"epochs to {REPORT:.4f}")
    print(f"\n| {' | '.join(header)} |\n{'|---' * len(header)}|")
    kinds = {}
    for row in sorted(rows, key=lambda row: int(row["bottleneck"])):
        kinds.setdefault(tuple(row[name] for name in RUN[1:-1]), []).append(row)

    for (epochs, init, units, noise, lr), runs in kinds.items():
        dead, first_loss, mse, denoised, reached = (
            [float(row[name] or "inf") for row in runs] for name in RESULT)
        numbers = (statistics.mean(mse), min(mse), max(mse), metrics.pca_mse(images, int(units)),
                   statistics.mean(denoised), statistics.mean(first_loss))
        epoch = statistics.median_high(reached)
        cells = (epochs, STARTS[init], units, noise, lr, len(runs),
                 f"{sum(dead):.0f} of {len(runs) * int(units)}", *(f"{number:.4f}" for number in numbers),
                 "never" if epoch == math.inf else f"{epoch:.0f}")
        print(f"| {' | '.join(map(str, cells))} |")


def draw(rows):
    """Return a figure of the test MSE of every seed in `rows`, above it how many of its units are dead."""
    title = "Test MSE after {epochs} epochs, {dataset}, {bottleneck} units: one dot per seed"
    figure = Figure((8, 4), layout="constrained")
    axes = figure.add_subplot(title=title.format(**rows[0]), xlabel="seed", ylabel="test MSE", ymargin=0.15)
    for init, color in (("report", "tab:red"), ("mean", "tab:blue")):
        runs = [row for row in rows if row["init"] == init]
        seeds, mse = [int(row["seed"]) for row in runs], [float(row["test_mse"]) for row in runs]
        dead = sum(int(row["dead"]) for row in runs)
        label = f"{STARTS[init]}, {dead} dead units" + (" (numbers: per seed)" if dead else "")
        axes.plot(seeds, mse, "o", color=color, label=label)
        for row, *dot in zip(runs, seeds, mse):
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


def train_missing(runs, rows, args):
    """Train those of `runs`, dicts of RUN, that are not in `rows`; add each to it and to the CSV."""
    done = [{name: row[name] for name in RUN} for row in rows]
    missing = [run for run in runs if run not in done]
    threads = max(1, torch.get_num_threads() // args.workers)
    quietly = signal.SIGINT, signal.SIG_DFL  # Ctrl-C reaches the workers, too
    pool = ProcessPoolExecutor(args.workers, get_context("spawn"), signal.signal, quietly)
    try:
        futures = {pool.submit(train_once, run, args.data_dir, threads): run for run in missing}
        for number, future in enumerate(as_completed(futures), 1):
            rows.append(futures[future] | dict(zip(RESULT, map(str, future.result()))))
            files.write(args.csv, run_files.csv_bytes(rows))
            print(f"{number}/{len(missing)}:", *rows[-1].values(), flush=True)
    except KeyboardInterrupt:
        print(f"stopped; run the same command to continue from {args.csv}", file=sys.stderr)
        sys.exit(130)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def main():
    raw = argparse.RawDescriptionHelpFormatter  # keeps the line breaks
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--dataset", choices=data.DATASETS, default="mnist")
    add("--data-dir", default="data")
    add("--epochs", type=int, default=50)
    add("--seeds", type=int, default=20, help="seeds 0 to N - 1 (default: %(default)s)")
    add("--inits", nargs="+", choices=STARTS, default=list(STARTS))
    add("--sizes", nargs="+", type=int, default=[8], help="of the bottleneck (default: 8)")
    add("--noises", nargs="+", type=float, default=[0.0], help="train.py's --noise (default: 0)")
    add("--lrs", nargs="+", type=float, default=[0.001], help="train.py's --lr (default: 0.001)")
    add("--csv", type=Path, default=Path("outputs/seeds.csv"), help="(default: %(default)s)")
    add("--figure", type=Path)
    add("--workers", type=int, default=2, help="runs at a time (default: %(default)s)")
    args = parser.parse_args()
    cli.require_range("--epochs", args.epochs, 1, 10**9)
    cli.require_range("--seeds", args.seeds, 1, 10**9)

    test_set = data.load(args.dataset, args.data_dir, "test")[1]
    for path in filter(None, (args.csv, args.figure)):
        files.require_writable(path)
    rows = list(csv.DictReader(args.csv.open())) if args.csv.exists() else []
    values = product([args.dataset], [args.epochs], args.inits, args.sizes, args.noises, args.lrs,
                     range(args.seeds))
    runs = [dict(zip(RUN, map(str, run))) for run in values]
    train_missing(runs, rows, args)

    print_table([row for row in rows if row["dataset"] == args.dataset], data.to_float(test_set.images))
    if args.figure:
        options = {name: runs[0][name] for name in ("dataset", "epochs", "bottleneck", "noise", "lr")}
        drawn = [row for row in rows if options.items() <= row.items()]
        files.write(args.figure, figures.to_bytes(draw(drawn)))


if __name__ == "__main__":
    with cli.errors_in_one_line("seeds.py"):
        main()
