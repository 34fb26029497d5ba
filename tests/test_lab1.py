import os
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import Report, draw_seven
from matplotlib.figure import Figure

import lab1
from labkit import metrics, results, testset
from labkit.picture import read_picture
from model import load

PICTURES = ["bottleneck.png", "codes.png", "denoising.png", "interpolation.png", "reconstruction.png"]
GLYPHS = ("-l", "model.pth", "--dataset", "glyphs", "--no-show", "--out", "out")


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


@pytest.fixture
def weights(folder):
    """Write the weights of an untrained network with `bottleneck` units to model.pth; return the network."""

    def weights(bottleneck=8, dead=()):
        torch.manual_seed(0)
        model = Report(N_bottleneck=bottleneck)
        with torch.no_grad():
            model.fc2.bias.fill_(1)
            for unit in dead:
                model.fc2.bias[unit] = -100
        torch.save(model.state_dict(), "model.pth")
        return load("model.pth")[0]

    return weights



def captions(figure):
    return [axes.get_title() for axes in figure.axes]


def images_in(axes):
    """Return the images of a row of a figure, (n, 784)."""
    picture = torch.as_tensor(axes.images[0].get_array())
    images = picture.unflatten(1, (-1, 30)).transpose(0, 1)  # with a column of white on each side
    return images[:, :, 1:29].flatten(1)


def test_the_readmes_command(weights, folder, capsys):
    weights(5)
    lab1.main(["-l", "model.pth", "--dataset", "glyphs"])
    out, err = capsys.readouterr()
    assert err == "warning: worse than PCA: were these weights trained long enough, and on glyphs?\n"
    assert out.startswith("glyphs: 300 test images through model.pth, 5 units, on ")
    assert "PCA, 5 components" in out and "these weights do not say how they were trained" in out
    assert sorted(os.listdir("outputs/model")) == sorted([*PICTURES, "metrics.json"])
    for picture in PICTURES:
        assert plt.imread(f"outputs/model/{picture}").std() > 0.1  # not an empty page


def test_what_will_be_replaced_is_said_before_the_work(weights, folder, capsys):
    weights()
    (folder / "out").mkdir()
    for name in ("reconstruction.png", "codes.png"):
        (folder / "out" / name).write_text("of another run")
    lab1.main([*GLYPHS, "--step", "4"])
    assert "replacing out/reconstruction.png\n" in capsys.readouterr().out
    assert (folder / "out/codes.png").read_text() == "of another run"
    assert sorted(os.listdir("out")) == ["codes.png", "reconstruction.png"]


@pytest.mark.parametrize("path, chosen, folder", [
    ("model.pth", False, "outputs/model"),
    ("outputs/mnist/model.pth", False, "outputs/mnist-model"),
    ("../theirs/a.pth", True, "outputs/theirs-a/chosen"),
])
def test_results_of_other_weights_and_other_images_go_elsewhere(path, chosen, folder):
    assert results.default_folder(Path(path), chosen) == Path(folder)


@pytest.mark.parametrize("step, picture", [(5, "denoising.svg"), (6, "interpolation.svg")])
def test_steps_and_formats_of_choice(step, picture, weights):
    weights()
    lab1.main([*GLYPHS, "--step", str(step), "-i", "3", "--format", "svg"])
    assert os.listdir("out") == [picture]


def lab_of(*options):
    args = lab1.parse([*GLYPHS, *options])
    model, record = load(args.load[0])
    return testset.set_up(args, model, record, torch.device("cpu"))


