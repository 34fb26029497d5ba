"""Put trained weights through the report's three tests, and look inside.

    python lab1.py -l model.pth
    python lab1.py -l model.pth --explore

Writes to outputs/ a figure per experiment and metrics.json with the numbers over the whole test set, and
opens the figures if there is a display. --explore writes a page to play with instead.
"""

import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback

import torch

from labkit import cli, comparison, data, figures, metrics, results, testset
from labkit.processes import choose_device
from model import load

NOISE_LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # compared by denoising()
MAX_UNITS_DRAWN = 29  # with the input 10 rows of 3


def reconstruction(lab, figure):
    """Step 4: draw input | output; return the numbers over the whole test set."""
    errors = metrics.mse_per_image(lab.model(lab.images), lab.images)
    mse = errors.mean().item()
    units = lab.model.fc2.out_features
    pca_mse = lab.pca_mse[min(units, 784)]
    of_digits = {digit: errors[lab.labels == digit].mean().item() for digit in lab.labels.unique().tolist()}
    print_mse("reconstruction", mse)
    print_mse(f"PCA, {units} components", pca_mse)
    print_row("digit", of_digits)
    print_row("its MSE", of_digits.values(), ".4f")
    if mse > pca_mse:
        print(f"warning: worse than PCA: were these weights trained long enough, and on {lab.dataset}?",
              file=sys.stderr)

    outputs = lab.model(lab.shown.images)
    errors = metrics.mse_per_image(outputs, lab.shown.images).tolist()
    own = {name: x for name, x, row in zip(lab.shown.names, errors, lab.shown.rows) if row is None}
    for name in own:
        print_mse(name, own[name])
    title = (f"Reconstruction on {lab.dataset} by {lab.weights}\n"
             f"input | output. MSE over the whole test set: {mse:.4f}, PCA's {pca_mse:.4f}")
    captions = [f"{name}: MSE {error:.4f}" for name, error in zip(lab.shown.names, errors)]
    figures.photo_rows(figure, title, lab.shown.photos, [lab.shown.images, outputs], captions)
    return {"mse": mse, "psnr_db": metrics.psnr(mse), "pca_mse": pca_mse,
            "pca_psnr_db": metrics.psnr(pca_mse), "mse_of_each_digit": of_digits, "mse_of_own_pictures": own}


def denoising(lab, figure):
    """Step 5: draw clean | with noise * N(0, 1) | output; return the numbers over the whole test set.

    The network gets noisy images unclipped; clipping to [0, 1] is the simplest way to remove noise.
    """
    clipped, noisy, output = errors_with_noise(lab, lab.images, lab.normal)
    numbers = {"noise": lab.noise, "clipped_mse": clipped.mean().item(), "noisy_mse": noisy.mean().item(),
               "mse": output.mean().item(),
               "closer_than_clipped": (output < clipped).float().mean().item(),
               "closer_than_noisy": (output < noisy).float().mean().item()}
    levels = {level: metrics.mse(lab.model, lab.images + level * lab.normal, lab.images).item()
              for level in NOISE_LEVELS}
    closer = (f"{numbers['closer_than_clipped']:.1%} of the outputs are closer to the clean image than the "
              f"clipped input, {numbers['closer_than_noisy']:.1%} than the unclipped")
    print_mse(f"{lab.noise:g} x noise, clipped", numbers["clipped_mse"])
    print_mse("the same, unclipped", numbers["noisy_mse"])
    print_mse("denoised", numbers["mse"])
    print(closer)
    if numbers["mse"] > numbers["clipped_mse"]:
        print("clipping alone does better than this network: train.py --noise trains one to denoise")
    print_row("noise", levels)
    print_row("denoised MSE", levels.values(), ".4f")

    shown, rows = lab.shown.images, [row or 0 for row in lab.shown.rows]  # own pictures: image 0's noise
    noisy = shown + lab.noise * lab.normal[rows]
    errors = errors_with_noise(lab, shown, lab.normal[rows])
    captions = [f"{name}: {a:.4f} → {b:.4f}" for name, a, _, b in zip(lab.shown.names, *errors)]
    title = (f"Denoising on {lab.dataset} by {lab.weights}: clean | with {lab.noise:g} × noise | output\n"
             "MSE of the noisy image, clipped as drawn → of the output. Over the whole test set: "
             f"{numbers['clipped_mse']:.4f} ({numbers['noisy_mse']:.4f} unclipped) → {numbers['mse']:.4f}\n"
             f"{closer}")
    figures.image_rows(figure, title, [shown, noisy.clamp(0, 1), lab.model(noisy)], captions)
    return numbers | {"noisy_psnr_db": metrics.psnr(numbers["noisy_mse"]),
                      "psnr_db": metrics.psnr(numbers["mse"]), "mse_at_noise": levels}


