import hashlib
import json
import os
import platform

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import FAST, Report, draw_seven, put_archives
from matplotlib.figure import Figure

import lab1
import train
from labkit import checkpoint, data, metrics
from labkit.picture import read_picture

PICTURES = ["bottleneck.png", "denoising.png", "interpolation.png", "reconstruction.png"]
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
        return checkpoint.load_weights("model.pth")

    return weights



def captions(figure):
    return [axes.get_title() for axes in figure.axes]


def images_in(axes):
    """Return the images of a row of a figure, (n, 784)."""
    picture = torch.as_tensor(axes.images[0].get_array())
    images = picture.unflatten(1, (-1, 30)).transpose(0, 1)  # with a column of white on each side
    return images[:, :, 1:29].flatten(1)


def test_the_readmes_command(weights, unreachable, folder, capsys, monkeypatch):
    for display in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(display, raising=False)
    weights(5)
    lab1.main(["-l", "model.pth"])
    out, err = capsys.readouterr()
    warnings = err.splitlines()
    assert "mnist is not in data and could not be downloaded" in warnings[0]
    assert "using glyphs instead" in warnings[1]
    assert warnings[2:] == ["warning: worse than PCA: were these weights trained long enough, and on glyphs?"]
    assert out.startswith("glyphs: 300 test images through model.pth, 5 bottleneck units")
    assert "PCA, 5 components" in out
    assert sorted(os.listdir("outputs/glyphs")) == sorted([*PICTURES, "metrics.json"])
    for picture in PICTURES:
        assert plt.imread(f"outputs/glyphs/{picture}").std() > 0.1  # not an empty page



def test_metrics_json_has_the_numbers_of_the_whole_test_set_and_says_with_what_they_were_measured(weights,
                                                                                                  folder):
    model = weights()
    lab1.main([*GLYPHS, "--noise", "0.3", "--steps", "5"])
    content = json.loads((folder / "out/metrics.json").read_text())
    sha256 = hashlib.sha256((folder / "model.pth").read_bytes()).hexdigest()
    expected = {"weights": "model.pth", "sha256": sha256, "dataset": "glyphs", "test_images": 300,
                "torch": torch.__version__, "python": platform.python_version()}
    assert {name: content[name] for name in expected} == expected

    test = data.load("glyphs", None, "test")[1]
    images = test.images / 255
    errors = (model(images) - images) ** 2
    reconstruction, denoising, interpolation, bottleneck = (content[test] for test in lab1.TESTS)
    assert reconstruction["mse"] == pytest.approx(errors.mean().item(), rel=1e-5)
    threes = errors[test.labels == 3].mean().item()
    assert reconstruction["mse_of_each_digit"]["3"] == pytest.approx(threes, rel=1e-5)
    assert denoising["noisy_mse"] == pytest.approx(0.09, rel=0.02)
    assert denoising["noisy_psnr_db"] == pytest.approx(10.46, abs=0.1)
    assert denoising["mse_at_noise"]["0.3"] == pytest.approx(denoising["mse"], rel=1e-5)
    assert interpolation["steps"] == 5
    assert bottleneck["units"] == bottleneck["live_units"] == 8
    assert len(bottleneck["active_fraction_of_each_unit"]) == 8
    assert sum(bottleneck["importance_of_each_unit"]) == pytest.approx(1)


def test_one_step_writes_its_figure_and_touches_nothing_else(weights, folder):
    weights()
    (folder / "out").mkdir()
    for name in (*PICTURES, "metrics.json"):
        (folder / "out" / name).write_text("of another run")
    lab1.main([*GLYPHS, "--step", "4"])
    changed = [path.name for path in (folder / "out").iterdir() if path.read_bytes() != b"of another run"]
    assert changed == ["reconstruction.png"] and len(os.listdir("out")) == 5


@pytest.mark.parametrize("step, picture", [(5, "denoising.png"), (6, "interpolation.png")])
def test_steps_of_choice(step, picture, weights):
    weights()
    lab1.main([*GLYPHS, "--step", str(step), "-i", "3"])
    assert os.listdir("out") == [picture]