@torch.inference_mode()
def test_images_of_choice_and_own_pictures_are_in_every_figure(weights, capsys):
    weights()
    draw_seven("my7.png")
    lab = lab_of("-i", "my7.png", "3", "299")
    three, last = f"{lab.labels[3]} (image 3)", f"{lab.labels[299]} (image 299)"
    figures = [Figure() for _ in range(4)]
    numbers = [experiment(lab, figure) for experiment, figure in zip(lab1.EXPERIMENTS, figures)]
    reconstruction, denoising, interpolation, bottleneck = figures

    names = ["my7.png", three, last]
    assert [caption.partition(":")[0] for caption in captions(reconstruction)] == names
    assert [caption.partition(":")[0] for caption in captions(denoising)] == names
    assert captions(interpolation) == [f"my7.png → {three}", f"{last} → {last}, added to make a pair"]
    assert "from my7.png" in bottleneck.get_suptitle()
    for figure in figures:
        place = 1 if figure is reconstruction else 0  # behind the picture itself
        assert images_in(figure.axes[0])[place].equal(read_picture("my7.png"))
    photo, = reconstruction.axes[0].child_axes
    frame, = photo.patches
    assert photo.images and (*frame.get_xy(), frame.get_width(), frame.get_height()) == pytest.approx(
        (46, 34, 108, 132), abs=9)  # as draw_seven() draws it
    assert not reconstruction.axes[1].child_axes
    for figure in figures:
        assert "model.pth" in figure.get_suptitle() and "glyphs" in figure.get_suptitle()
    own = (lab.model(lab.shown.images[0]) - lab.shown.images[0]).square().mean().item()
    assert numbers[0]["mse_of_own_pictures"] == pytest.approx({"my7.png": own}, rel=1e-5)
    assert f"my7.png                MSE {own:.4f}" in capsys.readouterr().out


@pytest.fixture
def lab(weights):
    """A network with four units, of which number 2 is dead, and three images to show."""
    test = testset.load("glyphs", None, 7, torch.device("cpu"))
    shown = testset.Shown(test.images[[0, 2, 1]], ["a", "b", "c"], [0, 2, 1], [None] * 3)
    return testset.Lab(weights(4, dead=[2]), "model.pth", *test, shown, noise=0.1, steps=5, seed=7)


@torch.inference_mode()
def test_reconstruction_draws_each_image_beside_its_output(lab):
    figure = Figure()
    lab1.reconstruction(lab, figure)
    for axes, name, image in zip(figure.axes, lab.shown.names, lab.shown.images, strict=True):
        output = lab.model(image)
        torch.testing.assert_close(images_in(axes), torch.stack([image, output]))
        assert axes.get_title() == f"{name}: MSE {(output - image).square().mean():.4f}"


@pytest.mark.parametrize("times, warned", [(0.99, True), (1.01, False)])
@torch.inference_mode()
def test_a_reconstruction_worse_than_pcas_is_warned_of(times, warned, lab, monkeypatch, capsys):
    mse = metrics.mse(lab.model, lab.images, lab.images).item()
    monkeypatch.setattr(metrics, "pca_mse", lambda *_: times * mse)
    lab1.reconstruction(lab, Figure())
    assert capsys.readouterr().err.startswith("warning: worse than PCA") == warned


@torch.inference_mode()
def test_denoising_draws_the_noise_that_was_measured_clipped_and_names_both_errors(lab, capsys):
    figure = Figure()
    numbers = lab1.denoising(lab, figure)
    noisy = lab.images + 0.1 * lab.normal
    clipped, outputs = noisy.clamp(0, 1), lab.model(noisy)
    errors = [(x - lab.images).square().mean(1) for x in (clipped, noisy, outputs)]
    for row, axes, name in zip(lab.shown.rows, figure.axes, lab.shown.names, strict=True):
        expected = torch.stack([lab.images[row], clipped[row], outputs[row]])
        torch.testing.assert_close(images_in(axes), expected)
        a, b, c = (error[row] for error in errors)
        assert axes.get_title() == f"{name}: {a:.4f} ({b:.4f}) → {c:.4f}"
    assert numbers["clipped_mse"] == pytest.approx(errors[0].mean().item(), rel=1e-5)
    assert numbers["closer_than_noisy"] == (errors[2] < errors[1]).float().mean().item()
    assert numbers["closer_than_clipped"] == (errors[2] < errors[0]).float().mean().item()
    title = figure.get_suptitle()
    assert f"{errors[0].mean():.4f} as drawn, clipped ({errors[1].mean():.4f} unclipped)" in title
    assert f"{numbers['closer_than_clipped']:.1%} of the outputs are closer to the clean image" in title
    assert "clipping alone does better than this network" in capsys.readouterr().out