def errors_with_noise(lab, images, normal):
    """Return the MSE of each image with noise, clipped and unclipped, and of the network's output for it."""
    noisy = images + lab.noise * normal
    return [metrics.mse_per_image(x, images) for x in (noisy.clamp(0, 1), noisy, lab.model(noisy))]


def interpolation(lab, figure):
    """Step 6: draw start | images decoded on the line between the two codes | end, for pairs of images."""
    shown = testset.in_pairs(lab.shown, lab.images, lab.labels)
    start, end = shown.images[::2], shown.images[1::2]
    t = torch.linspace(0, 1, lab.steps, device=start.device)[:, None, None]
    decoded = lab.model.decode(torch.lerp(lab.model.encode(start), lab.model.encode(end), t))
    title = (f"Interpolation on {lab.dataset} by {lab.weights}\n"
             f"start | {lab.steps} images decoded on the line between the two codes | end")
    captions = [f"{a} → {b}" for a, b in zip(shown.names[::2], shown.names[1::2])]
    figures.interpolation_rows(figure, title, [start, *decoded, end], captions)
    return {"steps": lab.steps}


def bottleneck(lab, figure):
    """Draw the first shown image with each unit moved over its range; return the numbers of the units."""
    codes = lab.model.encode(lab.images)
    activity = metrics.activity(codes)
    importance = metrics.importance(lab.model, codes, lab.images)
    live, units = int((activity > 0).sum()), len(activity)
    print(f"{live} of {units} units live on the test images")

    order = importance.argsort(descending=True)[:MAX_UNITS_DRAWN]  # that of dead units is 0
    low, high = codes[:, order].quantile(torch.tensor([0.01, 0.99], device=codes.device), dim=0)
    code = lab.model.encode(lab.shown.images[0])
    rows, captions = [], []
    for place, (unit, start, end) in enumerate(zip(order.tolist(), low.tolist(), high.tolist()), 1):
        moved = code.repeat(11, 1)
        moved[:, unit] = torch.linspace(start, end, 11)
        rows.append(lab.model.decode(moved))
        live_caption = (f"{place}. unit {unit}: {start:.1f} to {end:.1f}, active on {activity[unit]:.1%}, "
                        f"importance {importance[unit]:.1%}")
        captions.append(live_caption if activity[unit] else f"unit {unit}: DEAD, active on no test image")

    title = f"Bottleneck of {lab.weights} on {lab.dataset}, from {lab.shown.names[0]}"
    if len(order) < units:
        title += f": {len(order)} of {units} units, the most important first"
    examples = torch.stack([lab.shown.images[0], lab.model.decode(code)])
    positions = (code[order] - low) / (high - low).clamp(min=1e-12)
    figures.unit_rows(figure, title, examples, torch.stack(rows), captions, positions)
    return {"units": units, "live_units": live, "active_fraction_of_each_unit": activity.tolist(),
            "importance_of_each_unit": importance.tolist()}


def codes(lab, figure):
    """Draw the codes in a plane | images decoded over it, and below them images decoded from random codes.

    Return the plane's share of the codes' variance, and of how many images the nearest other one is of the
    same digit: by their codes, by PCA's codes of that size and by all pixels.
    """
    encoded = lab.model.encode(lab.images)
    units = encoded.shape[1]
    pca_codes = (lab.images - lab.images.mean(0)) @ lab.components[:units].T
    centre, axes, share = metrics.plane(encoded)
    same, pca_same, pixels_same = (metrics.neighbour_accuracy(vectors, lab.labels)
                                   for vectors in (encoded, pca_codes, lab.images))
    neighbours = (f"nearest neighbour of the same digit: {same:.1%} by code, {pca_same:.1%} by PCA with "
                  f"{units} numbers, {pixels_same:.1%} by all pixels")
    print(f"the plane that codes.png draws holds {share:.1%} of the codes' variance")
    print(neighbours)

    coordinates = (encoded - centre) @ axes.T
    if units == 1:  # no second coordinate: each digit gets a height of its own
        coordinates[:, 1] = lab.labels + 0.2 * metrics.normal_like(encoded[:, 0], lab.seed)
    low = coordinates.quantile(0.002, 0)
    size = (coordinates.quantile(0.998, 0) - low).clamp(min=1e-6)
    x, y = low[:, None] + size[:, None] * (torch.arange(15).to(encoded) + 0.5) / 15  # images' centres
    grid = torch.stack(torch.meshgrid(x, y.flip(0), indexing="xy"), -1)
    decoded = lab.model.decode((centre + grid @ axes).clamp(min=0))

    random = lab.model.decode(metrics.random_like(encoded, 10, lab.seed))
    pairs = torch.stack([random, lab.images[metrics.nearest(random, lab.images)]], 1)
    title = (f"Codes of {lab.weights} on {lab.dataset}: {share:.1%} of their variance is in this plane\n"
             f"{neighbours}")
    names = (["unit 0", "digit"] if units == 1 else ["unit 0", "unit 1"] if units == 2 else
             ["first principal component of the codes", "second principal component"])
    figures.code_map(figure, title, names, coordinates, lab.labels, low, low + size, decoded, pairs)
    return {"plane_variance": share, "neighbour_accuracy": same, "pca_neighbour_accuracy": pca_same,
            "pixel_neighbour_accuracy": pixels_same}


