"""Train the autoencoder and save its weights and its loss curve.

    python train.py -z 8 -e 50 -b 2048 -s model.pth -p loss.png

Recipe (the report's): Adam, learning rate 1e-3, MSE, ReduceLROnPlateau on the epoch's mean training loss.
"""

import argparse
import copy
import math
import os
import signal
import sys
import time
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below just ends, without a traceback

import torch
import torch.distributed as dist
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import checkpoint
import data
from model import autoencoderMLP4Layer, start_from_mean

SETTINGS = ("bottleneck", "batch_size", "lr", "seed", "init", "noise")  # with the data set: what --resume must not change
EVERY = 5  # seconds between two checkpoints, or an epoch if that is longer; one takes 0.02 s


def prepare():
    """Set what makes the loop faster, once a process and before it starts threads, which inherit the first."""
    torch.set_flush_denormal(True)  # Adam's moments of pixels that are always 0 become denormal: 2 % late in a run
    torch.backends.cuda.matmul.allow_tf32 = True  # not measured here


def train_epoch(model, batches, optimizer, noise=0.0):
    """Run `model` once over `batches` and return the mean squared error as a tensor on its device.

    `batches` yields float32 images (n, 784) and their share: n * 784, unless several processes split a
    batch unevenly. `noise` times N(0, 1) is added to the inputs, never to the targets: a denoising
    autoencoder (Vincent et al., "Extracting and Composing Robust Features with Denoising Autoencoders", 2008).
    """
    errors, pixels = torch.zeros((), device=next(model.parameters()).device), 0
    for images, share in batches:
        inputs = images + noise * torch.randn_like(images) if noise else images
        error = F.mse_loss(model(inputs), images, reduction="sum")
        optimizer.zero_grad()
        (error / share).backward()
        optimizer.step()
        errors += error.detach()  # no .item(): it would wait for the device in every step
        pixels += share
    return errors / pixels


@torch.inference_mode()
def evaluate(model, images):
    """Return the MSE over `images`, uint8 (N, 784), and the share of them on which each unit fires, (N_bottleneck,)."""
    error, fired = 0.0, 0
    for x in map(data.to_float, images.split(10_000)):  # chunks: 60,000 at once would take 600 MB
        code = model.encode(x)
        error += F.mse_loss(model.decode(code), x, reduction="sum").item()
        fired += (code > 0).sum(0)
    return error / images.numel(), fired / len(images)