@torch.inference_mode()
def test_interpolation_is_linear_between_the_codes(lab):
    figure = Figure()
    lab1.interpolation(lab, figure)
    start, end = lab.shown.images[:2]
    codes = [torch.lerp(lab.model.encode(start), lab.model.encode(end), t / 4) for t in range(5)]
    expected = torch.stack([start, *map(lab.model.decode, codes), end])
    torch.testing.assert_close(images_in(figure.axes[0]), expected)
    assert len(figure.axes) == 2 and images_in(figure.axes[1])[-1].equal(lab.images[-1])
    assert "5 images decoded" in figure.get_suptitle()


@pytest.mark.parametrize("units", [1, 2, 4])
@torch.inference_mode()
def test_codes_are_drawn_over_what_the_decoder_makes_of_the_same_plane(units, lab, weights, capsys):
    lab = lab._replace(model=weights(units))
    figure, codes = Figure(), lab.model.encode(lab.images)
    numbers = lab1.codes(lab, figure)
    centre, axes, share = metrics.plane(codes)
    dots, plane, strip = figure.axes
    ones = lab.labels == 1
    expected = ((codes - centre) @ axes.T)[ones]
    drawn = torch.as_tensor(dots.lines[1].get_xydata()).float()
    torch.testing.assert_close(drawn[:, : 1 if units == 1 else 2], expected[:, : 1 if units == 1 else 2])
    picture = torch.as_tensor(plane.images[0].get_array())
    (left, right), (bottom, top) = dots.get_xlim(), dots.get_ylim()
    corner = torch.tensor([left + (right - left) / 30, top - (top - bottom) / 30], dtype=torch.float32)
    decoded = lab.model.decode((centre + corner @ axes).clamp(min=0)).view(28, 28)
    torch.testing.assert_close(picture[:28, :28], decoded, atol=1e-4, rtol=0)
    assert numbers["plane_variance"] == share and strip.images
    assert numbers["neighbour_accuracy"] == metrics.neighbour_accuracy(codes, lab.labels)
    assert f"{numbers['neighbour_accuracy']:.1%} by code" in capsys.readouterr().out


@torch.inference_mode()
def test_each_unit_is_moved_over_its_range_the_most_important_first_and_the_dead_last(lab, capsys):
    figure = Figure()
    numbers = lab1.bottleneck(lab, figure)
    assert numbers["importance_of_each_unit"][2] == 0 and numbers["live_units"] == 3
    assert "3 of 4 units live" in capsys.readouterr().out
    importance = torch.tensor(numbers["importance_of_each_unit"])
    order = sorted((0, 1, 3), key=lambda unit: -importance[unit])
    assert captions(figure)[-1] == "unit 2: DEAD, active on no test image"

    codes = lab.model.encode(lab.images)
    code = codes[0]
    examples = torch.stack([lab.shown.images[0], lab.model.decode(code)])
    torch.testing.assert_close(images_in(figure.axes[0])[:2], examples)
    for rank, (unit, axes) in enumerate(zip(order, figure.axes[1:]), 1):
        low, high = codes[:, unit].quantile(0.01), codes[:, unit].quantile(0.99)
        assert axes.get_title() == (f"{rank}. unit {unit}: {low:.1f} to {high:.1f}, active on 100.0%, "
                                    f"importance {importance[unit]:.1%}")
        for position, value in ((0, low), (10, high)):
            moved = code.clone()
            moved[unit] = value
            torch.testing.assert_close(images_in(axes)[position], lab.model.decode(moved), rtol=0, atol=1e-5)
        mark = (code[unit] - low) / (high - low)
        assert axes.lines[0].get_xdata()[0] == pytest.approx(14.5 + 300 * mark.clamp(0, 1).item(), abs=0.1)


@torch.inference_mode()
def test_of_a_large_bottleneck_some_units_are_drawn(lab, weights):
    figure = Figure()
    numbers = lab1.bottleneck(lab._replace(model=weights(40)), figure)
    assert len(numbers["importance_of_each_unit"]) == 40
    assert len(figure.axes) == 1 + lab1.MAX_UNITS_DRAWN


