"""Time an epoch of this project's loop beside its bare matrix products and the report's loop.

    python benchmarks/speed.py                    # the loops in both precisions: a minute on two cores
    python benchmarks/speed.py --grow batch-size  # how time grows: or images, bottleneck, threads, processes
    python benchmarks/speed.py --start            # what the two commands do before their work

Whatever is compared takes turns, since machines are noisy: numbers are medians over the rounds. On a machine
with other work, OMP_NUM_THREADS=1 gives CPU time, in which that work hardly shows. Tables are Markdown.
"""

import argparse
import csv
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
import train
from labkit import cli, data, metrics

ROOT = Path(__file__).parent.parent
PRECISIONS = ("float32", "bfloat16")
FLOP_PER_IMAGE = 6 * 2 * (784 * 392 + 392 * 8) - 2 * 784 * 392  # 2 per weight forward, 4 backward but in fc1
CPU_TIME = os.environ.get("OMP_NUM_THREADS") == "1"  # of several threads it would be the sum
PEAK_SIZE = 4096  # of square matrices, large enough that their product computes from registers and cache
GROWTH = {"images": (6_000, 60_000, 600_000), "bottleneck": (2, 8, 32, 128, 784),
          "batch-size": (64, 256, 1024, 2048, 4096, 16_384), "threads": (1, 2), "processes": (1, 2)}


def products(images, precision):
    """Return a function that does the eleven matrix products of every step of an epoch, and nothing else.

    On a batch's own images, activations and gradients: products of zeros take less power, so that a busy
    processor would be clocked higher than in training.
    """
    settings = train.Settings()
    model, *_ = train.build(settings, images)
    target = x = data.to_float(images[:settings.batch_size])
    inputs, outputs = [], []
    for layer, activation in zip(model.children(), (F.relu, F.relu, F.relu, torch.sigmoid)):
        inputs.append(x.detach())
        outputs.append(layer(x))
        outputs[-1].retain_grad()
        x = activation(outputs[-1])
    F.mse_loss(x, target).backward()
    operands = inputs, [layer.weight.detach() for layer in model.children()], [y.grad for y in outputs]
    inputs, weights, gradients = [[tensor.to(getattr(torch, precision)) for tensor in tensors]
                                  for tensors in operands]
    results = [[torch.empty_like(tensor) for tensor in tensors] for tensors in (gradients, weights, inputs)]
    layers = list(zip(inputs, weights, gradients, *results))  # nothing is allocated in a step

    def epoch():
        for batch in images.split(settings.batch_size):
            n = len(batch)
            for x, w, _, y, _, _ in layers:
                torch.mm(x[:n], w.T, out=y[:n])
            for x, w, dy, _, dw, dx in reversed(layers):
                torch.mm(dy[:n].T, x[:n], out=dw)
                if x is not inputs[0]:  # nobody needs the gradient of the images
                    torch.mm(dy[:n], w, out=dx[:n])

    return epoch