STEPS = {"4": reconstruction, "5": denoising, "6": interpolation}  # of the report
EXPERIMENTS = [*STEPS.values(), bottleneck, codes]


def print_mse(what, mse):
    print(f"{what:21}  MSE {mse:.4f}  PSNR {metrics.psnr(mse):4.1f} dB")


def print_row(what, values, form=""):
    print(f"{what:21}  " + "  ".join(f"{value:{form or '6'}}" for value in values))


def parse(argv):
    """Return the options of the command line. Raises UsageError."""
    parser = cli.Parser(
        "lab1.py", "Put trained weights through the report's three tests, look inside, or compare them.",
        ["-l model.pth", "-l model.pth -i my7.png worst digit=7", "-l submissions", "-l model.pth --explore"])
    add = parser.add_argument_group("networks and images").add_argument
    add("-l", "--load", type=Path, nargs="+", required=True, metavar="FILE",
        help="the weights; several files or a folder of them are compared")
    add("-i", "--index", nargs="+", default=[], metavar="WORD",
        help="images to show: indices of test images, worst, best, digit=7 (ten each), or pictures of your "
             "own (default: the first image of each digit)")
    add = parser.add_argument_group("experiments").add_argument
    add("--step", choices=STEPS, nargs="+", default=[], metavar="N",
        help="4 reconstruction, 5 denoising, 6 interpolation (default: all)")
    add("--noise", type=cli.number(float, 0, 10**6), default=0.2, metavar="X",
        help="of step 5: X * N(0, 1) (default: %(default)s)")
    add("--steps", type=cli.number(int, 2, 100), default=8, metavar="N",
        help="of step 6: images in between (default: %(default)s)")
    add("--seed", type=cli.number(int, 0, 2**63 - 1), default=0, metavar="N",
        help="of noise and random codes (default: %(default)s)")
    add = parser.add_argument_group("results").add_argument
    add("--out", type=Path, metavar="DIR", help="their folder (default: outputs/<weights>)")
    add("--format", choices=("png", "pdf", "svg"), default="png", help="of figures (default: %(default)s)")
    add("--explore", action="store_true", help="write a page to play with instead, and open it")
    add("--no-show", action="store_true", help="open no windows and no browser")
    cli.add_data_options(parser, data.DATASETS, "the weights' own, or as train.py")
    args = parser.parse_args(argv)
    if args.explore:
        parser.refuse("--explore", args, "index", "step", "noise", "steps", "format")
    args.compared = comparison.find(args.load)
    if args.compared == args.load[:1]:
        args.compared = []
    else:
        parser.refuse("-l with several files", args, "index", "step", "steps", "format", "explore")
    return args


def main(argv=None):
    """Run the command with the options `argv`, by default the process's own."""
    with cli.errors_in_one_line("lab1.py"), torch.inference_mode():
        args = parse(argv)
        device = choose_device(args.device)
        if args.compared:
            out = args.out or Path("outputs", "comparison")
            sys.exit(not comparison.compare(args.compared, load, args, device, out))
        model, record = load(args.load[0])
        lab = testset.set_up(args, model, record, device)
        out = args.out or results.default_folder(args, record)
        if args.explore:
            results.explore(lab, args, record, out)
        else:
            experiments = [STEPS[step] for step in sorted({*args.step})] or EXPERIMENTS
            results.run_experiments(experiments, lab, args, record, out)


if __name__ == "__main__":
    cli.prepare_streams()
    main()