def test_weights_of_mnist_are_not_tested_on_other_images(folder, unreachable, refused):
    weights = Report().state_dict()
    weights._metadata[""] = {"dataset": "mnist", "epochs": 1, "settings": {}}
    torch.save(weights, "model.pth")
    line = refused(lab1.main, "-l", "model.pth", "--data-dir", "nowhere")
    assert "put mnist's four files into nowhere/MNIST/raw" in line


def test_explore_writes_the_page_alone_and_opens_it_where_there_is_a_display(weights, folder, monkeypatch):
    weights()
    opened = []
    monkeypatch.setattr(results.webbrowser, "open", opened.append)
    monkeypatch.setattr(results.figures, "has_display", lambda: True)
    lab1.main([*GLYPHS, "--explore"])
    assert os.listdir("out") == ["explore.html"] and opened == []
    lab1.main([*(option for option in GLYPHS if option != "--no-show"), "--explore"])
    assert opened == [(folder / "out/explore.html").as_uri()]


def test_a_network_too_large_for_the_page_is_refused_and_leaves_no_folder(weights, folder, refused):
    weights(65)
    assert "65 units: the page has room for 64" in refused(lab1.main, *GLYPHS, "--explore")
    assert os.listdir(folder) == ["model.pth"]


MISTAKES = [
    (["-l", "missing.pth"], "missing.pth does not exist", 1),
    (["-l", "folder"], "there is no .pth file in this folder or below", 2),
    (["-l", "text.pth"], "text.pth is damaged, or not written by torch.save", 1),
    (["-l", "other.pth"], "holds weight, bias; expected fc1.weight", 1),
    (["-l", "huge.pth"], "huge.pth gives codes or outputs that are not finite: train", 1),
    (["-l", "huge.pth", "--explore"], "huge.pth gives codes or outputs that are not finite: train", 1),
    (["--out", "text.pth"], "text.pth", 1),
    (["--out", "taken"], "taken/metrics.json is not a regular file", 1),
    (["--explore", "--out", "text.pth"], "text.pth", 1),
    (["-i", "300"], "-i 300: expected an index from 0 to 299, worst, best, digit=0", 2),
    (["-i", "-1"], "-i -1: expected an index", 2),
    (["-i", "digit=x"], "-i digit=x: expected", 2),
    (["-i", "digit=11"], "-i digit=11: expected", 2),
    (["-i", *map(str, range(101))], "-i chooses 101 images: a figure shows at most 100", 2),
    (["-i", "missing.png"], "missing.png does not exist: check the name", 1),
    (["-i", "text.pth"], "text.pth is not a picture that can be read", 1),
    (["--noise", "-1"], "--noise -1.0: must be between 0 and ", 2),
    (["--steps", "1"], "--steps 1: must be between 2 and ", 2),
    (["--step", "7"], "invalid choice: 7", 2),
    (["--explore", "--step", "4"], "--explore takes no --step: leave it out", 2),
    (["--explore", "-i", "4"], "--explore takes no --index", 2),
    (["-l", "model.pth", "other.pth", "-i", "4"], "-l with several files takes no --index", 2),
]


@pytest.mark.parametrize("args, words, status", MISTAKES, ids=[" ".join(args)[:30] for args, *_ in MISTAKES])
def test_mistakes_are_named_in_one_line_before_any_work(args, words, status, weights, folder, refused,
                                                        monkeypatch):
    weights()
    (folder / "text.pth").write_text("not weights")
    (folder / "folder").mkdir()
    (folder / "taken/metrics.json").mkdir(parents=True)
    torch.save(torch.nn.Linear(2, 2).state_dict(), "other.pth")
    huge = {"fc2.bias": torch.full((8,), 100.0), "fc3.weight": torch.full((392, 8), 1e38)}
    torch.save(Report().state_dict() | huge, "huge.pth")
    before = sorted(folder.rglob("*"))
    monkeypatch.setattr(lab1.results.files, "write", lambda *_: pytest.fail("something was written"))
    out = [] if "--out" in args else ["--out", "."]
    options = [option for option in GLYPHS if option not in ("--out", "out")]
    assert words in refused(lab1.main, *options, *out, *args, status=status)
    assert sorted(folder.rglob("*")) == before


def test_weights_have_to_be_named(refused):
    assert "required: -l/--load" in refused(lab1.main, status=2)
