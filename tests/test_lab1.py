import json
import os

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import Report
from matplotlib.figure import Figure

import lab1
from labkit import checkpoint, data, metrics

GLYPHS = ("--dataset", "glyphs", "--no-show")


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


@pytest.fixture
def weights(tmp_path):
    """Write the weights of the report's network with so many units, and return their path."""

    def weights(units=8, dead=()):
        torch.manual_seed(0)
        model = Report(N_bottleneck=units)
        with torch.no_grad():
            model.fc2.bias.fill_(1)
            for unit in dead:
                model.fc2.bias[unit] = -100
        torch.save(model.state_dict(), tmp_path / "model.pth")
        return tmp_path / "model.pth"

    return weights


def test_the_readmes_command(run, weights, tmp_path):
    closed = "import torchvision; torchvision.datasets.MNIST.mirrors = ['http://127.0.0.1:9/']"
    status, out, err = run("lab1.py", "-l", weights(5), setup=closed)
    assert status == 0 and len(err.splitlines()) == 2 and "using glyphs instead" in err
    assert out.startswith("glyphs: 600 test images") and "PCA, 5 components" in out
    pictures = ["bottleneck.png", "denoising.png", "interpolation.png", "reconstruction.png"]
    assert sorted(os.listdir(tmp_path / "outputs/glyphs")) == [*pictures[:3], "metrics.json", pictures[3]]
    for picture in pictures:
        assert plt.imread(tmp_path / "outputs/glyphs" / picture).std() > 0.1  # not an empty page


@pytest.mark.parametrize("units", [2, 8, 32])
def test_the_bottleneck_is_read_from_the_file(units, weights, small, tmp_path):
    lab1.main(["-l", str(weights(units)), "--out", "out", *GLYPHS])
    numbers = json.loads((tmp_path / "out/metrics.json").read_text())["bottleneck"]
    assert numbers["units"] == units == len(numbers["active_fraction_of_each_unit"])


def test_the_numbers_are_those_of_the_whole_test_set(weights, small, tmp_path):
    lab1.main(["-l", str(weights()), "--out", "out", "--noise", "0.3", *GLYPHS])
    numbers = json.loads((tmp_path / "out/metrics.json").read_text())
    test = data.load("glyphs", None, "test")[1]
    images, model = test.images / 255, checkpoint.load_weights("model.pth")
    errors = (model(images) - images) ** 2
    reconstruction, denoising, units = (numbers[test] for test in ("reconstruction", "denoising", "bottleneck"))
    assert reconstruction["mse"] == pytest.approx(errors.mean().item(), rel=1e-5)
    assert denoising["noisy_mse"] == pytest.approx(0.09, rel=0.02)
    assert denoising["noisy_psnr_db"] == pytest.approx(10.46, abs=0.1)
    threes = errors[test.labels == 3].mean().item()
    assert reconstruction["mse_of_each_digit"]["3"] == pytest.approx(threes, rel=1e-5)
    assert denoising["mse_at_noise"]["0.3"] == pytest.approx(denoising["mse"], rel=1e-5)
    assert units["live_units"] == 8 and sum(units["importance_of_each_unit"]) == pytest.approx(1)


def test_pca_is_the_best_linear_code():
    images = torch.randn(200, 30, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.linspace(1, 0.1, 30))
    centred = images - images.mean(0)
    u, s, v = torch.linalg.svd(centred, full_matrices=False)
    residual = centred - u[:, :5] * s[:5] @ v[:5]
    assert metrics.pca_mse(images, 5) == pytest.approx(residual.square().mean().item(), rel=1e-4)
    assert metrics.pca_mse(images, 30) == pytest.approx(0, abs=1e-6)


def test_interpolation_is_linear_between_the_codes(weights):
    model = checkpoint.load_weights(weights())
    start, end = torch.rand(2, 3, 784, generator=torch.Generator().manual_seed(0))
    between = lab1.interpolate(model, start, end, 8)
    assert between.shape == (3, 8, 784)
    torch.testing.assert_close(between[:, 0], model(start))
    torch.testing.assert_close(between[:, 7], model(end))
    third = model.encode(start) * 5 / 7 + model.encode(end) * 2 / 7
    torch.testing.assert_close(between[:, 2], model.decode(third))


