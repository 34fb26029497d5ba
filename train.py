"""Train the autoencoder and save its weights and its loss curve.

    python train.py -z 8 -e 50 -b 2048 -s model.pth -p loss.png

Recipe (the report's): Adam, learning rate 1e-3, MSE, ReduceLROnPlateau on the epoch's mean training loss.
"""

import argparse
import copy
import math
import signal
import sys
import time
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below just ends, without a traceback

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from tqdm import tqdm

import checkpoint
import data
from model import autoencoderMLP4Layer, start_from_mean

SETTINGS = ("bottleneck", "batch_size", "lr", "seed", "init", "noise")  # with the data set: what --resume must not change
EVERY = 5  # seconds between two checkpoints, or an epoch if that is longer; one takes 0.02 s on an SSD


def prepare():
    """Set what makes the loop faster, once a process and before its first tensor."""
    torch.set_flush_denormal(True)  # Adam's moments of pixels that are always 0 become denormal
    torch.backends.cuda.matmul.allow_tf32 = True


def train_epoch(model, batches, optimizer, noise=0.0):
    """Run `model` once over `batches` and return the mean squared error as a tensor on its device.

    `batches` yields float32 images (n, 784) and their share: n * 784, unless several processes split a
    batch unevenly. `noise` times N(0, 1) is added to the inputs, never to the targets: a denoising
    autoencoder (Vincent et al., "Extracting and Composing Robust Features with Denoising Autoencoders", 2008).
    """
    errors = pixels = 0
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


def loss_curve(losses, title):
    """Return a matplotlib Figure of the training loss per epoch."""
    figure = Figure((7, 4), layout="constrained")
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
        help="cpu, cuda, cuda:1, mps (default: cuda if there is one, else cpu)")
    add("--resume", action="store_true", help="go on from the .ckpt, if there is one, with its settings, to -e epochs")
    return parser


def check(parser, args):
    """End with one line and status 2 where a number is out of its range."""
    for option, value, low, high in (("-z", args.bottleneck, 1, 784), ("-e", args.epochs, 0, math.inf),
                                     ("-b", args.batch_size, 1, math.inf), ("--noise", args.noise, 0, math.inf),
                                     ("--lr", args.lr, 0, math.inf), ("--seed", args.seed, 0, 2**63 - 1)):
        if not low <= value <= high or math.isinf(value):
            parser.error(f"{option} {value}: must be {low} or more" + (f", at most {high}" if high < math.inf else ""))