@torch.inference_mode()
def test_images_of_choice_and_own_pictures_are_in_every_figure(weights):
    weights()
    draw_seven("my7.png")
    lab = lab1.set_up(lab1.parse([*GLYPHS, "-i", "my7.png", "3", "299"]))
    three, last = f"{lab.labels[3]} (image 3)", f"{lab.labels[299]} (image 299)"
    figures = [Figure() for _ in lab1.TESTS]
    for test, figure in zip(lab1.TESTS.values(), figures):
        test(lab, figure)
    reconstruction, denoising, interpolation, bottleneck = figures

    names = ["my7.png", three, last]
    assert [caption.partition(":")[0] for caption in captions(reconstruction)] == names
    assert [caption.partition(":")[0] for caption in captions(denoising)] == names
    assert captions(interpolation) == [f"my7.png → {three}", f"{last} → {last}"]
    assert "my7.png, one unit moved" in bottleneck.get_suptitle()
    for figure in figures:
        assert images_in(figure.axes[0])[0].equal(read_picture("my7.png"))
        assert "model.pth" in figure.get_suptitle() and "glyphs" in figure.get_suptitle()


@pytest.fixture
def lab(weights):
    """A network with four units, of which number 2 is dead, and three images to show."""
    model, test = weights(4, dead=[2]), data.load("glyphs", None, "test")[1]
    images = data.to_float(test.images)
    return lab1.Lab(model, "model.pth", "glyphs", images, test.labels, images[:3], ["a", "b", "c"],
                    noise=0.1, steps=5, seed=7)


@torch.inference_mode()
def test_reconstruction_draws_each_image_beside_its_output(lab):
    figure = Figure()
    lab1.reconstruction(lab, figure)
    for axes, name, image in zip(figure.axes, lab.names, lab.shown, strict=True):
        output = lab.model(image)
        torch.testing.assert_close(images_in(axes), torch.stack([image, output]))
        assert axes.get_title() == f"{name}: MSE {(output - image).square().mean():.4f}"


@pytest.mark.parametrize("pca_mse, warned", [(0.0, True), (1.0, False)])
@torch.inference_mode()
def test_a_reconstruction_worse_than_pcas_is_warned_of(pca_mse, warned, lab, monkeypatch, capsys):
    monkeypatch.setattr(metrics, "pca_mse", lambda *_: pca_mse)
    lab1.reconstruction(lab, Figure())
    assert capsys.readouterr().err.startswith("warning: worse than PCA") == warned


@torch.inference_mode()
def test_denoising_draws_the_noisy_image_and_what_becomes_of_it(lab):
    figure = Figure()
    lab1.denoising(lab, figure)
    noisy = lab.shown + 0.1 * metrics.normal_like(lab.shown, seed=7)
    outputs = lab.model(noisy)
    for i, (axes, name) in enumerate(zip(figure.axes, lab.names, strict=True)):
        expected = torch.stack([lab.shown[i], noisy[i].clamp(0, 1), outputs[i]])
        torch.testing.assert_close(images_in(axes), expected)
        before, after = ((x[i] - lab.shown[i]).square().mean() for x in (noisy, outputs))
        assert axes.get_title() == f"{name}: MSE {before:.4f} → {after:.4f}"


@torch.inference_mode()
def test_interpolation_draws_the_decoded_codes_between_start_and_end(lab):
    figure = Figure()
    lab1.interpolation(lab, figure)
    start, end = lab.shown[:2]
    between = lab1.interpolate(lab.model, start[None], end[None], 5)[0]
    torch.testing.assert_close(images_in(figure.axes[0]), torch.stack([start, *between, end]))
    assert len(figure.axes) == 2 and images_in(figure.axes[1])[-1].equal(lab.images[-1])


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
    examples = torch.stack([lab.shown[0], lab.model.decode(code)])
    torch.testing.assert_close(images_in(figure.axes[0])[:2], examples)
    for unit, axes in zip(order, figure.axes[1:]):
        low, high = codes[:, unit].quantile(0.01), codes[:, unit].quantile(0.99)
        assert axes.get_title() == (f"unit {unit}: {low:.1f} to {high:.1f}, active on 100.0%, "
                                    f"carries {importance[unit]:.1%}")
        for position, value in ((0, low), (10, high)):
            moved = code.clone()
            moved[unit] = value
            torch.testing.assert_close(images_in(axes)[position], lab.model.decode(moved), rtol=0, atol=1e-5)
        mark = (code[unit] - low) / (high - low)
        assert axes.lines[0].get_xdata()[0] == pytest.approx(14.5 + 300 * mark.clamp(0, 1).item(), abs=0.1)


def test_interpolation_is_linear_between_the_codes(weights):
    model = weights()
    start, end = torch.rand(2, 3, 784, generator=torch.Generator().manual_seed(0))
    between = lab1.interpolate(model, start, end, 8)
    assert between.shape == (3, 8, 784)
    torch.testing.assert_close(between[:, 0], model(start))
    torch.testing.assert_close(between[:, 7], model(end))
    third = model.encode(start) * 5 / 7 + model.encode(end) * 2 / 7
    torch.testing.assert_close(between[:, 2], model.decode(third))


