"""Train many seeds through train.py's functions and print a table: dead units, test MSE, first loss.

    python benchmarks/seeds.py                                  # MNIST, 20 seeds of each start: about an hour
    python benchmarks/seeds.py --sizes 2 4 16 32 --seeds 3 --inits mean
    python benchmarks/seeds.py --noises 0.2 --seeds 5 --inits mean

A line a run goes to the CSV: stopped with Ctrl-C, the same command goes on where it was. Delete the CSV after a
change of the start or the recipe. `--figure` draws the test MSE of every seed.
"""

import argparse
import csv
import io
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))
import checkpoint
import data
import lab1
import train

REPORT = 0.02796  # test MSE of the report's own weights
RUN = ("dataset", "epochs", "init", "bottleneck", "noise", "seed")
RESULT = ("dead", "first_loss", "test_mse", "denoised_mse", "reached")


def one_run(data_dir, threads, dataset, epochs, init, bottleneck, noise, seed):
    """Train once and return RESULT: units that never fire on the training images, the first epoch's mean loss,
    the MSE on the test images, the same with 0.2 x N(0, 1) added to the inputs, and the first epoch with REPORT's
    quality or ""."""
    torch.set_num_threads(threads)
    train.prepare()
    _, images, test = data.load(dataset, data_dir, "train", "test")
    model, optimizer, scheduler = train.build(bottleneck, images.images, init, seed=seed)
    batches, first, reached = data.batches(images, 2048, seed), None, ""
    for epoch in range(1, epochs + 1):
        batches.sampler.set_epoch(epoch)
        torch.manual_seed(data.epoch_seed(seed, epoch))
        loss = train.train_epoch(model, batches, optimizer, noise).item()
        scheduler.step(loss)
        first = first or loss
        mse, _ = train.evaluate(model, test.images)
        if not reached and mse <= REPORT:
            reached = epoch
    dead = int((train.evaluate(model, images.images)[1] == 0).sum())
    with torch.inference_mode():
        clean = data.to_float(test.images)
        denoised = lab1.mean_error(model(lab1.add_noise(clean, 0.2, 0)), clean).mean().item()
    return dead, first, mse, denoised, reached


def table(rows, data_dir):
    """Print a line for each kind of run in `rows`, dicts of RUN and RESULT."""
    print("dataset  init    z  noise  seeds  dead units  test MSE: mean    best   worst  PCA's    denoised  first loss  "
          "epochs to report")
    for kind in sorted({tuple(row[key] for key in RUN[:-1]) for row in rows}):
        runs = [row for row in rows if tuple(row[key] for key in RUN[:-1]) == kind]
        dataset, _, init, z, noise = kind
        mse, denoised, first = ([float(row[key]) for row in runs] for key in ("test_mse", "denoised_mse", "first_loss"))
        reached = sorted(int(row["reached"] or 10**6) for row in runs)
        pca = lab1.pca_mse(data.to_float(data.load(dataset, data_dir, "test")[1].images), int(z))
        middle = reached[len(reached) // 2]
        print(f"{dataset:8} {init:6} {z:>2}  {noise:5}  {len(runs):5}  {sum(int(row['dead']) for row in runs):3} of "
              f"{len(runs) * int(z):3}  {statistics.mean(mse):14.5f} {min(mse):.5f} {max(mse):.5f}  {pca:.5f}  "
              f"{statistics.mean(denoised):.5f}  {statistics.mean(first):10.4f}  {middle if middle < 10**6 else 'never'}")


def figure(rows):
    """Return a figure of the test MSE of every seed, the number of its dead units above it, if any."""
    drawing = Figure((8, 4), layout="constrained")
    axes = drawing.add_subplot(title="Test MSE after 50 epochs, MNIST, 8 units: one dot a seed", xlabel="seed", ylabel="test MSE")
    for init, colour, text in (("report", "tab:red", "PyTorch's start, as in the report; above a dot: dead units"),
                               ("mean", "tab:blue", "this project's start")):
        runs = [row for row in rows if [row[k] for k in RUN[:-1]] == ["mnist", "50", init, "8", "0.0"]]
        axes.plot([int(r["seed"]) for r in runs], [float(r["test_mse"]) for r in runs], "o", color=colour, label=text)
        for r in runs:
            if r["dead"] != "0":
                axes.annotate(r["dead"], (int(r["seed"]), float(r["test_mse"])), (0, 6), ha="center",
                              textcoords="offset points", fontsize=9, color=colour)
    axes.axhline(REPORT, color="grey", linestyle=":", label="the report's own weights: 3 dead, 0.0280")
    axes.set_ylim(0, 1.1 * max(float(row["test_mse"]) for row in rows))
    axes.set_xticks(range(max(int(row["seed"]) for row in rows) + 1))
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return drawing


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", choices=data.DATASETS, default="mnist")
    add("--data-dir", default="data")
    add("--epochs", type=int, default=50)
    add("--seeds", type=int, default=20, help="seeds 0 to N - 1 (default: %(default)s)")
    add("--inits", nargs="+", choices=("mean", "report"), default=["mean", "report"])
    add("--sizes", nargs="+", type=int, default=[8], help="bottlenecks (default: 8)")
    add("--noises", nargs="+", type=float, default=[0.0], help="as train.py's --noise (default: 0)")
    add("--csv", type=Path, default=Path("outputs/seeds.csv"), help="(default: %(default)s)")
    add("--figure", type=Path, help="draw the seeds of MNIST with 8 units")
    add("--workers", type=int, default=2, help="runs at a time (default: %(default)s)")
    args = parser.parse_args(argv)

    checkpoint.require_writable(args.csv)
    rows = list(csv.DictReader(args.csv.open())) if args.csv.exists() else []
    done = {tuple(row[key] for key in RUN) for row in rows}
    wanted = [(args.dataset, args.epochs, *run) for run in product(args.inits, args.sizes, args.noises, range(args.seeds))]
    todo = [run for run in wanted if tuple(map(str, run)) not in done]
    threads = max(1, torch.get_num_threads() // args.workers)
    pool = ProcessPoolExecutor(args.workers, get_context("spawn"))
    try:
        runs = {pool.submit(one_run, args.data_dir, threads, *run): run for run in todo}
        for count, future in enumerate(as_completed(runs), 1):
            rows.append({k: str(v) for k, v in zip(RUN + RESULT, runs[future] + future.result())})
            text = io.StringIO()
            writer = csv.DictWriter(text, RUN + RESULT, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            checkpoint.write(args.csv, text.getvalue().encode())
            print(f"{count}/{len(todo)}", *rows[-1].values(), flush=True)
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from {args.csv}")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    table(rows, args.data_dir)
    if args.figure:
        checkpoint.write(args.figure, checkpoint.to_image(figure(rows)))


if __name__ == "__main__":
    main()
