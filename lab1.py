"""The report's three tests of trained weights: reconstruction, denoising, interpolation.

    python lab1.py -l model.pth
    python lab1.py -l model.pth --explore

Writes a figure per test, one of what each bottleneck unit does, and metrics.json with the numbers over the
whole test set to outputs/<dataset>/, and opens the figures where there is a display. --explore writes a
page to play with instead.
"""

import hashlib
import json
import platform
import signal
import sys
import webbrowser
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below ends without a traceback

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from labkit import UsageError, checkpoint, cli, data, figures, metrics
from labkit.job import choose_device, exiting_on_signals, has_display
from labkit.page import explore_page
from labkit.picture import read_picture

NOISE_LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # that step 5 compares
MAX_SHOWN = 100  # images in a figure
MAX_UNITS = 30  # of the bottleneck in a figure


class Lab(NamedTuple):
    """What every test works on. Images are float32 (N, 784) in [0, 1]."""

    model: torch.nn.Module
    dataset: str  # its name
    images: torch.Tensor  # the whole test set
    labels: torch.Tensor  # int64 (N,)
    shown: torch.Tensor  # the images to draw
    names: list  # of the shown images
    partner: int  # index of the test image that step 6 goes to from the last one of an odd number
    noise: float  # of step 5
    steps: int  # of step 6
    seed: int  # of the noise


def reconstruction(lab, figure):
    """Step 4: draw input | output; return the numbers over the whole test set."""
    errors = metrics.mse_per_image(lab.model(lab.images), lab.images)
    units = lab.model.fc2.out_features
    mse, pca = errors.mean().item(), metrics.pca_mse(lab.images, units)
    digits = {digit: errors[lab.labels == digit].mean().item() for digit in lab.labels.unique().tolist()}
    print_mse("reconstruction", mse)
    print_mse(f"PCA, {units} components", pca)
    if mse > pca:
        print(f"warning: worse than PCA: were these weights trained on {lab.dataset}?", file=sys.stderr)
    print("MSE of each digit     " + "  ".join(f"{digit}: {error:.4f}" for digit, error in digits.items()))

    outputs = lab.model(lab.shown)
    captions = [f"{name}: MSE {error:.4f}"
                for name, error in zip(lab.names, metrics.mse_per_image(outputs, lab.shown))]
    title = f"Reconstruction on {lab.dataset}: input | output. MSE over the whole test set {mse:.4f}"
    figures.image_rows(figure, title, torch.stack([lab.shown, outputs], 1), captions, columns=5)
    return {"mse": mse, "psnr_db": metrics.psnr(mse), "pca_mse": pca, "pca_psnr_db": metrics.psnr(pca),
            "mse_of_each_digit": digits}


def denoising(lab, figure):
    """Step 5: draw input | with noise * N(0, 1) | output; return the numbers over the whole test set."""
    normal = metrics.normal_like(lab.images, lab.seed)
    noisy = lab.images + lab.noise * normal  # not clipped, as in the lab
    mse_before = F.mse_loss(noisy, lab.images).item()
    mse = F.mse_loss(lab.model(noisy), lab.images).item()
    print_mse(f"with {lab.noise:g} x noise", mse_before)
    print_mse("denoised", mse)

    at_noise = {noise: F.mse_loss(lab.model(lab.images + noise * normal), lab.images).item()
                for noise in NOISE_LEVELS}
    print("denoised MSE at noise " + "  ".join(f"{noise}: {error:.4f}" for noise, error in at_noise.items()))

    noisy = lab.shown + lab.noise * metrics.normal_like(lab.shown, lab.seed)
    denoised = lab.model(noisy)
    errors_before = metrics.mse_per_image(noisy, lab.shown)
    errors = metrics.mse_per_image(denoised, lab.shown)
    captions = [f"{name}: MSE {before:.4f} to {after:.4f}"
                for name, before, after in zip(lab.names, errors_before, errors)]
    rows = torch.stack([lab.shown, noisy.clamp(0, 1), denoised], 1)
    title = (f"Denoising on {lab.dataset}: input | with {lab.noise:g} x noise | output. "
             f"MSE over the whole test set {mse_before:.4f} to {mse:.4f}")
    figures.image_rows(figure, title, rows, captions, columns=2)
    return {"noise": lab.noise, "noisy_mse": mse_before, "noisy_psnr_db": metrics.psnr(mse_before),
            "mse": mse, "psnr_db": metrics.psnr(mse), "mse_at_noise": at_noise}


