"""Train the autoencoder and save its weights and its loss curve.

    python train.py -z 8 -e 50 -b 2048 -s model.pth -p loss.png

The report's recipe: Adam with learning rate 1e-3, MSE, ReduceLROnPlateau on the epoch's mean training
loss. On MNIST it ends with a test MSE of 0.017, after one to two minutes on two cores.
"""

import argparse
import math
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends without a traceback

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from labkit import LabError, UsageError, checkpoint, cli, data, metrics
from labkit.job import Job, exiting_on_signals
from labkit.run_files import RunFiles
from model import autoencoderMLP4Layer, start_from_mean

DEFAULTS = {"bottleneck": 8, "epochs": 50, "batch_size": 2048, "lr": 1e-3, "noise": 0.0, "init": "mean",
            "seed": 0}


class TrainingError(LabError):
    """A training that cannot go on."""


def train_epoch(model, loader, optimizer, noise, job):
    """Train once on `loader`, batches of images (n, 784) in [0, 1]; return the mean loss, a tensor.

    `noise` times N(0, 1) is added to the inputs, never to the targets: a denoising autoencoder (Vincent
    et al., "Extracting and Composing Robust Features with Denoising Autoencoders", 2008). Raises Stopped.
    """
    total, count = torch.zeros((), device=job.device), 0
    for images in loader:
        job.check_stop()
        inputs = images + noise * torch.randn_like(images) if noise else images
        loss = F.mse_loss(model(inputs), images)

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        total += loss.detach() * len(images)  # no .item(): it would wait for the device in every step
        count += len(images)
    return total / count


def train(args, job):
    """Train with the options `args`. A run that ends early leaves its files as after its last whole epoch."""
    start = time.perf_counter()
    args, state = job.on_rank_0(settle_options, args, job.world_size)
    dataset, train_set, test_set = job.on_rank_0(data.load, args.dataset, args.data_dir, "train", "test")
    train_set, test_set = train_set.to(job.device), test_set.to(job.device)
    files = files_of_run(args, dataset, job.rank)
    job.on_rank_0(files.require_writable)
    print(f"{dataset}: {len(train_set):,} training and {len(test_set):,} test images, on {job}")

    loader = data.batches(train_set, args.batch_size, args.seed, job.rank, job.world_size)
    model, optimizer, scheduler = build(args.bottleneck, train_set, args.init, args.lr, args.seed)
    history = state["history"] if state else []
    if state:
        checkpoint.restore(state, files.checkpoint, model, optimizer, scheduler, len(loader))
    network = DistributedDataParallel(model) if job.world_size > 1 else model
    settings = {option: getattr(args, option) for option in DEFAULTS} | {"dataset": dataset}
    files.snapshot(model, optimizer, history, settings)

    with job.deferring_signals():
        try:
            for epoch in job.progress(len(history) + 1, args.epochs):
                epoch_start = time.perf_counter()
                loader.sampler.set_epoch(epoch)
                noise_seed = args.seed * job.world_size + job.rank
                torch.manual_seed(data.epoch_seed(noise_seed, epoch))
                loss = job.mean(train_epoch(network, loader, optimizer, args.noise, job))
                require_finite(loss, model, epoch, args.lr)

                learning_rate = optimizer.param_groups[0]["lr"]
                scheduler.step(loss)
                test_loss = evaluate(model, test_set, job)
                history.append({"epoch": epoch, "loss": loss, "test_loss": test_loss,
                                "learning_rate": learning_rate,
                                "seconds": time.perf_counter() - epoch_start})

                tqdm.write(f"epoch {epoch:{len(str(args.epochs))}}/{args.epochs}  loss {loss:.4f}  "
                           f"test {test_loss:.4f}")
                files.snapshot(model, optimizer, history, settings)
                files.write_checkpoint()
                job.agree_on_signal()
        finally:
            files.write_all()
    if job.rank == 0:
        print_summary(model, train_set, test_set, history, start)


def build(bottleneck, train_set, init="mean", lr=1e-3, seed=0):
    """Return a new model on the device of `train_set`, its optimizer and its scheduler."""
    torch.manual_seed(seed)
    model = autoencoderMLP4Layer(N_bottleneck=bottleneck)
    if init == "mean":
        start_from_mean(model, train_set.mean().cpu())
    model.to(train_set.images.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    return model, optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "min")


def evaluate(model, test_set, job):
    """Return the MSE over the whole test set, of which each process evaluates a part."""
    part = test_set.part(job.rank, job.world_size)
    mse = metrics.mse(model, part.in_order())
    weight = len(part) * job.world_size / len(test_set)  # the parts may differ by an image
    return job.mean(weight * mse)


def require_finite(loss, model, epoch, lr):
    """Raise TrainingError if the loss or a weight is no longer a finite number."""
    broken = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if broken or not math.isfinite(loss):
        what = f"{broken[0]} became NaN or infinite" if broken else f"the loss became {loss}"
        raise TrainingError(f"{what} in epoch {epoch}: try a lower --lr than {lr:g}")


