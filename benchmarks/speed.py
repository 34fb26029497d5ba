"""Time an epoch of this project's loop beside the report's loop and beside its matrix products alone.

    python benchmarks/speed.py                      # MNIST (glyphs without it), 6 rounds: about two minutes
    python benchmarks/speed.py --scale              # cost per image at 60,000, 240,000 and 960,000 glyphs
    python benchmarks/speed.py --command            # python train.py, 50 epochs, from start to files on disk

The three take turns within a process, since machines are noisy: trust the ratios, which are medians over the rounds.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice, permutations
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
import data
import train

ROOT = Path(__file__).parent.parent
BATCH = 2048
REPORT = 0.02796  # test MSE of the report's own weights


def products(images):
    """Return a function that does the eleven matrix products of every step of an epoch, and nothing else.

    On the first batch's own images, activations and gradients: products of zeros take less power, so that a busy
    processor would be clocked higher than in training.
    """
    x = data.to_float(images[:BATCH])
    model, *_ = train.build(8, images)
    layers = (model.fc1, model.fc2, model.fc3, model.fc4)
    inputs, outputs = [], []

    def note(layer, args, output):
        output.retain_grad()
        inputs.append(args[0])
        outputs.append(output)

    for layer in layers:
        layer.register_forward_hook(note)
    F.mse_loss(model(x), x).backward()
    xs, gs = [x.detach() for x in inputs], [output.grad for output in outputs]
    ws = [layer.weight.detach() for layer in layers]
    ys, dws, dxs = ([torch.empty_like(t) for t in tensors] for tensors in (gs, ws, xs))  # nothing is allocated in a step

    def epoch():
        for start in range(0, len(images), BATCH):
            n = min(BATCH, len(images) - start)
            for x, w, y in zip(xs, ws, ys):
                torch.mm(x[:n], w.t(), out=y[:n])
            for x, g, w, dw, dx in reversed([*zip(xs, gs, ws, dws, dxs)]):
                torch.mm(g[:n].t(), x[:n], out=dw)
                if dx is not dxs[0]:  # nobody needs the gradient of the images
                    torch.mm(g[:n], w, out=dx[:n])
        dws[0][0, 0].item()  # waits for the device, as the other loops do

    return epoch


def report(dataset):
    """Return a function that trains for an epoch by the report's recipe in the usual way.

    That is torchvision's MNIST through a DataLoader: PIL and ToTensor for each image, and .item() in every step.
    It runs after train.prepare(), which is in its favour.
    """
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    mnist = MNIST.__new__(MNIST)  # around images that are in memory already
    mnist.data, mnist.targets = dataset.images.view(-1, 28, 28).cpu(), dataset.labels.cpu()
    mnist.transform, mnist.target_transform = ToTensor(), None
    loader = torch.utils.data.DataLoader(mnist, batch_size=BATCH, shuffle=True)
    device = dataset.images.device
    layers = [nn.Linear(784, 392), nn.ReLU(), nn.Linear(392, 8), nn.ReLU(), nn.Linear(8, 392), nn.ReLU(), nn.Linear(392, 784)]
    model = nn.Sequential(*layers, nn.Sigmoid()).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss_function = nn.MSELoss()

    def epoch():
        total = 0.0
        for images, _ in loader:
            images = images.view(len(images), -1).to(device)
            loss = loss_function(model(images), images)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()

    return epoch


def ours(dataset, seed=0):
    """Return a function that trains for an epoch as train.py does, and its model."""
    model, optimizer, _ = train.build(8, dataset.images, seed=seed)
    batches = data.batches(dataset, BATCH, seed)

    def epoch():
        batches.sampler.set_epoch(batches.sampler.epoch + 1)
        train.train_epoch(model, batches, optimizer).item()

    return epoch, model


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def machine(device):
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads of {platform.machine()}"
    return f"{name}, PyTorch {torch.__version__}, Python {platform.python_version()}"


def compare(name, dataset, test, rounds, imports):
    """Print the table of the three loops, the peak memory beyond `imports` and, on MNIST, the time to the report's quality."""
    loops = {"matrix products alone": products(dataset.images), "the report's loop": report(dataset),
             "this project's loop": ours(dataset)[0]}
    for loop in loops.values():  # warm up
        loop()
    times = [{loop: seconds(loops[loop]) for loop in order} for order in islice(cycle(permutations(loops)), rounds)]

    def ratio(loop, base):
        return statistics.median(t[loop] / t[base] for t in times)

    medians = {loop: statistics.median(t[loop] for t in times) for loop in loops}
    print("epoch of                    ms  x products  images/s")
    for loop, median in medians.items():
        print(f"{loop:22} {1000 * median:7.0f} {ratio(loop, 'matrix products alone'):11.2f} {len(dataset) / median:9,.0f}")
    print(f"the report's loop takes {ratio(*list(loops)[1:]):.1f} times as long as this project's")
    print(f"peak memory, all three in one process: {peak(dataset.images.device) - imports:.0f} MB beyond the imports")
    if name != "mnist":
        return
    start = time.perf_counter()
    epoch, model = ours(dataset)
    mse, epochs = 1, 0
    while mse > REPORT and epochs < 50:
        epoch()
        mse, epochs = train.evaluate(model, test.images)[0], epochs + 1
    took, theirs = time.perf_counter() - start, 50 * medians["the report's loop"]
    print(f"to a test MSE of {mse:.5f} (the report's: {REPORT}), seed 0: {epochs} epochs, {took:.1f} s; "
          f"50 epochs of the report's loop would take {theirs:.0f} s, {theirs / took:.0f} times as long")