def loss_curve(losses, name):
    """Return a matplotlib Figure of the training loss per epoch on the data set `name`."""
    figure = Figure((7, 4), layout="constrained")
    title = f"Training on {name}: loss {losses[0]:.4f} after the first epoch, {losses[-1]:.4f} after the last"
    axes = figure.add_subplot(title=title, xlabel="epoch", ylabel="training loss (MSE)")
    axes.plot(range(1, len(losses) + 1), losses, "." if len(losses) == 1 else "-")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def parser():
    parser = argparse.ArgumentParser(prog="train.py", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train the lab's autoencoder, 784-392-8-392-784, on MNIST. The two commands of the lab:\n\n"
        "  python train.py -z 8 -e 50 -b 2048 -s model.pth -p loss.png\n  python lab1.py -l model.pth")
    parser.error = lambda message: parser.exit(2, f"train.py: {message} (see --help)\n")  # one line, without the usage
    add = parser.add_argument
    add("-z", "--bottleneck", type=int, default=8, metavar="N", help="units of the bottleneck (default: %(default)s)")
    add("-e", "--epochs", type=int, default=50, metavar="N", help="passes over the training images (default: %(default)s)")
    add("-b", "--batch-size", type=int, default=2048, metavar="N", help="images a step (default: %(default)s)")
    add("-s", "--save", type=Path, metavar="FILE", help="the weights (default: outputs/<dataset>/model.pth); "
        "the state that --resume needs goes beside them as .ckpt")
    add("-p", "--plot", type=Path, metavar="FILE", help="the loss curve (default: outputs/<dataset>/loss.png)")
    add("--dataset", choices=data.DATASETS, help="default: mnist, and glyphs where mnist can't be had")
    add("--data-dir", default="data", metavar="DIR", help="where the data set lies or goes (default: %(default)s)")
    add("--lr", type=float, default=1e-3, metavar="X", help="Adam's learning rate (default: %(default)s)")
    add("--noise", type=float, default=0.0, metavar="S", help="train to denoise: add S * N(0, 1) to the inputs "
        "(default: %(default)s)")
    add("--init", choices=("mean", "report"), default="mean", help="start from the mean image with live units, or from "
        "PyTorch's weights as the report does (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of weights, shuffling and noise (default: %(default)s)")
    add("--device", type=data.device, default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, cuda:1 (default: cuda if there is one, else cpu)")
    add("--resume", action="store_true", help="go on from the .ckpt, if there is one, with its settings, to -e epochs")
    return parser


def check(parser, args):
    """End with one line and status 2 where a number is out of its range."""
    for option, value, low, high in (("-z", args.bottleneck, 1, 784), ("-e", args.epochs, 0, 10**9),
                                     ("-b", args.batch_size, 1, 10**9), ("--noise", args.noise, 0, 10**6),
                                     ("--lr", args.lr, 0, 10**38), ("--seed", args.seed, 0, 2**63 - 1)):
        if not low <= value <= high:
            parser.error(f"{option} {value}: must be {low} or more, at most {high}")


@contextmanager
def on_signals(handler):
    """Within the block, SIGINT and SIGTERM call `handler` with their number and the frame."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def build(bottleneck, images, init="mean", lr=1e-3, seed=0):
    """Return a new model on the device of `images`, uint8 (N, 784), its optimizer and its scheduler."""
    torch.manual_seed(seed)
    model = autoencoderMLP4Layer(N_bottleneck=bottleneck)
    if init == "mean":
        start_from_mean(model, sum(data.to_float(x).sum(0) for x in images.split(10_000)).cpu() / len(images))
    model.to(images.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    return model, optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "min")


def join(args):
    """Join the other processes of the run, if torchrun started any, and return this one's rank and their number.

    On GPUs each process takes one of its own: args.device is set to it.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and args.device.type == "cuda":
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            sys.exit(f"train.py: process {local + 1} of this machine has no GPU of its own, there are {gpus}: "
                     "lower --nproc_per_node or add --device cpu")
        args.device = torch.device("cuda", local)
        torch.cuda.set_device(args.device)
    if world > 1:
        dist.init_process_group("nccl" if args.device.type == "cuda" else "gloo")
    return rank, world


def from_rank_0(value):
    """Return rank 0's `value` in every process."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values)
    return values[0]


def places(commands, args, name):
    """Return the paths of the weights, the .ckpt and the loss curve of a run on data set `name`, and the curve's format."""
    weights = args.save or Path("outputs", name, "model.pth")
    plot = args.plot or Path("outputs", name, "loss.png")
    ckpt = Path(f"{weights}".removesuffix(".pth") + ".ckpt")
    if len({os.path.realpath(path) for path in (weights, ckpt, plot)}) < 3:
        commands.error(f"-s {weights} -p {plot}: weights, .ckpt and loss curve need names of their own")
    format = plot.suffix[1:].lower() or "png"
    try:
        checkpoint.to_image(Figure(), format)
    except (ValueError, RuntimeError, OSError):
        commands.error(f"-p {plot}: no format that matplotlib can write here, try .png, .pdf or .svg")
    return weights, ckpt, plot, format


def go_on(state, args, commands, argv, name, ckpt):
    """Return the arguments of a run that goes on from `state`; what was not said out loud is as it was."""
    settings = {key: state["settings"].get(key) for key in (*SETTINGS, "epochs")}
    if any(type(value) is not type(getattr(args, key)) for key, value in settings.items()):
        raise checkpoint.CheckpointError(f"{ckpt} holds other settings than train.py's")
    commands.set_defaults(**settings)
    device, args = args.device, commands.parse_args(argv)
    args.device = device  # of this process
    check(commands, args)
    for key, ours in {"dataset": name, **{key: getattr(args, key) for key in SETTINGS}}.items():
        if ours != (theirs := state["settings"].get(key)):
            commands.error(f"{ckpt} was made with --{key.replace('_', '-')} {theirs}, not {ours}")
    if len(state["losses"]) > args.epochs:
        commands.error(f"{ckpt} has {len(state['losses'])} epochs: ask for more than -e {args.epochs}")
    return args


def summary(model, train, test, start):
    """Print the last line of a run, begun at `start` of time.perf_counter(), with a warning on stderr where units are dead."""
    mse, _ = evaluate(model, test.images)
    _, fired = evaluate(model, train.images)
    live, units = int((fired > 0).sum()), len(fired)
    print(f"test MSE {mse:.5f}, PSNR {-10 * math.log10(mse):.1f} dB; {live} of {units} bottleneck units live; "
          f"{time.perf_counter() - start:.1f} s")
    if live < units:
        print(f"warning: {units - live} of {units} bottleneck units never fire on the training images: "
              f"the code has {live} dimensions", file=sys.stderr)


def run(argv):
    start = time.perf_counter()
    commands = parser()
    args = commands.parse_args(argv)
    check(commands, args)
    prepare()
    rank, world = join(args)
    if rank > 0:
        sys.stdout = open(os.devnull, "w")

    def load(dataset):
        return data.load(dataset, args.data_dir, "train", "test", device=args.device)

    name, train, test = load(args.dataset) if rank == 0 else (None, None, None)
    name = from_rank_0(name)
    if rank > 0:
        name, train, test = load(name)  # what rank 0 found or downloaded, never a stand-in of its own
    weights, ckpt, plot, format = places(commands, args, name)
    state = None
    if rank == 0:
        for path in (weights, ckpt, plot):
            checkpoint.require_writable(path)
        if args.resume and ckpt.exists():
            state = checkpoint.load_state(ckpt)
        elif args.resume:
            print(f"no {ckpt} yet: starting from the beginning")
    state = from_rank_0(state)
    if state:
        args = go_on(state, args, commands, argv, name, ckpt)

    model, optimizer, scheduler = build(args.bottleneck, train.images, args.init, args.lr, args.seed)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    losses = []
    if state:
        checkpoint.restore(state, ckpt, parts)
        losses = state["losses"]
    network = DistributedDataParallel(model) if world > 1 else model
    print(f"{name}: {len(train):,} training and {len(test):,} test images, on {args.device}" + (f" x {world}" if world > 1 else ""))

    def snapshot():
        """The run as it is after a whole epoch: whatever ends it, this is what the files show."""
        settings = {key: getattr(args, key) for key in (*SETTINGS, "epochs")} | {"dataset": name}
        return copy.deepcopy({key: part.state_dict() for key, part in parts.items()} | {"losses": losses, "settings": settings})

    def save(*paths):
        """Write some of the run's three files and return what went wrong, a text a file."""
        contents = {weights: lambda: checkpoint.to_bytes({k: v.cpu() for k, v in state["model"].items()}),
                    ckpt: lambda: checkpoint.to_bytes(state),
                    plot: lambda: checkpoint.to_image(loss_curve(state["losses"], name), format)}
        failed = []
        for path in paths if rank == 0 else ():
            try:
                checkpoint.write(path, contents[path]())
            except OSError as error:
                failed.append(f"{path}: {error.strerror}")
        return failed

    batches = data.batches(train, args.batch_size, args.seed, rank, world)
    state, saved, warned, trouble, status, signals = snapshot(), -math.inf, False, None, 1, []
    with on_signals(lambda number, _: signals.append(number)):
        try:
            epochs = range(len(losses) + 1, args.epochs + 1)
            for epoch in tqdm(epochs, unit="epoch", leave=False, disable=None if rank == 0 else True):
                batches.sampler.set_epoch(epoch)
                torch.manual_seed(data.epoch_seed(args.seed * world + rank, epoch))  # of the noise
                # One process stops after the step at hand; several, which must do the same steps, after the epoch.
                loss = train_epoch(network, takewhile(lambda _: world > 1 or not signals, batches), optimizer, args.noise)
                if world > 1:
                    both = torch.tensor([loss / world, len(signals)], device=args.device)
                    dist.all_reduce(both)
                    loss = both[0]
                    signals.extend([signal.SIGTERM] * int(both[1] > 0 and not signals))
                if signals:
                    trouble = f"stopped by {signal.Signals(signals[0]).name} after {len(losses)} of {args.epochs} epochs"
                    status = 128 + signals[0]
                    break
                loss = loss.item()
                if not math.isfinite(loss) or not all(p.isfinite().all() for p in model.parameters()):
                    trouble = f"the loss became {loss} in epoch {epoch}: try a lower --lr than {args.lr:g}"
                    break
                scheduler.step(loss)
                losses.append(loss)
                state = snapshot()
                tqdm.write(f"epoch {epoch:{len(str(args.epochs))}}/{args.epochs}  loss {loss:.5f}")
                if time.monotonic() - saved > EVERY:
                    failed, saved = save(ckpt), time.monotonic()
                    if failed and not warned:
                        print(f"warning: {failed[0]}; training goes on without a checkpoint", file=sys.stderr)
                        warned = True
        finally:
            files = [weights, ckpt, plot] if losses else [weights, ckpt] if args.epochs == 0 else []
            failed = save(*files)
    if failed:
        sys.exit(f"train.py: {'; '.join(failed)}: the old files are kept; make room and run it again")
    if files:
        print(f"wrote {', '.join(map(str, files))}")
    if status > 1:
        print(f"{trouble}; " + ("the same command with --resume goes on" if files else "nothing was saved"))
        sys.exit(status)
    if trouble:
        sys.exit(f"train.py: {trouble}")
    if world > 1:
        dist.destroy_process_group()
    if rank > 0:
        return
    if args.epochs == 0:
        print("no epochs: these are the weights of an untrained network")
    summary(model, train, test, start)


def main(argv=None):
    try:
        with on_signals(lambda number, _: sys.exit(128 + number)):
            run(argv)
    except (data.DataError, checkpoint.CheckpointError, OSError) as error:
        sys.exit(f"train.py: {error}")
    except RuntimeError as error:
        if not dist.is_initialized():
            raise
        sys.exit(f"train.py: process {dist.get_rank()} failed or lost another, what was saved can be resumed: "
                 + str(error).partition("\n")[0])


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # in a pipe too, a line is there when it is printed
    main()
