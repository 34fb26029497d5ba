"""The report's three tests of trained weights: reconstruction, denoising, interpolation.

    python lab1.py -l model.pth
    python lab1.py -l model.pth --explore

Writes to outputs/<dataset>/ a figure per test, one of what each bottleneck unit does, and metrics.json with
the numbers over the whole test set, and opens the figures if there is a display. --explore writes a page to
play with instead.
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
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends without a traceback

import torch
from matplotlib.figure import Figure

from labkit import checkpoint, cli, data, figures, files, metrics, selection
from labkit.job import choose_device, exiting_on_signals
from labkit.page import explore_page, require_room

MAX_UNITS_DRAWN = 29  # with the input 10 rows of 3


class Lab(NamedTuple):
    """What every test gets. Images are float32 (N, 784) in [0, 1]."""

    model: torch.nn.Module
    weights: str  # their file, as figures show it
    dataset: str  # its name
    images: torch.Tensor  # the whole test set
    labels: torch.Tensor  # int64 (N,)
    shown: torch.Tensor  # the images to draw
    names: list  # of the shown images
    noise: float  # of step 5
    steps: int  # of step 6
    seed: int  # of the noise


def reconstruction(lab, figure):
    """Step 4: draw input | output; return the numbers over the whole test set."""
    numbers = metrics.reconstruction(lab.model, lab.images, lab.labels)
    print_mse("reconstruction", numbers["mse"])
    print_mse(f"PCA, {lab.model.fc2.out_features} components", numbers["pca_mse"])
    print_numbers("MSE of each digit", numbers["mse_of_each_digit"])
    if numbers["mse"] > numbers["pca_mse"]:
        print(f"warning: worse than PCA: were these weights trained long enough, and on {lab.dataset}?",
              file=sys.stderr)

    outputs = lab.model(lab.shown)
    errors = metrics.mse_per_image(outputs, lab.shown)
    captions = [f"{name}: MSE {error:.4f}" for name, error in zip(lab.names, errors)]
    title = (f"Reconstruction on {lab.dataset} by {lab.weights}\n"
             f"input | output. MSE over the whole test set: {numbers['mse']:.4f}")
    rows = torch.stack([lab.shown, outputs], 1)
    figures.image_rows(figure, title, rows, captions, columns=5)
    return numbers


def denoising(lab, figure):
    """Step 5: draw clean | with noise * N(0, 1) | output; return the numbers over the whole test set."""
    numbers = metrics.denoising(lab.model, lab.images, lab.noise, lab.seed)
    print_mse(f"with {lab.noise:g} x noise", numbers["noisy_mse"])
    print_mse("the same, clipped", numbers["clipped_mse"])
    print_mse("denoised", numbers["mse"])
    print_numbers("denoised MSE at noise", numbers["mse_at_noise"])

    noisy = lab.shown + lab.noise * metrics.normal_like(lab.shown, lab.seed)
    outputs = lab.model(noisy)
    before = metrics.mse_per_image(noisy, lab.shown)
    after = metrics.mse_per_image(outputs, lab.shown)
    captions = [f"{name}: MSE {a:.4f} → {b:.4f}" for name, a, b in zip(lab.names, before, after)]
    title = (f"Denoising on {lab.dataset} by {lab.weights}\n"
             f"clean | with {lab.noise:g} × noise, drawn clipped | output. "
             f"MSE over the whole test set: {numbers['noisy_mse']:.4f} → {numbers['mse']:.4f}")
    rows = torch.stack([lab.shown, noisy.clamp(0, 1), outputs], 1)
    figures.image_rows(figure, title, rows, captions, columns=5)
    return numbers


def interpolation(lab, figure):
    """Step 6: draw start | decoded codes | end for pairs of images.

    The last test image is added to an odd number of images.
    """
    shown, names = lab.shown, lab.names
    if len(names) % 2:
        shown = torch.cat([shown, lab.images[-1:]])
        names = [*names, selection.test_image_name(lab.labels, len(lab.images) - 1)]

    start, end = shown[::2], shown[1::2]
    captions = [f"{a} → {b}" for a, b in zip(names[::2], names[1::2])]
    title = (f"Interpolation on {lab.dataset} by {lab.weights}\n"
             f"start | {lab.steps} images decoded on the line between the two codes | end")
    rows = torch.cat([start[:, None], interpolate(lab.model, start, end, lab.steps), end[:, None]], 1)
    figures.image_rows(figure, title, rows, captions, columns=1)
    return {"steps": lab.steps}


def interpolate(model, start, end, steps):
    """Return images (pairs, steps, pixels) decoded from `steps` codes on the line between two images' codes.

    `start` and `end` are images (pairs, pixels).
    """
    t = torch.linspace(0, 1, steps, device=start.device)[:, None]
    codes = torch.lerp(model.encode(start)[:, None], model.encode(end)[:, None], t)
    return model.decode(codes)


def bottleneck(lab, figure):
    """Draw the first shown image with each unit moved over its range; return the numbers of the units."""
    codes = lab.model.encode(lab.images)
    activity = (codes > 0).float().mean(0)
    importance = metrics.importance(lab.model, codes, lab.images)
    live, units = int((activity > 0).sum()), len(activity)
    print(f"{live} of {units} units live on the test images")

    score = importance + (activity > 0)  # live units before dead ones
    order = score.argsort(descending=True)[:MAX_UNITS_DRAWN]
    low, high = codes[:, order].quantile(torch.tensor([0.01, 0.99], device=codes.device), dim=0)

    code = lab.model.encode(lab.shown[0])
    rows = []
    for unit, start, end in zip(order, low.tolist(), high.tolist()):
        moved = code.repeat(11, 1)
        moved[:, unit] = torch.linspace(start, end, 11)
        rows.append(lab.model.decode(moved))

    captions = [figures.unit_caption(*values)
                for values in zip(order, low, high, activity[order], importance[order])]
    positions = (code[order] - low) / (high - low).clamp(min=1e-12)
    examples = torch.stack([lab.shown[0], lab.model.decode(code)])
    title = (f"Bottleneck of {lab.weights} on {lab.dataset}: {lab.names[0]}, "
             "one unit moved from its percentile 1 to 99\nred: this image's value. carries: "
             "the unit's share of the error added by fixing each unit in turn at its mean")
    if len(order) < units:
        title += f"\n{len(order)} of {units} units, the most important first"
    figures.unit_rows(figure, title, examples, torch.stack(rows), captions, positions)
    return {"units": units, "live_units": live, "active_fraction_of_each_unit": activity.tolist(),
            "importance_of_each_unit": importance.tolist()}


TESTS = {"reconstruction": reconstruction, "denoising": denoising, "interpolation": interpolation,
         "bottleneck": bottleneck}
STEPS = {4: "reconstruction", 5: "denoising", 6: "interpolation"}  # of the report


def print_mse(what, mse):
    print(f"{what:21}  MSE {mse:.5f}  PSNR {metrics.psnr(mse):4.1f} dB")


def print_numbers(what, numbers):
    print(f"{what:21}  " + "  ".join(f"{key}: {number:.4f}" for key, number in numbers.items()))


def set_up(args):
    """Return the Lab that the options `args` describe. Raises LabError, OSError."""
    device = choose_device(args.device)
    model = checkpoint.load_weights(args.load)
    trained_on = checkpoint.dataset_trained_on(args.load, model)
    dataset, test_set = data.load(args.dataset or trained_on, args.data_dir, "test")
    model, images, labels = model.to(device), data.to_float(test_set.images.to(device)), test_set.labels

    codes = model.encode(images)
    if not (codes.isfinite().all() and model.decode(codes).isfinite().all()):
        raise checkpoint.CheckpointError(f"{args.load} gives codes or outputs that are not finite: train the "
                                         "network again with a lower --lr")
    shown, names = selection.select(args.index, model, images, labels)

    print(f"{dataset}: {len(images):,} test images through {args.load}, "
          f"{model.fc2.out_features} bottleneck units, on {device}")
    if trained_on and not args.dataset:
        print(f"the checkpoint beside {args.load} says that it was trained on {trained_on}")
    weights = figures.label(str(Path(*args.load.parts[-2:])), 60)
    return Lab(model, weights, dataset, images, labels, shown, names, args.noise, args.steps, args.seed)


@torch.inference_mode()
def run(args):
    """Put the weights through the tests that the options `args` choose."""
    cli.require_range("--noise", args.noise, 0, 10**6)
    cli.require_range("--steps", args.steps, 2, 100)
    cli.require_range("--seed", args.seed, 0, 2**63 - 1)
    lab = set_up(args)
    out = args.out or Path("outputs", lab.dataset)
    if args.explore:
        explore(lab, args, out)
    else:
        run_tests(lab, args, out)


def run_tests(lab, args, out):
    """Write a figure per test to the folder `out`, and metrics.json if all tests run; show the figures."""
    tests = [STEPS[args.step]] if args.step else list(TESTS)
    names = [f"{test}.png" for test in tests] + ([] if args.step else ["metrics.json"])
    files.require_writable(*(out / name for name in names))

    pyplot = None if args.no_show else figures.interactive_pyplot()
    results = {"weights": str(args.load), "sha256": hashlib.sha256(args.load.read_bytes()).hexdigest(),
               "dataset": lab.dataset, "test_images": len(lab.images), "torch": torch.__version__,
               "python": platform.python_version()}
    contents = {}  # of each file
    for test in tests:
        figure = pyplot.figure(test) if pyplot else Figure()
        results[test] = TESTS[test](lab, figure)
        contents[f"{test}.png"] = figures.to_bytes(figure)
    if not args.step:
        contents["metrics.json"] = json.dumps(results, indent=2).encode() + b"\n"

    for name, content in contents.items():
        files.write(out / name, content)
    print(f"wrote {', '.join(contents)} to {out}")
    if pyplot:
        print("close the windows to end the command")
        pyplot.show()


def explore(lab, args, out):
    """Write a page to play with the network, and open it where there is a display."""
    path = out / "explore.html"
    require_room(lab.model)
    files.require_writable(path)
    importance = metrics.importance(lab.model, lab.model.encode(lab.images), lab.images)
    page = explore_page(lab.model, lab.images, lab.labels, importance, lab.dataset, lab.weights)
    files.write(path, page.encode())
    print(f"wrote {path}: open it in any browser, it needs no network")
    if figures.has_display() and not args.no_show:
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
    add("--step", type=int, choices=STEPS,
        help="the report's step: 4 reconstruction, 5 denoising, 6 interpolation (default: all)")
    add("--noise", type=float, default=0.2, metavar="S",
        help="step 5 adds S * N(0, 1) (default: %(default)s)")
    add("--steps", type=int, default=8, metavar="N",
        help="images that step 6 decodes from start to end (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the noise (default: %(default)s)")
    add("--out", type=Path, metavar="DIR",
        help="folder of the figures and metrics.json (default: outputs/<dataset>)")
    add("--explore", action="store_true",
        help="write explore.html instead, a page to play with the network, and open it in the browser")
    add("--no-show", action="store_true",
        help="open no windows and no browser (without a display none open anyway)")
    parser.add_shared_options(data.DATASETS, "what the weights were trained on, if known; else as train.py")
    return parser.parse_args(argv)


def main(argv=None):
    """Run the command with the options `argv`, by default the process's own."""
    with cli.errors_in_one_line("lab1.py"), exiting_on_signals():
        run(parse(argv))


if __name__ == "__main__":
    cli.prepare_streams()
    main()