def child(*args):
    """Run this script anew with `args` and return what it prints as JSON."""
    return json.loads(subprocess.run([sys.executable, __file__, *map(str, args)], capture_output=True, text=True, check=True).stdout)


def measure(count, device):
    """Print as JSON: seconds per image of `count` glyphs, of the products too, and peak memory in MB.

    The seconds are medians of 3 epochs; from 500,000 images on, those of one.
    """
    data.SIZES["train"] = count
    dataset = data.load("glyphs", None, "train", device=device)[1]
    epoch, _ = ours(dataset)
    epoch()
    memory = peak(device)
    bare = products(dataset.images)
    times = [(seconds(epoch), seconds(bare)) for _ in range(3 if count < 500_000 else 1)]
    print(json.dumps([*(statistics.median(t) / count for t in zip(*times)), memory]))


def peak(device):
    """Return the most memory that this process has had so far, of a GPU if `device` is one, in MB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", choices=data.DATASETS)
    add("--data-dir", default="data")
    add("--rounds", type=int, default=6, help="(default: %(default)s)")
    add("--device", type=data.device, default="cuda" if torch.cuda.is_available() else "cpu")
    add("--scale", action="store_true")
    add("--command", action="store_true")
    add("--measure", type=int, help=argparse.SUPPRESS)
    add("--imports", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    train.prepare()
    if args.measure:
        return measure(args.measure, args.device)
    if args.imports:
        import torchvision  # noqa: F401

        return print(peak(args.device))
    print(machine(args.device))
    # Before there is anything in memory: the peak of a process begins with that of the one that started it.
    imports = child("--imports", "--device", args.device)
    if args.scale:
        print(f"import torch, torchvision, matplotlib: {imports:.0f} MB\n\nimages   us/image  x products  peak MB  beyond the imports")
        for count in (60_000, 240_000, 960_000):
            time_, bare, memory = child("--measure", count, "--device", args.device)
            print(f"{count:7,} {1e6 * time_:9.1f} {time_ / bare:11.2f} {memory:8.0f} {memory - imports:8.0f}")
        return
    name, dataset, test = data.load(args.dataset, args.data_dir, "train", "test", device=args.device)
    print(f"{name}: {len(dataset):,} images\n")
    if not args.command:
        return compare(name, dataset, test, args.rounds, imports)
    bare = products(dataset.images)
    bare()
    times = [seconds(bare) for _ in range(args.rounds)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / "train.py", "--data-dir", args.data_dir, "--dataset", name, "--device", str(args.device),
                   "-s", f"{folder}/model.pth", "-p", f"{folder}/loss.png"]
        took = seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
        startup = seconds(lambda: subprocess.run([*command, "-e", "0"], check=True, stdout=subprocess.DEVNULL))
    times += [seconds(bare) for _ in range(args.rounds)]
    base = 50 * statistics.median(times)
    print(f"python train.py, 50 epochs: {took:.1f} s; imports and set-up (-e 0): {startup:.1f} s; 50 epochs of products: {base:.1f} s; "
          f"({took:.1f} - {startup:.1f}) / {base:.1f} = {(took - startup) / base:.2f}")


if __name__ == "__main__":
    main()
