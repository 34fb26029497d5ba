"""Every number that the commands print, store or write into a figure is that of by_numpy.py."""

import csv
import functools
import json
import types
from pathlib import Path

import by_numpy
import numpy as np
import pytest
import torch
from by_numpy import IMAGES, LABELS, TRAIN_IMAGES, decode, encode, errors, psnr, read_weights
from conftest import needs_mnist
from PIL import Image, ImageDraw

import lab1
import train
from labkit import data, metrics, picture

ROOT = Path(__file__).parent.parent
DRAWN = ("reconstruction", "denoising", "interpolation", "bottleneck", "codes")  # by lab1.py, in this order


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """by_numpy.run() in a folder with its images."""
    folder = tmp_path_factory.mktemp("numbers")
    by_numpy.write_sets(folder / "MNIST" / "raw")
    run = functools.partial(by_numpy.run, folder)
    run.folder = folder
    return run


def rounded(form, *values):
    """Return the texts that `form` may be with the values in it: two if one is halfway between two."""
    return {form.format(*(value * (1 + change) for value in values)) for change in (0, 1e-5, -1e-5)}


def flat(tree, prefix=""):
    """Return the leaves of nested dicts and lists, by their paths."""
    if not isinstance(tree, (dict, list)):
        return {prefix: tree}
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {path: leaf for key, value in entries for path, leaf in flat(value, f"{prefix}/{key}").items()}


@pytest.mark.parametrize("units, init, epochs, batch_size, lr, noise, seed", [
    (6, "mean", 3, 128, 1e-3, 0, 0), (100, "mean", 1, 330, 1e-4, 0, 5), (6, "report", 2, 200, 3e-3, 0.3, 4)])
def test_a_training(units, init, epochs, batch_size, lr, noise, seed, run):
    lines, (curve,) = run(train.main, "-z", units, "--init", init, "-e", epochs, "-b", batch_size, "--lr", lr,
                          "--noise", noise, "--seed", seed, "-s", f"{seed}.pth", "-p", f"{seed}.png")
    weights, losses, test_losses = by_numpy.initial_weights(units, seed, init), [], []
    for loss in by_numpy.train(weights, epochs, batch_size, lr, noise, seed):
        losses.append(loss)
        test_losses.append(errors(decode(weights, encode(weights, IMAGES)), IMAGES).mean())

    rows = list(csv.DictReader((run.folder / f"{seed}.csv").open()))
    columns = {key: [float(row[key]) for row in rows] for key in rows[0]}
    assert all(0 < seconds < 60 for seconds in columns.pop("seconds"))
    assert flat(columns) == pytest.approx(flat({
        "epoch": list(range(1, epochs + 1)), "loss": losses, "test_loss": test_losses,
        "learning_rate": [lr] * epochs}), rel=1e-5)

    saved = read_weights(run.folder / f"{seed}.pth")
    mse = errors(decode(saved, encode(saved, IMAGES)), IMAGES).mean()
    assert mse == pytest.approx(test_losses[-1], rel=1e-5)
    live = (encode(saved, TRAIN_IMAGES) > 0).any(0).sum()
    assert lines[0] == "not-mnist: 330 training and 240 test images, on cpu"
    for epoch, line in enumerate(lines[1:-2], 1):
        assert line in rounded(f"epoch {epoch}/{epochs} loss {{:.4f}} test {{:.4f}}", losses[epoch - 1],
                               test_losses[epoch - 1])
    assert lines[-2].endswith(f"{seed}.pth, {seed}.ckpt after {epochs} of {epochs} epochs")
    assert lines[-1].rpartition("; ")[0] in rounded(
        f"test MSE {{:.4f}}, PSNR {{:.1f}} dB; {live} of {units} bottleneck units live on the training "
        "images", mse, psnr(mse))

    (axes,) = curve.axes
    for line, y in zip(axes.lines, (losses, test_losses)):
        assert [*line.get_xdata()] == [*range(1, epochs + 1)]
        assert line.get_ydata() == pytest.approx(y, rel=1e-5)
    with_noise = f" with {noise:g} × noise" if noise else ""
    assert [line.get_label() for line in axes.lines] == [
        f"training images{with_noise}, mean over the epoch", "test images"]
    assert axes.get_title() in rounded(
        f"Training on not-mnist: test loss {{:.4f}} after epoch {epochs}", test_losses[-1])
    assert curve.texts[-1].get_text() == (
        f"trained on not-mnist, {epochs} epochs, bottleneck {units}, init {init}, seed {seed}, "
        f"batch size {batch_size}, lr {lr:g}, noise {noise:g}, precision float32")


