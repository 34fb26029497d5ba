"""Train the autoencoder and save its weights and its loss curve.

    python train.py -z 8 -e 50 -b 2048 -s model.pth -p loss.png

The report's recipe: Adam with learning rate 1e-3, MSE, ReduceLROnPlateau on the epoch's mean training
loss. On MNIST it ends with a test MSE of 0.017, after one to three minutes on two cores.
"""

import dataclasses
import math
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C before the training ends it without a traceback

import torch
import torch.nn.functional as F
from tqdm import tqdm

from labkit import LabError, UsageError, cli, data, metrics
from labkit.processes import Processes, Stopped, multiplies_bfloat16
from labkit.run import Run
from model import autoencoderMLP4Layer, start_from_mean


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the numbers of a run depend on, beside its images."""

    bottleneck: int = cli.option(8, "units of the bottleneck", 1, 784, short="-z", group="network")
    init: str = cli.option("mean", "start from the mean image, or report: PyTorch's weights",
                           choices=("mean", "report"), group="network")
    seed: int = cli.option(0, "of weights, shuffling and noise", 0, 2**63 - 1, group="network")
    epochs: int = cli.option(50, "passes over the training images", 0, 10**9, short="-e")
    batch_size: int = cli.option(2048, "images per step", 1, 10**9, short="-b")
    lr: float = cli.option(1e-3, "Adam's learning rate", 0, 1e38)
    noise: float = cli.option(0.0, "train to denoise: add X * N(0, 1) to the inputs", 0, 10**6)
    precision: str = cli.option("float32", "of the layers in training; bfloat16 may be faster",
                                choices=("float32", "bfloat16"))


class TrainingError(LabError):
    """A training that cannot go on."""


def train_epoch(model, batches, optimizer, noise, precision="float32"):
    """Train once on `batches` of images (n, 784) in [0, 1]; return the mean loss, a tensor, and their number.

    In `precision` "bfloat16" layers compute in bfloat16; weights, loss and optimizer keep float32.
    `noise` times N(0, 1) is added to the inputs, never to the targets: a denoising autoencoder (Vincent
    et al., "Extracting and Composing Robust Features with Denoising Autoencoders", 2008).
    """
    total = count = 0
    for images in batches:
        inputs = images + noise * torch.randn_like(images) if noise else images
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = F.mse_loss(model(inputs), images)

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        total += loss.detach() * len(images)  # no .item(): it would wait for the device in every step
        count += len(images)
    return total / count, count


def train(args, settings, processes):
    """Train with `settings`; `args` say on what, and where the files go. Raises LabError, OSError."""
    start = time.perf_counter()
    dataset, *sets = processes.on_rank_0(data.load, args.dataset, args.data_dir, "train", "test")
    train_images, test_images = (images.to(processes.device) for images, _ in sets)
    model, optimizer, scheduler = build(settings, train_images)
    run = Run(model, optimizer, scheduler, dataclasses.asdict(settings), dataset, data.checksum(train_images),
              args.save or Path("outputs", dataset, "model.pth"),
              args.plot or Path("outputs", dataset, "loss.png"), processes.rank)
    if args.resume and (state := processes.on_rank_0(run.read_checkpoint)):
        run.resume(state)
    processes.on_rank_0(run.prepare_files, args.dataset is None and dataset == "glyphs")
    print(f"{dataset}: {len(train_images):,} training and {len(test_images):,} test images, on {processes}")

    processes.on_rank_0(warn, settings, train_images)
    network, test_images = processes.parallel(model), data.to_float(test_images)
    epochs, signum = range(len(run.history) + 1, settings.epochs + 1), 0
    with processes.noting_signals() as stop_requested:
        with run.keeping_curve():
            for epoch in tqdm(epochs, unit="epoch", leave=False, disable=processes.rank > 0 or None):
                epoch_start = time.perf_counter()
                batches = data.batches(train_images, settings.batch_size, settings.seed, epoch,
                                       processes.rank, processes.world_size)
                torch.manual_seed(data.noise_seed(settings.seed, epoch, processes.rank))
                loss = processes.mean(*train_epoch(network, batches, optimizer, settings.noise,
                                                   settings.precision))
                require_finite(loss, model, epoch, settings.lr)
                test_loss = evaluate(model, test_images, processes)

                learning_rate = optimizer.param_groups[0]["lr"]
                scheduler.step(loss)  # ReduceLROnPlateau's; most others take no loss
                run.finish_epoch(loss, test_loss, learning_rate, time.perf_counter() - epoch_start)
                tqdm.write(f"epoch {epoch:{len(str(settings.epochs))}}/{settings.epochs}  loss {loss:.4f}  "
                           f"test {test_loss:.4f}")
                if signum := stop_requested():
                    break
        run.save()
    if signum and len(run.history) < settings.epochs:
        raise Stopped(signum)
    processes.on_rank_0(print_summary, model, train_images, test_images, len(run.history), start)


def warn(settings, train_images):
    """Say on stderr what makes the training slow or poor, before it begins."""
    if settings.batch_size > len(train_images):
        print(f"warning: -b {settings.batch_size} holds all images: an epoch is one step", file=sys.stderr)
    device = train_images.device
    if settings.precision == "bfloat16" and not multiplies_bfloat16(device):
        print(f"warning: {device} has no bfloat16 arithmetic of its own: it is emulated, which takes longer "
              "than --precision float32", file=sys.stderr)


def build(settings, train_images):
    """Return a new model on the device of `train_images`, its optimizer and its scheduler."""
    torch.manual_seed(settings.seed)
    model = autoencoderMLP4Layer(N_bottleneck=settings.bottleneck)
    if settings.init == "mean":
        start_from_mean(model, data.mean_image(train_images).cpu())
    model.to(train_images.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, fused=True)
    return model, optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "min")


def evaluate(model, test_images, processes):
    """Return the MSE over the whole test set, of which each process evaluates a part."""
    part = test_images[processes.rank :: processes.world_size]
    return processes.mean(metrics.mse(model, part, part), len(part))


def require_finite(loss, model, epoch, lr):
    """Raise TrainingError if the loss or a weight is no longer a finite number."""
    broken = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if broken or not math.isfinite(loss):
        what = f"{broken[0]} became NaN or infinite" if broken else f"the loss became {loss}"
        raise TrainingError(f"{what} in epoch {epoch}: try a lower --lr than {lr:g}")


@torch.no_grad()
def print_summary(model, train_images, test_images, epochs_done, start):
    """Print what a run that began at `start` came to, and warnings on stderr of what went wrong."""
    if not epochs_done:
        print("no epochs: the weights are untrained")
    mse = metrics.mse(model, test_images, test_images).item()
    codes = torch.cat([model.encode(data.to_float(part)) for part in train_images.split(metrics.PART)])
    live, units = int((metrics.activity(codes) > 0).sum()), codes.shape[1]
    print(f"test MSE {mse:.4f}, PSNR {metrics.psnr(mse):.1f} dB; {live} of {units} bottleneck units "
          f"live on the training images; {time.perf_counter() - start:.1f} s")

    if live < units:
        print(f"warning: {units - live} of {units} bottleneck units are dead, 0 for every training image: "
              f"the code has {live} dimensions", file=sys.stderr)
    mean_image = data.mean_image(train_images).expand_as(test_images)
    if epochs_done and mse > 0.99 * F.mse_loss(mean_image, test_images):
        print("warning: the network does no better than the mean image: try another --lr, more epochs "
              "or --init mean", file=sys.stderr)


def parse(argv):
    """Return the options of the command line, and the Settings among them."""
    parser = cli.Parser(
        "train.py", "Train the lab's autoencoder, 784-392-8-392-784, on MNIST.",
        ["-z 8 -e 50 -b 2048 -s model.pth -p loss.png", "-e 100 -s model.pth -p loss.png --resume",
         "--noise 0.2 --lr 0.003 -s denoiser.pth -p denoiser.png"])
    cli.add_settings(parser, Settings)
    add = parser.add_argument_group("files").add_argument
    add("-s", "--save", type=Path, metavar="FILE",
        help="the weights, and beside them a .ckpt for --resume (default: outputs/<dataset>/model.pth)")
    add("-p", "--plot", type=Path, metavar="FILE",
        help="the loss curve, and beside it a .csv (default: outputs/<dataset>/loss.png)")
    add("--resume", action="store_true",
        help="go on from the .ckpt with the same options, up to -e epochs")
    cli.add_data_options(parser, data.DATASETS, "mnist, or glyphs without it")
    args = parser.parse_args(argv)
    return args, Settings(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Settings)})


def main(argv=None):
    """Run the command with the options `argv`, by default the process's own."""
    with cli.errors_in_one_line("train.py"):
        args, settings = parse(argv)
        with Processes(args.device) as processes:
            if settings.batch_size % processes.world_size:
                raise UsageError(f"-b {settings.batch_size}: must be a multiple of the number of processes, "
                                 f"{processes.world_size}")
            train(args, settings, processes)


if __name__ == "__main__":
    cli.prepare_streams()
    main()
