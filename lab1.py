"""The report's three tests of trained weights: reconstruction, denoising, interpolation.

    python lab1.py -l model.pth
    python lab1.py -l model.pth --explore

Writes a figure a test, reconstruction.png, denoising.png and interpolation.png, one of what each unit does,
bottleneck.png, and metrics.json with the figures over the whole test set to outputs/<dataset>/, and opens
the figures where there is a display. --explore opens a window with a slider a unit instead.
"""

import argparse
import json
import math
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C just ends it: a figure is written whole or not at all

import matplotlib.pyplot as plt
import torch
from matplotlib.backends.registry import BackendFilter, backend_registry

import checkpoint
import data
from explore import Explorer


def psnr(mse):
    """Peak signal-to-noise ratio in dB of images in [0, 1]: -10 log10(MSE)."""
    return -10 * math.log10(max(mse, 1e-12))  # JSON knows no infinity


def pca_mse(images, components):
    """Return the MSE of the best linear code of `components` numbers on `images`, float32 (N, pixels).

    The residual variance of a PCA of these very images (Eckart and Young, 1936): no linear autoencoder of
    that size can do better on them.
    """
    variances = torch.linalg.eigvalsh(images.T.cpu().double().cov())  # ascending
    return variances[: max(0, len(variances) - components)].sum().item() * (1 - 1 / len(images)) / images.shape[1]


def add_noise(images, noise, seed):
    """Return `images` + `noise` * N(0, 1), the same on every device for the same seed; not clipped, as in the lab."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images.shape, generator=generator).to(images.device).mul_(noise).add_(images)  # in place, as below: 0.3 s in all


def mean_error(outputs, images):
    """Return the MSE of each image, (N,)."""
    return (outputs - images).square_().mean(1)


def interpolate(model, start, end, steps):
    """Return (pairs, steps, pixels): decoded codes, linear from `start`'s to `end`'s, both (pairs, pixels)."""
    t = torch.linspace(0, 1, steps, device=start.device)[:, None]
    return model.decode(torch.lerp(model.encode(start)[:, None], model.encode(end)[:, None], t))


def carried(model, codes, images):
    """Return the share of the reconstruction that each unit carries, (N_bottleneck,); the sum is 1, or 0 if none does.

    The rise of the MSE over `images` (N, pixels) when the unit is held at its mean over `codes`
    (N, N_bottleneck), the others as they are; 0 for a unit that never fires.
    """
    rises = []
    for unit in range(codes.shape[1]):
        held = codes.clone()
        held[:, unit] = codes[:, unit].mean()
        rises.append(mean_error(model.decode(held), images).mean())
    rises = (torch.stack(rises) - mean_error(model.decode(codes), images).mean()).clamp(min=0)
    return rises / rises.sum().clamp(min=1e-12)


def units(model, codes, code, fires, shares, title):
    """Return a figure with one row a unit, the one that carries most first: `code` (N_bottleneck,) decoded with the
    unit moved from the 1st to the 99th percentile of `codes`; the rows of dead units are dim."""
    order = (shares + (fires > 0)).argsort(descending=True).tolist()  # the dead last
    low, high = codes.quantile(torch.tensor([0.01, 0.99], device=codes.device), dim=0)
    rows, captions = [], []
    for unit in order:
        moved = code.repeat(11, 1)
        moved[:, unit] = torch.linspace(low[unit].item(), high[unit].item(), 11)
        rows.append(model.decode(moved) * (1 if fires[unit] > 0 else 0.3))
        captions.append(f"unit {unit}: {low[unit]:.1f} to {high[unit]:.1f}, fires on {fires[unit]:.0%}, carries {shares[unit]:.0%}"
                        if fires[unit] > 0 else f"unit {unit}: DEAD, fires on no test image")
    return strips(title, torch.stack(rows), captions, 1 if len(order) <= 8 else 2)


def strips(title, rows, captions, columns):
    """Return a figure with one strip of grey images for each of `rows`, (count, images, 784) in [0, 1]."""
    count, length, _ = rows.shape
    height = -(-count // columns)
    figure = plt.figure(figsize=(10, 0.5 + height * (9.8 / columns / length + 0.22)), layout="constrained")
    figure.suptitle(title)
    for i, (row, caption) in enumerate(zip(rows, captions)):
        picture = torch.nn.functional.pad(row.view(length, 28, 28), (1, 1), value=1)  # a white gap between two images
        axes = figure.add_subplot(height, columns, i + 1, xticks=[], yticks=[])  # hidden ticks are laid out too: 0.2 s a figure
        axes.imshow(picture.permute(1, 0, 2).flatten(1).numpy(force=True), cmap="gray", vmin=0, vmax=1)
        axes.set_title(caption, fontsize=9)
        axes.axis("off")
    return figure


def parser():
    parser = argparse.ArgumentParser(prog="lab1.py", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Put trained weights through the report's three tests. The two commands of the lab:\n\n"
        "  python train.py -z 8 -e 50 -b 2048 -s model.pth -p loss.png\n  python lab1.py -l model.pth")
    parser.error = lambda message: parser.exit(2, f"lab1.py: {message} (see --help)\n")  # one line, without the usage
    add = parser.add_argument
    add("-l", "--load", type=Path, required=True, metavar="FILE", help="the weights, a state_dict of the lab's network")
    add("-i", "--index", nargs="+", default=[], metavar="N", help="test images to show: indices, worst, best, digit=7 "
        "(default: the first of every digit)")
    add("--step", type=int, choices=(4, 5, 6), help="the report's step: 4 reconstruction, 5 denoising, 6 interpolation "
        "(default: all)")
    add("--noise", type=float, default=0.2, metavar="S", help="step 5 adds S * N(0, 1) (default: %(default)s)")
    add("--steps", type=int, default=8, metavar="N", help="images that step 6 decodes from start to end (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of the noise (default: %(default)s)")
    add("--dataset", choices=data.DATASETS, help="default: mnist, and glyphs where mnist can't be had")
    add("--data-dir", default="data", metavar="DIR", help="where the data set lies or goes (default: %(default)s)")
    add("--out", type=Path, metavar="DIR", help="folder of the figures and metrics.json (default: outputs/<dataset>)")
    add("--explore", action="store_true", help="open a window with a slider for each unit instead")
    add("--no-show", action="store_true", help="open no windows (without a display none open anyway)")
    add("--device", type=data.device, default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, cuda:1 (default: cuda if there is one, else cpu)")
    return parser


def choose(wanted, labels, errors):
    """Return the test images that the words of -i name, as indices; none: the first of every digit. Raises ValueError."""
    chosen = []
    for word in wanted or [f"digit={digit}" for digit in labels.unique().tolist()]:
        if word in ("worst", "best"):
            chosen += errors.argsort(descending=word == "worst")[:10].tolist()
        elif word.startswith("digit="):
            of_digit = (labels == int(word[6:])).nonzero().flatten().tolist()
            chosen += of_digit[: 10 if wanted else 1]
            if not of_digit:
                raise ValueError(word)
        elif 0 <= int(word) < len(labels):
            chosen.append(int(word))
        else:
            raise ValueError(word)
    return chosen


def interactive():
    """Return whether matplotlib's backend opens windows."""
    return plt.get_backend().lower() not in backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE)