@contextmanager
def signals_noted():
    """Yield a list that SIGINT and SIGTERM add to instead of ending the process, until the block is left."""
    noted = []
    before = {s: signal.signal(s, lambda number, _: noted.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def build(bottleneck, images, init="mean", lr=1e-3, seed=0):
    """Return a new model on the device of `images`, uint8 (N, 784), its optimizer and its scheduler."""
    torch.manual_seed(seed)
    model = autoencoderMLP4Layer(N_bottleneck=bottleneck)
    if init == "mean":
        start_from_mean(model, sum(data.to_float(x).sum(0) for x in images.split(10_000)).cpu() / len(images))
    model.to(images.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    return model, optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "min")


def run(argv):
    start = time.perf_counter()
    commands = parser()
    args = commands.parse_args(argv)
    check(commands, args)
    prepare()
    name, train, test = data.load(args.dataset, args.data_dir, "train", "test", device=args.device)
    weights = args.save or Path("outputs", name, "model.pth")
    plot = args.plot or Path("outputs", name, "loss.png")
    ckpt = weights.with_suffix(".ckpt")
    if len({weights, ckpt, plot}) < 3:
        commands.error(f"-s {weights} -p {plot}: weights, .ckpt and loss curve need names of their own")
    format = plot.suffix[1:] or "png"
    if format not in Figure().canvas.get_supported_filetypes():
        commands.error(f"-p {plot}: not a format of matplotlib's, try .png, .pdf or .svg")
    for path in (weights, ckpt, plot):
        checkpoint.require_writable(path)

    state = checkpoint.load_state(ckpt) if args.resume and ckpt.exists() else None
    if state:
        commands.set_defaults(**{key: state["settings"].get(key) for key in (*SETTINGS, "epochs")})
        args = commands.parse_args(argv)  # again: what was not said out loud is as it was
    settings = {key: getattr(args, key) for key in SETTINGS} | {"dataset": name}
    for key, ours in settings.items() if state else ():
        if ours != (theirs := state["settings"].get(key)):
            commands.error(f"{ckpt} was made with --{key.replace('_', '-')} {theirs}, not {ours}")

    model, optimizer, scheduler = build(args.bottleneck, train.images, args.init, args.lr, args.seed)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    losses = []
    if state:
        checkpoint.restore(state, ckpt, parts)
        losses = state["losses"]
        if len(losses) > args.epochs:
            commands.error(f"{ckpt} has {len(losses)} epochs: ask for more than -e {args.epochs}")
    elif args.resume:
        print(f"no {ckpt} yet: starting from the beginning")
    print(f"{name}: {len(train):,} training and {len(test):,} test images, on {args.device}")

    def snapshot():
        """The run as it is after a whole epoch: whatever ends it, this is what the files show."""
        return copy.deepcopy({key: part.state_dict() for key, part in parts.items()}
                             | {"losses": losses, "settings": settings | {"epochs": args.epochs}})

    def save(*paths):
        """Write some of the run's three files and return what went wrong, a text a file."""
        contents = {weights: lambda: checkpoint.to_bytes({k: v.cpu() for k, v in state["model"].items()}),
                    ckpt: lambda: checkpoint.to_bytes(state),
                    plot: lambda: checkpoint.to_image(loss_curve(state["losses"], name), format)}
        failed = []
        for path in paths:
            try:
                checkpoint.write(path, contents[path]())
            except OSError as error:
                failed.append(f"{path}: {error.strerror}")
        return failed

    batches = data.batches(train, args.batch_size, args.seed)
    state, saved, warned, trouble = snapshot(), -math.inf, False, None
    with signals_noted() as signals:
        try:
            for epoch in tqdm(range(len(losses) + 1, args.epochs + 1), unit="epoch", leave=False, disable=None):
                batches.sampler.set_epoch(epoch)
                torch.manual_seed(data.epoch_seed(args.seed, epoch))  # of the noise
                loss = train_epoch(model, takewhile(lambda _: not signals, batches), optimizer, args.noise).item()
                if signals:
                    trouble = f"{signal.Signals(signals[0]).name} after {len(losses)} of {args.epochs} epochs"
                    break
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
        sys.exit(f"train.py: {'; '.join(failed)}: the old files are kept; make room, then --resume")
    if files:
        print(f"wrote {', '.join(map(str, files))}")
    if trouble and signals:
        print(f"stopped by {trouble}; the same command with --resume goes on")
        sys.exit(128 + signals[0])
    if trouble:
        sys.exit(f"train.py: {trouble}; kept: {len(losses)} epochs")
    if args.epochs == 0:
        print("no epochs: these are the weights of an untrained network")
    mse, _ = evaluate(model, test.images)
    _, fired = evaluate(model, train.images)
    live = int((fired > 0).sum())
    print(f"test MSE {mse:.5f}, PSNR {-10 * math.log10(mse):.1f} dB; {live} of {args.bottleneck} bottleneck units live; "
          f"{time.perf_counter() - start:.1f} s")
    if live < args.bottleneck:
        print(f"warning: {args.bottleneck - live} of {args.bottleneck} bottleneck units never fire on the training "
              f"images: the code has {live} dimensions", file=sys.stderr)


def main(argv=None):
    try:
        run(argv)
    except (data.DataError, checkpoint.CheckpointError, OSError) as error:
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    main()