def interpolate(model, start, end, steps):
    """Return decoded codes, linear from those of `start` to those of `end`.

    `start` and `end` are (pairs, pixels); the result is (pairs, steps, pixels).
    """
    t = torch.linspace(0, 1, steps, device=start.device)[:, None]
    return model.decode(torch.lerp(model.encode(start)[:, None], model.encode(end)[:, None], t))


def interpolation(lab, figure):
    """Step 6: draw start | decoded codes | end for pairs of the shown images."""
    shown, names = lab.shown, lab.names
    if len(names) % 2:
        shown = torch.cat([shown, lab.images[lab.partner, None]])
        names = [*names, test_name(lab.labels, lab.partner)]
    start, end = shown[::2], shown[1::2]
    rows = torch.cat([start[:, None], interpolate(lab.model, start, end, lab.steps), end[:, None]], 1)
    captions = [f"{a} to {b}" for a, b in zip(names[::2], names[1::2])]
    title = f"Interpolation on {lab.dataset}: start | {lab.steps} decoded codes | end"
    figures.image_rows(figure, title, rows, captions, columns=1)


def bottleneck(lab, figure):
    """Draw the first shown image with each unit moved over its range; return what each unit carries."""
    codes = lab.model.encode(lab.images)
    activity = (codes > 0).float().mean(0)
    importance = metrics.importance(lab.model, codes, lab.images)
    live = int((activity > 0).sum())
    print(f"{live} of {len(activity)} units live on the test images; active on (%) "
          + " ".join(f"{100 * fraction:.0f}" for fraction in activity))

    order = (importance + (activity > 0)).argsort(descending=True)[:MAX_UNITS].tolist()  # dead ones last
    low, high = codes[:, order].quantile(torch.tensor([0.01, 0.99], device=codes.device), dim=0)
    code = lab.model.encode(lab.shown[0])
    rows, captions = [], []
    for unit, start, end in zip(order, low, high):
        moved = code.repeat(11, 1)
        moved[:, unit] = torch.linspace(start, end, 11)
        alive = activity[unit] > 0
        rows.append(lab.model.decode(moved) * (1 if alive else 0.3))
        caption = f"unit {unit}: DEAD, active on no test image"
        if alive:
            caption = (f"unit {unit}: {start:.1f} to {end:.1f}, active on {activity[unit]:.0%}, "
                       f"carries {importance[unit]:.0%}")
        captions.append(caption)

    positions = (code[order] - low) / (high - low).clamp(min=1e-12)
    examples = torch.stack([lab.shown[0], lab.model.decode(code)])
    title = f"What each unit does on {lab.dataset}: {lab.names[0]}, one unit moved over its range"
    figures.unit_rows(figure, title, examples, torch.stack(rows), captions, positions)
    return {"units": len(activity), "live_units": live, "active_fraction_of_each_unit": activity.tolist(),
            "importance_of_each_unit": importance.tolist()}


def print_mse(what, mse):
    print(f"{what:20}  MSE {mse:.5f}  PSNR {metrics.psnr(mse):4.1f} dB")


def choose(words, labels, errors):
    """Return what the words of -i name, indices of test images and paths of pictures, as a list.

    None at all: the first image of every digit. `errors` are the test images' MSE, for "worst" and "best"
    alone. Raises UsageError.
    """
    chosen = []
    for word in words or [f"digit={digit}" for digit in labels.unique().tolist()]:
        if word in ("worst", "best"):
            found = errors.argsort(descending=word == "worst").tolist()[:10]
        elif word.startswith("digit=") and word[6:].isdecimal():
            found = (labels == int(word[6:])).nonzero().flatten().tolist()[: 10 if words else 1]
        elif word.isdecimal():
            found = [int(word)] if int(word) < len(labels) else []
        else:
            found = [word] if Path(word).suffix or Path(word).exists() else []
        if not found:
            raise UsageError(f"-i {word}: takes indices from 0 to {len(labels) - 1}, worst, best, "
                             "digit=0 ... digit=9, and picture files")
        chosen += found
    if len(chosen) > MAX_SHOWN:
        raise UsageError(f"-i names {len(chosen)} images: a figure shows {MAX_SHOWN} at the most")
    return chosen


def test_name(labels, index):
    return f"{labels[index]}, image {index}"


TESTS = {"reconstruction": reconstruction, "denoising": denoising, "interpolation": interpolation,
         "bottleneck": bottleneck}  # the report's steps 4, 5 and 6, and one more