@torch.inference_mode()
def run(argv):
    commands = parser()
    args = commands.parse_args(argv)
    for option, value, low, high in (("--noise", args.noise, 0, 10**6), ("--steps", args.steps, 2, 100),
                                     ("--seed", args.seed, 0, 2**63 - 1)):
        if not low <= value <= high:
            commands.error(f"{option} {value}: must be {low} or more, at most {high}")
    if args.explore and not interactive():
        sys.exit("lab1.py: --explore needs a window: on a desktop pip install pyqt6, for the browser "
                 "pip install tornado and set MPLBACKEND=webagg")
    model = checkpoint.load_weights(args.load).to(args.device)
    name, test = data.load(args.dataset, args.data_dir, "test", device=args.device)

    images = data.to_float(test.images)
    noisy = add_noise(images, args.noise, args.seed)
    codes = model.encode(images)
    outputs, denoised = model.decode(codes), model(noisy)
    errors, noisy_errors, denoised_errors = (mean_error(x, images) for x in (outputs, noisy, denoised))
    fires = (codes > 0).float().mean(0)
    try:
        shown = choose(args.index, test.labels, errors)
    except ValueError:
        commands.error(f"-i {' '.join(args.index)}: takes indices from 0 to {len(test) - 1}, worst, best, digit=0 ... digit=9")

    if args.explore:
        first, second = (shown + [(shown[0] + 1) % len(images)])[:2]
        explorer = Explorer(model, images, test.labels, first, second)
        plt.show()
        return explorer  # its widgets answer as long as somebody holds it

    out = args.out or Path("outputs", name)
    checkpoint.require_writable(out / "metrics.json")
    shares = carried(model, codes, images)
    levels = [level / 10 for level in range(7)]
    mse = {"reconstruction": errors.mean().item(), "pca": pca_mse(images, codes.shape[1]),
           "noisy": noisy_errors.mean().item(), "denoised": denoised_errors.mean().item()}
    metrics = {
        "dataset": name,
        "test_images": len(images),
        "bottleneck": codes.shape[1],
        "live_units": int((fires > 0).sum()),
        "share_of_images_on_which_each_unit_fires": fires.tolist(),
        "share_of_reconstruction_that_each_unit_carries": shares.tolist(),
        "noise": args.noise,
        "mse": mse,
        "psnr_db": {key: psnr(value) for key, value in mse.items()},
        "denoised_mse_at_noise": {level: mean_error(model(add_noise(images, level, args.seed)), images).mean().item() for level in levels},
        "mse_of_each_digit": {str(d): errors[test.labels == d].mean().item() for d in test.labels.unique().tolist()},
    }
    print(f"{name}: {len(images):,} test images through {args.load}, {codes.shape[1]} bottleneck units, on {args.device}")
    for key, text in (("reconstruction", "reconstruction"), ("pca", f"PCA, {codes.shape[1]} components"),
                      ("noisy", f"with {args.noise:g} x noise"), ("denoised", "denoised")):
        print(f"{text:20} MSE {mse[key]:.5f}  PSNR {psnr(mse[key]):4.1f} dB")
    print(f"{'MSE of each digit':20} " + "  ".join(f"{d}: {e:.4f}" for d, e in metrics["mse_of_each_digit"].items()))
    print(f"{metrics['live_units']} of {len(fires)} units live; fire on (%) " + " ".join(f"{100 * f:.0f}" for f in fires))

    print("denoised MSE at noise " + "  ".join(f"{n}: {e:.4f}" for n, e in metrics["denoised_mse_at_noise"].items()))

    figures = {}
    if args.step in (None, 4):
        pairs = torch.stack([images[shown], outputs[shown]], 1)
        figures["reconstruction"] = strips(f"Reconstruction on {name}: input | output, mean MSE {mse['reconstruction']:.4f}",
            pairs, [f"image {i}: MSE {errors[i]:.4f}" for i in shown], 5)
    if args.step in (None, 5):
        triples = torch.stack([images[shown], noisy[shown].clamp(0, 1), denoised[shown]], 1)
        figures["denoising"] = strips(f"Denoising on {name}: input | with {args.noise:g} x noise | output, "
            f"mean MSE {mse['noisy']:.4f} to {mse['denoised']:.4f}",
            triples, [f"image {i}: MSE {noisy_errors[i]:.4f} to {denoised_errors[i]:.4f}" for i in shown], 2)
    if args.step in (None, 6):
        starts, ends = shown[::2], shown[1::2] + [(shown[-1] + 1) % len(images)] * (len(shown) % 2)
        between = interpolate(model, images[starts], images[ends], args.steps)
        rows = torch.cat([images[starts][:, None], between, images[ends][:, None]], 1)
        figures["interpolation"] = strips(f"Interpolation on {name}: start | {args.steps} decoded codes | end",
            rows, [f"{test.labels[a]} to {test.labels[b]}" for a, b in zip(starts, ends)], 1)
    if args.step is None:
        figures["bottleneck"] = units(model, codes, codes[shown[0]], fires, shares,
            f"What each unit does on {name}: image {shown[0]}, one unit moved over its range")
    for key, figure in figures.items():
        checkpoint.write(out / f"{key}.png", checkpoint.to_image(figure))
    checkpoint.write(out / "metrics.json", json.dumps(metrics, indent=2).encode() + b"\n")
    print(f"wrote {', '.join(f'{key}.png' for key in figures)}, metrics.json to {out}")
    if not args.no_show and interactive():
        plt.show()


def main(argv=None):
    try:
        return run(argv)
    except (data.DataError, checkpoint.CheckpointError, OSError) as error:
        sys.exit(f"lab1.py: {error}")


if __name__ == "__main__":
    main()