def print_summary(model, train_set, test_set, history, start):
    """Print what a run that began at `start` came to, and warnings on stderr of what went wrong."""
    if not history:
        print("no epochs: the weights are untrained")
    mse = metrics.mse(model, test_set.in_order())
    activity = metrics.activity(model, train_set.in_order())
    live, units = int((activity > 0).sum()), len(activity)
    print(f"test MSE {mse:.5f}, PSNR {metrics.psnr(mse.item()):.1f} dB; {live} of {units} bottleneck units "
          f"live on the training images; {time.perf_counter() - start:.1f} s")

    if live < units:
        print(f"warning: {units - live} of {units} bottleneck units never fire on the training images: "
              f"the code has {live} dimensions", file=sys.stderr)
    if history and mse > 0.99 * metrics.constant_mse(train_set.mean(), test_set.in_order()):
        print("warning: the network does no better than the mean image: try another --lr, more epochs "
              "or --init mean", file=sys.stderr)


def settle_options(args, world_size):
    """Return `args` with every option filled in, and the state of the run to resume, or None.

    An option that was not given has its value from the checkpoint or, without one, from DEFAULTS. Raises
    UsageError and CheckpointError.
    """
    path = find_checkpoint(args) if args.resume else None
    state = load_state(path) if path else None
    settings = state["settings"] if state else DEFAULTS
    for option, value in settings.items():
        given = getattr(args, option)
        if given is None:
            setattr(args, option, value)
        elif state and given != value and option != "epochs":
            raise UsageError(f"{path} was made with --{option.replace('_', '-')} {value}, not {given}: "
                             "leave the option or --resume out")

    require_ranges(args)
    if args.batch_size % world_size:
        raise UsageError(f"-b {args.batch_size}: must be a multiple of {world_size}, the number of processes")
    if state:
        done = len(state["history"])
        if done > args.epochs:
            raise UsageError(f"{path} has {done} epochs already: ask for -e {done} or more")
        print(f"resuming {path} after epoch {done}")
    return args, state


def find_checkpoint(args):
    """Return the path of the checkpoint to resume, or None if there is none yet."""
    names = [args.dataset] if args.dataset else ["mnist", "glyphs"]  # as data.load() tries them
    paths = [files_of_run(args, name).checkpoint for name in names]
    for path in paths:
        if path.exists():
            return path
    print(f"no {paths[0]} yet: starting from the beginning")


def load_state(path):
    """Return the state of the run in the checkpoint at `path`. Raises CheckpointError."""
    state = checkpoint.load_checkpoint(path, DEFAULTS)
    try:
        require_ranges(argparse.Namespace(**state["settings"]))
    except UsageError as error:
        raise checkpoint.CheckpointError(f"{path}: settings, {error}") from error
    return state


def require_ranges(options):
    """Raise UsageError if a number is out of its range."""
    cli.require_range("-z", options.bottleneck, 1, 784)
    cli.require_range("-e", options.epochs, 0, 10**9)
    cli.require_range("-b", options.batch_size, 1, 10**9)
    cli.require_range("--noise", options.noise, 0, 10**6)
    cli.require_range("--lr", options.lr, 0, 1e38)
    cli.require_range("--seed", options.seed, 0, 2**63 - 1)


def files_of_run(args, dataset, rank=0):
    """Return the RunFiles of a run on the data set named `dataset`."""
    folder = Path("outputs", dataset)
    return RunFiles(args.save or folder / "model.pth", args.plot or folder / "loss.png", rank)


def parse(argv):
    """Return the options of the command line; None for those that a checkpoint or DEFAULTS may fill in."""
    parser = cli.Parser("train.py", "Train the lab's autoencoder, 784-392-8-392-784, on MNIST.")
    add = parser.add_argument
    add("-z", "--bottleneck", type=int, metavar="N", help="units of the bottleneck (default: 8)")
    add("-e", "--epochs", type=int, metavar="N", help="passes over the training images (default: 50)")
    add("-b", "--batch-size", type=int, metavar="N", help="images per step (default: 2048)")
    add("-s", "--save", type=Path, metavar="FILE",
        help="the weights (default: outputs/<dataset>/model.pth); the checkpoint that --resume needs "
             "goes beside them as .ckpt")
    add("-p", "--plot", type=Path, metavar="FILE",
        help="the loss curve (default: outputs/<dataset>/loss.png); its numbers go beside it as .csv")
    add("--lr", type=float, metavar="X", help="Adam's learning rate (default: 0.001)")
    add("--noise", type=float, metavar="S",
        help="train to denoise: add S * N(0, 1) to the inputs (default: 0)")
    add("--init", choices=("mean", "report"),
        help="start from the mean image with live units, or from PyTorch's weights as the report does "
             "(default: mean)")
    add("--seed", type=int, metavar="N", help="seed of the weights, the shuffling and the noise (default: 0)")
    add("--resume", action="store_true",
        help="continue from the .ckpt, if there is one, with its settings, up to -e epochs")
    parser.add_shared_options(data.DATASETS, "mnist, and glyphs if mnist is unavailable")
    return parser.parse_args(argv)


def main(argv=None):
    """Run the command with the options `argv`, by default the process's own."""
    with cli.errors_in_one_line("train.py"), exiting_on_signals():
        args = parse(argv)
        with Job(args.device) as job:
            train(args, job)


if __name__ == "__main__":
    cli.prepare_streams()
    main()