@torch.inference_mode()
def run(args):
    """Put the weights through the tests that `args` name."""
    cli.require_range("--noise", args.noise, 0, 10**6)
    cli.require_range("--steps", args.steps, 2, 100)
    cli.require_range("--seed", args.seed, 0, 2**63 - 1)
    device = choose_device(args.device)
    model = checkpoint.load_weights(args.load)
    trained_on = checkpoint.training_set(args.load, model)
    dataset, test_set = data.load(args.dataset or trained_on, args.data_dir, "test")
    model, images, labels = model.to(device), data.to_float(test_set.images.to(device)), test_set.labels
    errors = metrics.mse_per_image(model(images), images) if {"worst", "best"} & {*args.index} else None
    chosen = choose(args.index, labels, errors)
    shown = [images[i] if isinstance(i, int) else read_picture(i).to(device) for i in chosen]
    names = [test_name(labels, i) if isinstance(i, int) else Path(i).name for i in chosen]
    partner = (chosen[-1] + 1) % len(images) if isinstance(chosen[-1], int) else 0
    lab = Lab(model, dataset, images, labels, torch.stack(shown), names, partner, args.noise, args.steps,
              args.seed)
    out = args.out or Path("outputs", dataset)
    if args.explore:
        return explore(lab, args, out)

    names = [list(TESTS)[args.step - 4]] if args.step else list(TESTS)
    for name in names:
        checkpoint.require_writable(out / f"{name}.png")
    if not args.step:
        checkpoint.require_writable(out / "metrics.json")
    print(f"{dataset}: {len(images):,} test images through {args.load}, "
          f"{model.fc2.out_features} bottleneck units, on {device}")
    if trained_on and not args.dataset:
        print(f"its checkpoint says that it was trained on {trained_on}")

    pyplot = figures.interactive_pyplot() if has_display() and not args.no_show else None
    numbers = {"weights": str(args.load), "sha256": hashlib.sha256(args.load.read_bytes()).hexdigest(),
               "dataset": dataset, "test_images": len(images), "torch": torch.__version__,
               "python": platform.python_version()}
    contents = {}
    for name in names:
        figure = pyplot.figure(name) if pyplot else Figure()
        numbers[name] = TESTS[name](lab, figure)
        contents[f"{name}.png"] = figures.to_bytes(figure)
    if not args.step:
        contents["metrics.json"] = json.dumps(numbers, indent=2).encode() + b"\n"
    for name, content in contents.items():
        checkpoint.write(out / name, content)
    print(f"wrote {', '.join(contents)} to {out}")
    if pyplot:
        print("close the windows to end the command")
        pyplot.show()


def explore(lab, args, out):
    """Write a page to play with the network, and open it where there is a display."""
    path = out / "explore.html"
    checkpoint.require_writable(path)
    importance = metrics.importance(lab.model, lab.model.encode(lab.images), lab.images)
    page = explore_page(lab.model, lab.images, lab.labels, importance, lab.dataset, args.load.name)
    checkpoint.write(path, page.encode())
    print(f"wrote {path}: open it in any browser, it needs no network")
    if has_display() and not args.no_show:
        webbrowser.open(path.resolve().as_uri())


def parse(argv):
    """Return the options of the command line."""
    parser = cli.Parser("lab1.py", "Put trained weights through the report's three tests.")
    add = parser.add_argument
    add("-l", "--load", type=Path, required=True, metavar="FILE",
        help="the weights, a state_dict of the lab's network")
    add("-i", "--index", nargs="+", default=[], metavar="N",
        help="images to show: indices of test images, worst, best, digit=7, or picture files of your own "
             "digits (default: the first test image of every digit)")
    add("--step", type=int, choices=(4, 5, 6),
        help="the report's step: 4 reconstruction, 5 denoising, 6 interpolation (default: all)")
    add("--noise", type=float, default=0.2, metavar="S",
        help="step 5 adds S * N(0, 1) (default: %(default)s)")
    add("--steps", type=int, default=8, metavar="N",
        help="images that step 6 decodes from start to end (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of the noise (default: %(default)s)")
    add("--out", type=Path, metavar="DIR",
        help="folder of the figures and metrics.json (default: outputs/<dataset>)")
    add("--explore", action="store_true",
        help="write explore.html instead, a page to play with the network, and open it in the browser")
    add("--no-show", action="store_true",
        help="open no windows and no browser (without a display none open anyway)")
    parser.add_shared_options(data.DATASETS)
    return parser.parse_args(argv)


def main(argv=None):
    """Run the command with the options `argv`, by default the process's own."""
    with cli.errors_in_one_line("lab1.py"), exiting_on_signals():
        return run(parse(argv))


if __name__ == "__main__":
    cli.prepare_streams()
    main()