# The experiments, by name: units, which of them are killed, options, and their --noise, --steps and --seed
CASES = {"dead": (6, [2], [], (0.2, 8, 0)),
         "one": (1, [], ["-i", "own.png", 5, "worst", "--noise", 0.4, "--steps", 5, "--seed", 7],
                 (0.4, 5, 7)),
         "two": (2, [], ["-i", 3, 100, "--noise", 0, "--steps", 2], (0, 2, 0)),
         "many": (40, [0], ["-i", "best", "digit=3", 12], (0.2, 8, 0))}


def small():
    return IMAGES, LABELS


@pytest.fixture(scope="module", params=CASES)
def lab(request, run):
    """What lab1.py printed, stored and drew for one of the CASES, and what is expected of it."""
    name, (units, dead, options, (noise, steps, seed)) = request.param, CASES[request.param]
    sketch = Image.new("L", (200, 200), 255)
    ImageDraw.Draw(sketch).line([(50, 40), (150, 40), (90, 160)], fill=0, width=18)
    sketch.save(run.folder / "own.png")
    run(train.main, "-z", units, "-e", 5, "-b", 32, "-s", f"{name}.pth", "-p", f"{name}.png")
    state = torch.load(run.folder / f"{name}.pth", weights_only=True)
    state["fc2.bias"][dead] = -1e6
    torch.save(state, run.folder / f"{name}.pth")

    lines, drawn = run(lab1.main, "-l", f"{name}.pth", "--no-show", "--out", name, *options)
    weights = read_weights(run.folder / f"{name}.pth")
    by_error = errors(decode(weights, encode(weights, IMAGES)), IMAGES).argsort()
    rows = {"dead": [[*LABELS].index(digit) for digit in range(10)], "one": [None, 5, *by_error[:-11:-1]],
            "two": [3, 100], "many": [*by_error[:10], *np.flatnonzero(LABELS == 3)[:10], 12]}[name]
    own = picture.read_picture(run.folder / "own.png").numpy()
    shown = np.stack([own if row is None else IMAGES[row] for row in rows])
    return types.SimpleNamespace(
        name=name, units=units, dead=dead, noise=noise, steps=steps, seed=seed, lines=lines, weights=weights,
        stored=json.loads((run.folder / name / "metrics.json").read_text()), shown=shown,
        figures=dict(zip(DRAWN, drawn)), outputs=decode(weights, encode(weights, shown)),
        names=["own.png" if row is None else f"{LABELS[row]} (image {row})" for row in rows],
        normal=by_numpy.noise_for(IMAGES, seed)[[row or 0 for row in rows]],  # own pictures: that of image 0
        expected=by_numpy.expect(weights, small, noise, seed, 900 // units))


def texts(lab, experiment):
    """Return the title of the figure of an experiment and the captions in it; its small print is right."""
    figure = lab.figures[experiment]
    title, small_print = [text.get_text() for text in figure.texts]
    assert small_print == f"{lab.lines[1]}; tested on not-mnist with seed {lab.seed}"
    return title, [axes.get_title() for axes in figure.axes]


def require_images(axes, expected):
    """Assert that `axes` show a row of images (n, 784)."""
    row = axes.images[0].get_array().data.reshape(28, -1, 30)[:, :, 1:-1]  # each has a gap around it
    np.testing.assert_allclose(row.transpose(1, 0, 2).reshape(-1, 784), expected, atol=2e-4)


def closer(numbers):
    return rounded("{:.1%} of the outputs are closer to the clean image than the clipped input, {:.1%} than "
                   "the unclipped", numbers["closer_than_clipped"], numbers["closer_than_noisy"])


def neighbours(lab):
    _, *numbers = lab.expected["codes"].values()
    return rounded(f"nearest neighbour of the same digit: {{:.1%}} by code, {{:.1%}} by PCA with {lab.units} "
                   "numbers, {:.1%} by all pixels", *numbers)


def test_what_lab1_stores(lab):
    found = dict(lab.stored)
    own = found["reconstruction"].pop("mse_of_own_pictures")
    mse = dict(zip(lab.names, errors(lab.outputs, lab.shown)))
    assert own == pytest.approx({name: mse[name] for name in mse if "." in name}, rel=1e-5)
    assert found["interpolation"] == {"steps": lab.steps} and found["seed"] == lab.seed
    assert found["dataset"] == "not-mnist" and found["test_images"] == 240
    assert found["trained"]["epochs"] == 5 and found["trained"]["settings"]["bottleneck"] == lab.units
    for experiment, numbers in lab.expected.items():
        assert flat(found[experiment]) == pytest.approx(flat(numbers), rel=2e-5, abs=5e-6), experiment


def test_what_lab1_prints(lab):
    plain, noisy, units, codes = lab.expected.values()

    def mse_line(what, mse):
        return rounded(f"{what} MSE {{:.4f}} PSNR {{:.1f}} dB", mse, psnr(mse))

    def row(what, values):
        return rounded(" ".join([what] + ["{:.4f}"] * len(values)), *values.values())

    clipping = "clipping alone does better than this network: train.py --noise trains one to denoise"
    expected = [
        {f"not-mnist: 240 test images through {lab.name}.pth, {lab.units} units, on cpu"},
        {f"trained on not-mnist, 5 epochs, bottleneck {lab.units}, init mean, seed 0, batch size 32, "
         "lr 0.001, noise 0, precision float32"},
        mse_line("reconstruction", plain["mse"]), mse_line(f"PCA, {lab.units} components", plain["pca_mse"]),
        {"digit 0 1 2 3 4 5 6 7 8 9"}, row("its MSE", plain["mse_of_each_digit"]),
        *(mse_line("own.png", errors(lab.outputs, lab.shown)[0]) for name in lab.names if name == "own.png"),
        mse_line(f"{lab.noise:g} x noise, clipped", noisy["clipped_mse"]),
        mse_line("the same, unclipped", noisy["noisy_mse"]), mse_line("denoised", noisy["mse"]),
        closer(noisy),
        *([{clipping}] if noisy["mse"] > noisy["clipped_mse"] else []),
        {"noise 0.0 0.1 0.2 0.3 0.4 0.5 0.6"}, row("denoised MSE", noisy["mse_at_noise"]),
        {f"{units['live_units']} of {lab.units} units live on the test images"},
        rounded("the plane that codes.png draws holds {:.1%} of the codes' variance",
                codes["plane_variance"]),
        neighbours(lab), {f"wrote {'.png, '.join(DRAWN)}.png, metrics.json to {lab.name}"}]
    assert len(lab.lines) == len(expected)
    for line, possible in zip(lab.lines, expected):
        assert line in possible


def test_the_figure_of_the_reconstructions(lab):
    title, captions = texts(lab, "reconstruction")
    numbers, mse = lab.expected["reconstruction"], errors(lab.outputs, lab.shown)
    assert title in rounded(
        f"Reconstruction on not-mnist by {lab.name}.pth\ninput | output. MSE over the whole test set: "
        "{:.4f}, PCA's {:.4f}", numbers["mse"], numbers["pca_mse"])
    rows = [(caption, axes) for caption, axes in zip(captions, lab.figures["reconstruction"].axes)
            if caption != "the picture, its digit framed"]
    assert len(rows) == len(lab.names) == len(captions) - ("own.png" in lab.names)
    for number, (caption, axes) in enumerate(rows):
        assert caption in rounded(f"{lab.names[number]}: MSE {{:.4f}}", mse[number])
        require_images(axes, [lab.shown[number], lab.outputs[number]])


def test_the_figure_of_the_denoising(lab):
    title, captions = texts(lab, "denoising")
    numbers, (*first_lines, last) = lab.expected["denoising"], title.split("\n")
    assert "\n".join(first_lines) in rounded(
        f"Denoising on not-mnist by {lab.name}.pth: clean | with {lab.noise:g} × noise | output\n"
        "MSE of the noisy image, clipped as drawn → of the output. Over the whole test set: "
        "{:.4f} ({:.4f} unclipped) → {:.4f}",
        numbers["clipped_mse"], numbers["noisy_mse"], numbers["mse"])
    assert last in closer(numbers) and len(captions) == len(lab.names)
    noisy = lab.shown + np.float32(lab.noise) * lab.normal
    tiles = noisy.clip(0, 1), noisy, decode(lab.weights, encode(lab.weights, noisy))
    drawn = lab.figures["denoising"].axes
    for name, caption, axes, clean, *three in zip(lab.names, captions, drawn, lab.shown, *tiles):
        clipped, _, output = errors(np.stack(three), clean)
        assert caption in rounded(f"{name}: {{:.4f}} → {{:.4f}}", clipped, output)
        require_images(axes, [clean, three[0], three[2]])


def test_the_figure_of_the_interpolation(lab):
    title, captions = texts(lab, "interpolation")
    shown, names, axes = [*lab.shown], [*lab.names], lab.figures["interpolation"].axes
    if len(shown) % 2:
        shown.append(IMAGES[239])
        names.append(f"{LABELS[239]} (image 239), added to make a pair")
    assert title == (f"Interpolation on not-mnist by {lab.name}.pth\n"
                     f"start | {lab.steps} images decoded on the line between the two codes | end")
    assert captions == [f"{a} → {b}" for a, b in zip(names[::2], names[1::2])]
    for row, a, b in zip(axes, shown[::2], shown[1::2]):
        t = np.linspace(0, 1, lab.steps)[:, None]
        line = (1 - t) * encode(lab.weights, a) + t * encode(lab.weights, b)
        require_images(row, [a, *decode(lab.weights, line), b])
    positions = [f"{step}/{lab.steps - 1}" for step in range(1, lab.steps - 1)]
    assert [text.get_text() for text in axes[-1].texts] == ["start", "0", *positions, "1", "end"]


def test_the_figure_of_the_units(lab):
    title, captions = texts(lab, "bottleneck")
    _, _, active, importance = lab.expected["bottleneck"].values()
    live = sorted(set(range(lab.units)) - {*lab.dead}, key=lambda unit: -importance[unit])
    order = [*live, *lab.dead][:29]
    of_many = f": 29 of {lab.units} units, the most important first" if lab.units > 29 else ""
    assert title == f"Bottleneck of {lab.name}.pth on not-mnist, from {lab.names[0]}{of_many}"
    assert captions[0] == "input | output" and len(captions) == 1 + len(order)
    first, *rows = lab.figures["bottleneck"].axes
    require_images(first, [lab.shown[0], lab.outputs[0], *np.ones((9, 784))])
    code = encode(lab.weights, lab.shown[0])
    for rank, (unit, axes) in enumerate(zip(order, rows), 1):
        low, high = np.quantile(encode(lab.weights, IMAGES)[:, unit], (0.01, 0.99))
        live = rounded(f"{rank}. unit {unit}: {{:.1f}} to {{:.1f}}, active on {{:.1%}}, importance {{:.1%}}",
                       low, high, active[unit], importance[unit])
        dead = {f"unit {unit}: DEAD, active on no test image"}
        assert captions[rank] in (dead if unit in lab.dead else live)
        moved = np.repeat(code[None], 11, 0)
        moved[:, unit] = np.linspace(low, high, 11)
        require_images(axes, decode(lab.weights, moved))
        position = ((code[unit] - low) / max(high - low, 1e-12)).clip(0, 1)
        assert axes.lines[-1].get_xdata() == pytest.approx([14.5 + 300 * position], abs=0.01)


def test_the_figure_of_the_codes(lab):
    title, _ = texts(lab, "codes")
    first, second = title.split("\n")
    share = lab.expected["codes"]["plane_variance"]
    assert first in rounded(f"Codes of {lab.name}.pth on not-mnist: {{:.1%}} of their variance is in this "
                            "plane", share)
    assert second in neighbours(lab)

    codes, (dots, plane, strip) = encode(lab.weights, IMAGES), lab.figures["codes"].axes
    found = np.empty((240, 2))
    for digit in range(10):
        found[LABELS == digit] = np.stack(dots.lines[digit].get_data(), 1)
    centre, axes = np.zeros(lab.units), np.eye(2, lab.units)
    if lab.units > 2:
        centre = codes.mean(0)
        axes = np.linalg.svd(codes - centre, full_matrices=False)[2][:2]
        axes *= np.sign((found * ((codes - centre) @ axes.T)).sum(0))[:, None]  # a component has no sign
    coordinates = (codes - centre) @ axes.T
    if lab.units == 1:
        coordinates[:, 1] = LABELS + 0.2 * by_numpy.noise_for(np.empty(240), lab.seed)
    np.testing.assert_allclose(found, coordinates, atol=1e-3)

    low, high = np.quantile(coordinates, (0.002, 0.998), axis=0)
    corners = [low[0], high[0], low[1], high[1]]
    assert [*dots.get_xlim(), *dots.get_ylim()] == pytest.approx(corners, abs=1e-3)
    assert plane.images[0].get_extent() == pytest.approx(corners, abs=1e-3)
    middles = low + (high - low) * (np.arange(15)[:, None] + 0.5) / 15
    grid = np.stack(np.meshgrid(middles[:, 0], middles[::-1, 1]), -1)  # the first row is on top
    squares = plane.images[0].get_array().data.reshape(15, 28, 15, 28).transpose(0, 2, 1, 3)
    decoded = decode(lab.weights, (centre + grid @ axes).clip(0))
    np.testing.assert_allclose(squares.reshape(15, 15, 784), decoded, atol=2e-3)

    squares = strip.images[0].get_array().data.reshape(2, 30, 10, 30)[:, 1:-1, :, 1:-1]
    random, nearest = squares.transpose(0, 2, 1, 3).reshape(2, 10, 784)
    drawn = metrics.random_like(torch.tensor(codes, dtype=torch.float32), 10, lab.seed).numpy()
    np.testing.assert_allclose(random, decode(lab.weights, drawn), atol=1e-3)
    distances = ((random[:, None] - IMAGES) ** 2).sum(2)
    np.testing.assert_allclose(nearest, IMAGES[distances.argmin(1)], atol=1e-5)


def test_a_comparison(run):
    for units, seed in ((2, 0), (6, 1), (6, 2)):
        files = "-s", f"nets/{units}-{seed}.pth", "-p", f"nets/{units}-{seed}.png"
        run(train.main, "-z", units, "--seed", seed, "-e", 2, "-b", 64, *files)
    lines, (pictures, sizes) = run(lab1.main, "-l", "nets", "--noise", 0.3, "--seed", 2, "--out", "nets")

    rows, curve = [], by_numpy.of_images(small)[2][::-1].cumsum()[::-1] / 784
    for path in sorted((run.folder / "nets").glob("*.pth")):
        plain, noisy, units, codes = by_numpy.expect(read_weights(path), small, 0.3, 2, 1).values()
        rows.append({"network": path.name, "dataset": "not-mnist", "epochs": 2, "units": units["units"],
                     "live_units": units["live_units"], "mse": plain["mse"], "psnr_db": plain["psnr_db"],
                     "pca_mse": plain["pca_mse"], "times_pca": plain["mse"] / plain["pca_mse"],
                     "denoised_mse": noisy["mse"], "neighbour_accuracy": codes["neighbour_accuracy"]})
    ranked = sorted(rows, key=lambda row: row["mse"])
    head = "network data set epochs units live MSE PSNR x PCA denoised neighbours"
    assert [lines[0], lines[-1]] == [head, "wrote comparison.csv, comparison.png, sizes.png to nets"]
    for line, row in zip(lines[1:4], ranked, strict=True):
        *words, mse, decibel, _, times, denoised, accuracy = row.values()
        form = f"{' '.join(map(str, words))} {{:.4f}} {{:.1f}} {{:.2f}} {{:.4f}} {{:.1%}}"
        assert line in rounded(form, mse, decibel, times, denoised, accuracy)

    stored = list(csv.DictReader((run.folder / "nets" / "comparison.csv").open()))
    for found, row in zip(stored, ranked, strict=True):
        assert not found.pop("error") and list(found) == list(row)
        assert [found[key] for key in ("network", "dataset")] == [row["network"], "not-mnist"]
        assert [float(x) for x in [*found.values()][2:]] == pytest.approx([*row.values()][2:], rel=2e-5)

    captions = [axes.get_title() for axes in pictures.axes]
    assert captions[0] == "test images" and len(captions) == 4
    for row, caption in zip(ranked, captions[1:]):
        assert caption in rounded(f"{row['network']}: MSE {{:.4f}}", row["mse"])
    pca, networks = sizes.axes[0].lines
    assert [*pca.get_xdata()] == [*range(1, 13)] and pca.get_ydata() == pytest.approx(curve[1:13], rel=1e-4)
    assert [*networks.get_xdata()] == [row["units"] for row in ranked]
    assert networks.get_ydata() == pytest.approx([row["mse"] for row in ranked], rel=1e-5)
    assert [tick.get_text() for tick in sizes.axes[0].get_xticklabels()] == ["2", "6"]
    assert sizes.texts[-1].get_text() == "measured on the 240 test images of not-mnist"


@functools.cache
def mnist():
    images, labels = data.load("mnist", ROOT / "data", "test")[1]
    return images.numpy().astype(np.float32) / 255, labels.numpy()


@needs_mnist
@pytest.mark.parametrize("folder", ["", "denoiser"])
def test_the_reference_results_are_those_of_the_reference_weights(folder):
    folder = ROOT / "outputs" / "reference" / folder
    found = json.loads((folder / "metrics.json").read_text())
    expected = by_numpy.expect(read_weights(folder / "model.pth", np.float32), mnist, 0.2, 0, 10_000)
    for experiment, numbers in expected.items():
        assert flat(found[experiment]) == pytest.approx(flat(numbers), rel=1e-4, abs=2e-4), experiment
    *_, last = csv.DictReader((folder / "loss.csv").open())
    assert float(last["test_loss"]) == pytest.approx(expected["reconstruction"]["mse"], rel=1e-5)