@torch.inference_mode()
def test_of_a_large_bottleneck_some_units_are_drawn(lab, weights):
    figure = Figure()
    numbers = lab1.bottleneck(lab._replace(model=weights(40)), figure)
    assert len(numbers["importance_of_each_unit"]) == 40
    assert len(figure.axes) == 1 + lab1.MAX_UNITS_DRAWN


def test_the_checkpoints_data_set_is_used_unless_another_is_given_explicitly(folder, capsys):
    put_archives(folder / "data/KMNIST/raw")
    train.main([*FAST, "--dataset", "kmnist", "-e", "0"])
    arguments = ["-l", "model.pth", "--no-show", "--step", "4"]
    capsys.readouterr()
    lab1.main(arguments)
    out = capsys.readouterr().out
    assert out.startswith("kmnist: 10 test images through model.pth")
    assert "the checkpoint beside model.pth says that it was trained on kmnist\n" in out
    assert os.listdir("outputs") == ["kmnist"]

    lab1.main([*arguments, "--dataset", "glyphs"])
    out = capsys.readouterr().out
    assert out.startswith("glyphs: 300 test images through model.pth") and "trained on" not in out
    assert sorted(os.listdir("outputs")) == ["glyphs", "kmnist"]


def test_windows_open_after_the_files_are_written_where_there_is_a_display(weights, folder, monkeypatch,
                                                                           recwarn):
    weights()
    opened = []
    monkeypatch.setattr(plt, "show", lambda: opened.append((folder / "out/reconstruction.png").exists()))
    monkeypatch.setattr(lab1.figures, "has_display", lambda: True)
    arguments = [*(option for option in GLYPHS if option != "--no-show"), "--step", "4"]
    lab1.main(arguments)  # with a backend without windows
    assert opened == [] and not recwarn.list
    monkeypatch.setattr(plt, "get_backend", lambda: "TkAgg")
    lab1.main(arguments)
    assert opened == [True]
    lab1.main([*arguments, "--no-show"])
    monkeypatch.setattr(lab1.figures, "has_display", lambda: False)
    lab1.main(arguments)
    assert opened == [True]


def test_explore_writes_the_page_alone_and_opens_it_where_there_is_a_display(weights, folder, monkeypatch):
    weights()
    opened = []
    monkeypatch.setattr(lab1.webbrowser, "open", opened.append)
    monkeypatch.setattr(lab1.figures, "has_display", lambda: True)
    lab1.main([*GLYPHS, "--explore"])
    assert os.listdir("out") == ["explore.html"] and opened == []
    lab1.main([*(option for option in GLYPHS if option != "--no-show"), "--explore"])
    assert opened == [(folder / "out/explore.html").as_uri()]


def test_a_network_too_large_for_the_page_is_refused_and_leaves_no_folder(weights, folder, refused):
    weights(65)
    assert "65 units: the page has room for 64" in refused(lab1.main, *GLYPHS, "--explore")
    assert os.listdir(folder) == ["model.pth"]


def sigterm_in(what):
    """Return `setup` with which the process gets SIGTERM in a function, "os.fsync" for example."""
    return ("import os, signal\nfrom labkit import metrics\n"
            f"{what} = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)")


@pytest.mark.parametrize("what", ["metrics.denoising", "os.fsync"])
def test_a_signal_leaves_nothing_behind(what, weights, start, folder):
    weights()
    (folder / "tmp").mkdir()
    ended = start("lab1.py", *GLYPHS, "--step", "5", setup=sigterm_in(what),
                  environment={"TMPDIR": f"{folder}/tmp"}).end()
    assert ended[0] == 143 and "Traceback" not in ended[2]
    assert os.listdir("out") == [] == os.listdir("tmp")


MISTAKES = [
    (["-l", "missing.pth"], "missing.pth does not exist", 1),
    (["-l", "folder"], "folder is not a file", 1),
    (["-l", "text.pth"], "text.pth is damaged, or not written by torch.save", 1),
    (["-l", "other.pth"], "expected the network's state_dict: fc1.weight", 1),
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
    for test in lab1.TESTS:
        monkeypatch.setitem(lab1.TESTS, test, lambda *_: pytest.fail("the work has begun"))
    out = [] if "--out" in args else ["--out", "."]
    options = [option for option in GLYPHS if option not in ("--out", "out")]
    assert words in refused(lab1.main, *options, *out, *args, status=status)
    assert sorted(folder.rglob("*")) == before


def test_weights_have_to_be_named(refused):
    assert "required: -l/--load" in refused(lab1.main, status=2)