def report(images):
    """Return a function that trains for an epoch by the report's recipe in the usual way.

    That is torchvision's MNIST through a DataLoader: PIL and ToTensor for each image, .item() in every step.
    """
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    mnist = MNIST.__new__(MNIST)  # around images that are in memory already
    mnist.data, mnist.targets = images.view(-1, 28, 28).cpu(), torch.zeros(len(images), dtype=torch.int64)
    mnist.transform, mnist.target_transform = ToTensor(), None
    loader = torch.utils.data.DataLoader(mnist, batch_size=2048, shuffle=True)
    model = nn.Sequential(nn.Linear(784, 392), nn.ReLU(), nn.Linear(392, 8), nn.ReLU(),
                          nn.Linear(8, 392), nn.ReLU(), nn.Linear(392, 784), nn.Sigmoid()).to(images.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def epoch():
        total = 0.0
        for batch, _ in loader:
            batch = batch.view(len(batch), -1).to(images.device)
            loss = F.mse_loss(model(batch), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()

    return epoch


def ours(images, precision, test_images=None, threads=None, **settings):
    """Return a function that trains for an epoch as train.py does, and evaluates any `test_images`."""
    settings = train.Settings(**settings)
    model, optimizer, _ = train.build(settings, images)

    def epoch():
        torch.set_num_threads(threads or torch.get_num_threads())
        batches = data.batches(images, settings.batch_size, settings.seed, epoch=1)
        train.train_epoch(model, batches, optimizer, settings.noise, precision)[0].item()
        if test_images is not None:
            metrics.mse(model, test_images, test_images).item()

    return epoch


def seconds(function):
    """Return how long a call takes, up to the moment when a GPU, too, is done."""
    clock = cpu_time if CPU_TIME else time.perf_counter
    start = clock()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def cpu_time():
    """Return the CPU time of this process and of those that it started and that have ended, in seconds."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def medians(functions, rounds):
    """Return the median seconds of a call of each of a dict of functions, which take turns."""
    rng, times = random.Random(0), {name: [] for name in functions}
    for _ in range(1 + rounds):
        for name in rng.sample(list(functions), len(functions)):
            times[name].append(seconds(functions[name]))
    return {name: median(taken[1:]) for name, taken in times.items()}  # the first round warms up


def run_quietly(*command):
    """Run a Python command; in several processes, each has one thread, as torchrun sets it."""
    subprocess.run([sys.executable, *command], check=True, capture_output=True)


def print_row(*cells):
    print(f"| {' | '.join(map(str, cells))} |")


def print_header(*names):
    print_row(*names)
    print("|---" * len(names) + "|")


def compare_loops(images, test_images, rounds):
    """Print the table of the loops: milliseconds, beside the bare products, and as a share of the peak."""
    usual, peak = "the report's loop, a DataLoader of ToTensor", "peak"
    bare, loop, whole = "the products alone", "this project's loop", "the same and the test loss"
    functions = {(usual, "float32"): report(images)}
    for precision in PRECISIONS:
        square = torch.rand(PEAK_SIZE, PEAK_SIZE, device=images.device).to(getattr(torch, precision))
        functions |= {(bare, precision): products(images, precision),
                      (loop, precision): ours(images, precision),
                      (whole, precision): ours(images, precision, test_images),
                      (peak, precision): partial(torch.mm, square, square)}
    took = medians(functions, rounds)
    rates = {precision: 2 * PEAK_SIZE**3 / took.pop((peak, precision)) for precision in PRECISIONS}

    print_header("epoch of", "precision", "ms", "x products", "images/s", "share of the peak")
    for (name, precision), time_ in sorted(took.items(), key=lambda item: PRECISIONS.index(item[0][1])):
        share = FLOP_PER_IMAGE * len(images) / time_ / rates[precision]
        print_row(name, precision, f"{1000 * time_:,.0f}", f"{time_ / took[bare, precision]:.2f}",
                  f"{len(images) / time_:,.0f}", f"{share:.0%}")
    print(f"\npeak, a product of {PEAK_SIZE} x {PEAK_SIZE} matrices: "
          + ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {precision}" for precision, rate in rates.items()))
    print(f"bfloat16 / float32 per epoch: {took[loop, 'bfloat16'] / took[loop, 'float32']:.2f}; "
          f"the report's loop / this project's: {took[usual, 'float32'] / took[loop, 'float32']:.1f}")


def growth(what, images, rounds):
    """Return an epoch's median seconds by (value of GROWTH[what], precision), and its images by value."""
    functions, counts = {}, {}
    for value, precision in product(GROWTH[what], PRECISIONS):
        some = images.repeat(-(-value // len(images)), 1)[:value] if what == "images" else images
        option = {} if what == "images" else {what.replace("-", "_"): value}
        functions[value, precision], counts[value] = ours(some, precision, **option), len(some)
    return medians(functions, rounds), counts


def growth_by_processes(images, rounds, options):
    """Return what growth() does for processes of one thread each; the epochs include the test loss."""
    times = {key: [] for key in product(GROWTH["processes"], PRECISIONS)}
    with tempfile.TemporaryDirectory() as folder:
        files = ["-s", f"{folder}/model.pth", "-p", f"{folder}/loss.png"]
        for _, (count, precision) in product(range(rounds), times):
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
            run_quietly(*launcher, ROOT / "train.py", *files, *options, "--precision", precision, "-e", "4")
            with open(f"{folder}/loss.csv") as file:
                times[count, precision] += [float(row["seconds"]) for row in csv.DictReader(file)][1:]
    counts = dict.fromkeys(GROWTH["processes"], len(images))
    return {key: median(taken) for key, taken in times.items()}, counts


def print_growth(what, took, counts):
    """Print the table of what growth() returned."""
    print_header(what, *(f"{precision}, {unit}" for precision in PRECISIONS for unit in ("ms", "images/s")),
                 "bfloat16 / float32")
    for value, count in counts.items():
        times = [took[value, precision] for precision in PRECISIONS]
        cells = [cell for time_ in times for cell in (f"{1000 * time_:,.0f}", f"{count / time_:,.0f}")]
        print_row(f"{value:,}", *cells, f"{times[1] / times[0]:.2f}")


def print_start(rounds, options):
    """Print what the commands take without their work, and what of it is whose."""
    with tempfile.TemporaryDirectory() as folder:
        weights = f"{folder}/model.pth"
        train_py = [ROOT / "train.py", "-e", "0", "-s", weights, "-p", f"{folder}/loss.png", *options]
        lab1_py = [ROOT / "lab1.py", "-l", weights, "--out", folder, "--no-show", *options]
        run_quietly(*train_py)  # the weights for lab1.py
        commands = {"import torch": ["-c", "import torch"],
                    "import torch, torch._dynamo": ["-c", "import torch, torch._dynamo"],
                    "import torch, matplotlib": ["-c", "import torch, matplotlib.backends.backend_agg"],
                    "train.py -e 0": train_py, "lab1.py": lab1_py}
        took = medians({name: partial(run_quietly, *line) for name, line in commands.items()}, rounds)
    print_header("command", "s", "x import torch")
    for name, time_ in took.items():
        print_row(name, f"{time_:.2f}", f"{time_ / took['import torch']:.2f}")


def main():
    raw = argparse.RawDescriptionHelpFormatter  # keeps the line breaks
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--dataset", choices=data.DATASETS)
    add("--data-dir", default=cli.DATA_DIR)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--rounds", type=cli.number(int, 1, 1000), default=5, help="(default: %(default)s)")
    add("--grow", choices=GROWTH, help="how an epoch's time grows with this")
    add("--start", action="store_true")
    args = parser.parse_args()
    torch.set_flush_denormal(True)  # as train.py does
    print(f"{'CPU' if CPU_TIME else 'wall'} time, {args.device}, {torch.get_num_threads()} threads of "
          f"{platform.machine()}, PyTorch {torch.__version__}, Python {platform.python_version()}")

    name, *sets = data.load(args.dataset, args.data_dir, "train", "test")
    images, test_images = (images.to(args.device) for images, _ in sets)
    print(f"{name}: {len(images):,} training images\n")
    options = ["--dataset", name, "--data-dir", args.data_dir, "--device", args.device]
    if args.start:
        print_start(args.rounds, options)
    elif args.grow == "processes":
        print_growth(args.grow, *growth_by_processes(images, args.rounds, options))
    elif args.grow:
        print_growth(args.grow, *growth(args.grow, images, args.rounds))
    else:
        compare_loops(images, data.to_float(test_images), args.rounds)


if __name__ == "__main__":
    with cli.errors_in_one_line("speed.py"):
        main()
