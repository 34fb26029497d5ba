"""Time an epoch of this project's loop beside the report's loop and beside its matrix products alone.

    python benchmarks/speed.py              # MNIST (glyphs without it), 6 rounds: two minutes on two cores
    python benchmarks/speed.py --command    # python train.py, 50 epochs, from start to files: two minutes

The loops take turns within a process, since machines are noisy: trust the ratios, which are medians over the
rounds. Tables are Markdown.
"""

import argparse
import platform
import random
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from labkit.job import Job
from seeds import REPORT

import train
from labkit import cli, data, metrics

ROOT = Path(__file__).parent.parent
BATCH = 2048


def products(train_set):
    """Return a function that does the eleven matrix products of every step of an epoch, and nothing else.

    On a batch's own images, activations and gradients: products of zeros take less power, so that a busy
    processor would be clocked higher than in training.
    """
    images = x = data.to_float(train_set.images[:BATCH])
    model, *_ = train.build(8, train_set)
    inputs, outputs = [], []
    for layer, activation in zip(model.children(), (F.relu, F.relu, F.relu, torch.sigmoid)):
        inputs.append(x.detach())
        outputs.append(layer(x))
        outputs[-1].retain_grad()
        x = activation(outputs[-1])
    F.mse_loss(x, images).backward()
    weights = [layer.weight.detach() for layer in model.children()]
    gradients = [output.grad for output in outputs]
    results = [[torch.empty_like(tensor) for tensor in tensors] for tensors in (gradients, weights, inputs)]
    layers = list(zip(inputs, weights, gradients, *results))  # nothing is allocated in a step

    def epoch():
        for batch in train_set.images.split(BATCH):
            n = len(batch)
            for x, w, _, y, _, _ in layers:
                torch.mm(x[:n], w.T, out=y[:n])
            for x, w, dy, _, dw, dx in reversed(layers):
                torch.mm(dy[:n].T, x[:n], out=dw)
                if x is not inputs[0]:  # nobody needs the gradient of the images
                    torch.mm(dy[:n], w, out=dx[:n])

    return epoch


def report(train_set):
    """Return a function that trains for an epoch by the report's recipe in the usual way.

    That is torchvision's MNIST through a DataLoader: PIL and ToTensor for each image, .item() in every step.
    """
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    mnist = MNIST.__new__(MNIST)  # around images that are in memory already
    mnist.data, mnist.targets = train_set.images.view(-1, 28, 28).cpu(), train_set.labels.cpu()
    mnist.transform, mnist.target_transform = ToTensor(), None
    loader = torch.utils.data.DataLoader(mnist, batch_size=BATCH, shuffle=True)
    device = train_set.images.device
    model = nn.Sequential(nn.Linear(784, 392), nn.ReLU(), nn.Linear(392, 8), nn.ReLU(),
                          nn.Linear(8, 392), nn.ReLU(), nn.Linear(392, 784), nn.Sigmoid()).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def epoch():
        total = 0.0
        for images, _ in loader:
            images = images.view(len(images), -1).to(device)
            loss = F.mse_loss(model(images), images)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()

    return epoch


def ours(train_set, test_set=None):
    """Return a function that trains for an epoch as train.py does and, with a `test_set`, returns its MSE."""
    job = Job(str(train_set.images.device))
    model, optimizer, _ = train.build(8, train_set)
    loader = data.batches(train_set, BATCH, seed=0)

    def epoch():
        loader.sampler.set_epoch(loader.sampler.epoch + 1)
        train.train_epoch(model, loader, optimizer, 0, job).item()
        return metrics.mse(model, test_set.in_order()).item() if test_set else None

    return epoch


def seconds(function):
    """Return how long a call takes, up to the moment when a GPU, too, is done."""
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(name, train_set, test_set, rounds):
    """Print the table of the loops, what evaluation costs and, on MNIST, the time to the report's quality."""
    loops = {"the matrix products alone": products(train_set), "the report's loop": report(train_set),
             "this project's loop": ours(train_set), "with the test loss": ours(train_set, test_set)}
    rng, times = random.Random(0), []
    for _ in range(rounds + 1):
        times.append({loop: seconds(loops[loop]) for loop in rng.sample(list(loops), len(loops))})
    del times[0]  # warming up

    def ratio(loop, base):
        return median(time[loop] / time[base] for time in times)

    bare, theirs, this, with_test = loops
    print("| epoch of | ms | x products | images/s |\n|---|---|---|---|")
    for loop in loops:
        took = median(time[loop] for time in times)
        print(f"| {loop} | {1000 * took:,.1f} | {ratio(loop, bare):.2f} | {len(train_set) / took:,.0f} |")
    print(f"\nthe report's loop takes {ratio(theirs, this):.1f} times as long as this project's; "
          f"an epoch with the test loss {ratio(with_test, this):.3f} times as long as one without")
    if name == "mnist":
        start, epoch, mse, epochs = time.perf_counter(), ours(train_set, test_set), 1, 0
        while mse > REPORT and epochs < 50:
            mse, epochs = epoch(), epochs + 1
        print(f"to a test MSE of {mse:.4f} (the report's: {REPORT:.4f}), seed 0: {epochs} epochs, "
              f"{time.perf_counter() - start:.1f} s")


def command(name, train_set, data_dir, rounds):
    """Print how long train.py takes for 50 epochs, beside as many of the products before and after it."""
    bare = products(train_set)
    times = [seconds(bare) for _ in range(rounds)]
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, ROOT / "train.py", "--data-dir", data_dir, "--dataset", name, "--device",
                str(train_set.images.device), "-s", f"{folder}/model.pth", "-p", f"{folder}/loss.png", "-e"]
        run = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL)
        took = seconds(lambda: run([*line, "50"]))
        startup = seconds(lambda: run([*line, "0"]))
    base = 50 * median(times + [seconds(bare) for _ in range(rounds)])
    print(f"python train.py, 50 epochs: {took:.1f} s; imports and set-up (-e 0): {startup:.1f} s; 50 epochs "
          f"of products: {base:.1f} s; the epochs take {(took - startup) / base:.2f} times as long as those")


def main():
    raw = argparse.RawDescriptionHelpFormatter  # keeps the line breaks
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--dataset", choices=data.DATASETS)
    add("--data-dir", default="data")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--rounds", type=int, default=6, help="(default: %(default)s)")
    add("--command", action="store_true")
    args = parser.parse_args()
    cli.require_range("--rounds", args.rounds, 1, 1000)
    torch.set_flush_denormal(True)  # as train.py does
    print(f"{args.device}, {torch.get_num_threads()} threads of {platform.machine()}, "
          f"PyTorch {torch.__version__}, Python {platform.python_version()}")

    name, *sets = data.load(args.dataset, args.data_dir, "train", "test")
    train_set, test_set = (images.to(args.device) for images in sets)
    print(f"{name}: {len(train_set):,} training images\n")
    if args.command:
        return command(name, train_set, args.data_dir, args.rounds)
    compare(name, train_set, test_set, args.rounds)


if __name__ == "__main__":
    with cli.errors_in_one_line("speed.py"):
        main()