def test_noise_is_the_same_for_the_same_seed():
    images = torch.zeros(50, 784)
    noise = metrics.normal_like(images, seed=0)
    assert noise.equal(metrics.normal_like(images, seed=0)) and not noise.equal(metrics.normal_like(images, seed=1))
    assert noise.std() == pytest.approx(1, rel=0.02)


def test_which_images():
    labels, errors = torch.arange(40) % 10, torch.linspace(1, 0, 40)
    assert lab1.choose([], labels, errors) == list(range(10))
    assert lab1.choose(["7", "39"], labels, errors) == [7, 39]
    assert lab1.choose(["worst"], labels, errors) == list(range(10))
    assert lab1.choose(["best"], labels, errors) == list(range(39, 29, -1))
    assert lab1.choose(["digit=7", "0"], labels, errors) == [7, 17, 27, 37, 0]


@pytest.mark.parametrize("args", [["--step", "4"], ["--step", "6", "-i", "worst"], ["-i", "3", "5", "8"], ["-i", "599"]])
def test_steps_and_images_of_choice(args, weights, small, tmp_path):
    lab1.main(["-l", str(weights()), "--out", "out", *GLYPHS, *args])
    pictures = {"4": ["reconstruction.png"], "6": ["interpolation.png"]}
    all_of_them = ["bottleneck.png", "denoising.png", "interpolation.png", "reconstruction.png"]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == pictures.get(args[1], all_of_them)


def test_a_dead_unit_is_shown_as_dead(weights, small, capsys):
    model = checkpoint.load_weights(weights(4, dead=[2]))
    test = data.load("glyphs", None, "test")[1]
    lab, figure = lab1.Lab(model, "glyphs", data.to_float(test.images), test.labels, data.to_float(test.images[:1]), ["0"], 1, 0.2, 8, 0), Figure()
    with torch.inference_mode():
        numbers = lab1.bottleneck(lab, figure)
    captions = [axes.get_title() for axes in figure.axes]
    assert numbers["importance_of_each_unit"][2] == 0 and captions[-1] == "unit 2: DEAD, active on no test image"
    assert "DEAD" not in "".join(captions[:-1])
    lab1.main(["-l", "model.pth", "--out", "out", *GLYPHS])
    assert "3 of 4 units live" in capsys.readouterr().out


def test_windows_open_after_the_files_are_written_where_there_is_a_display(weights, small, tmp_path, monkeypatch, recwarn):
    opened = []
    monkeypatch.setattr(plt, "show", lambda: opened.append((tmp_path / "out/reconstruction.png").exists()))
    arguments = ["-l", str(weights()), "--out", "out", "--dataset", "glyphs", "--step", "4"]
    lab1.main(arguments)
    assert opened == [] and not recwarn.list
    monkeypatch.setattr(plt, "get_backend", lambda: "TkAgg")
    lab1.main(arguments)
    assert opened == [True]
    lab1.main([*arguments, "--no-show"])
    assert opened == [True]


@pytest.mark.parametrize("args, words, status", [
    (["-l", "missing.pth"], "missing.pth is not there", 1),
    (["-l", "folder"], "folder is not a file", 1),
    (["-l", "text.pth"], "text.pth is damaged or no file of torch.save's", 1),
    (["-l", "other.pth"], "expected fc1.weight", 1),
    (["-l", "model.pth", "--out", "text.pth"], "text.pth", 1),
    (["-l", "model.pth", "-i", "600"], "-i 600: takes indices from 0 to 599, worst, best, digit=0", 2),
    (["-l", "model.pth", "-i", "-1"], "-i -1: takes indices", 2),
    (["-l", "model.pth", "-i", "digit=x"], "-i digit=x: takes", 2),
    (["-l", "model.pth", "-i", "digit=11"], "-i digit=11: takes", 2),
    (["-l", "model.pth", "--noise", "-1"], "--noise -1.0: must be 0 or more", 2),
    (["-l", "model.pth", "--steps", "1"], "--steps 1: must be 2 or more", 2),
    (["-l", "model.pth", "--step", "7"], "invalid choice: 7", 2),
    (["-l", "model.pth", "--explore"], "--explore needs a window", 1),
    ([], "required: -l/--load", 2),
])
def test_mistakes_are_named_in_one_line(args, words, status, weights, small, tmp_path, refused):
    weights()
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "folder").mkdir()
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    before = sorted(os.listdir(tmp_path))
    assert words in refused(lab1.main, *GLYPHS, *args, status=status)
    assert sorted(os.listdir(tmp_path)) == before
