import os
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import Report, draw_seven
from matplotlib.figure import Figure

import lab1
from labkit import metrics, results, testset
from model import load

PICTURES = ["bottleneck.png", "codes.png", "denoising.png", "interpolation.png", "reconstruction.png"]
GLYPHS = ("-l", "model.pth", "--dataset", "glyphs", "--no-show", "--out", "out")


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


@pytest.fixture
def weights(folder):
    """Write the weights of an untrained network with `bottleneck` units to model.pth."""

    def weights(bottleneck=8):
        torch.manual_seed(0)
        model = Report(N_bottleneck=bottleneck)
        with torch.no_grad():
            model.fc2.bias.fill_(1)
        torch.save(model.state_dict(), "model.pth")

    return weights


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


@pytest.mark.parametrize("options, trained_on, folder", [
    ("-l model.pth", "mnist", "outputs/model"),
    ("-l outputs/mnist/model.pth", None, "outputs/mnist-model"),
    ("-l ../theirs/a.pth -i 3", None, "outputs/theirs-a/chosen"),
    ("-l model.pth --dataset mnist", "mnist", "outputs/model"),
    ("-l model.pth --dataset mnist", "not-mnist", "outputs/model"),
    ("-l model.pth --dataset mnist", None, "outputs/model"),
    ("-l model.pth --dataset glyphs", "mnist", "outputs/model/glyphs"),
    ("-l model.pth --dataset glyphs -i 3", "mnist", "outputs/model/glyphs/chosen"),
])
def test_results_of_other_weights_data_and_images_go_elsewhere(options, trained_on, folder):
    record = trained_on and {"dataset": trained_on, "epochs": 1, "settings": {}}
    assert results.default_folder(lab1.parse(options.split()), record) == Path(folder)


@pytest.mark.parametrize("steps, pictures", [("5", ["denoising.svg"]), ("6", ["interpolation.svg"]),
                                             ("4 4 6", ["interpolation.svg", "reconstruction.svg"])])
def test_steps_and_formats_of_choice(steps, pictures, weights):
    weights()
    lab1.main([*GLYPHS, "-i", "3", "--format", "svg", "--step", *steps.split()])
    assert sorted(os.listdir("out")) == pictures
    for picture in pictures:
        title = picture.removesuffix(".svg").capitalize()
        assert f"<!-- {title} on glyphs" in Path("out", picture).read_text()


def lab_of(*options):
    args = lab1.parse([*GLYPHS, *options])
    model, record = load(args.load[0])
    return testset.set_up(args, model, record, torch.device("cpu"))


@torch.inference_mode()
def test_a_picture_of_ones_own_is_shown_with_a_frame_round_its_digit(weights):
    weights()
    draw_seven("my7.png")
    figure = Figure()
    lab1.reconstruction(lab_of("-i", "my7.png", "3"), figure)
    (photo, *none), *others = (axes.child_axes for axes in figure.axes)
    frame, = photo.patches
    assert photo.images[0].get_array().shape == (200, 200) and not figure.axes[0].images
    assert (*frame.get_xy(), frame.get_width(), frame.get_height()) == pytest.approx(
        (46, 34, 108, 132), abs=9)  # as draw_seven() draws it
    captions = [axes.get_title().partition(":")[0] for axes in figure.axes]
    assert captions[:2] == ["the picture, its digit framed", "my7.png"] and captions[2].endswith("(image 3)")
    assert not any([none, *others])


@torch.inference_mode()
def test_pictures_of_one_name_in_two_folders_are_told_apart(weights, folder):
    weights()
    for student in ("ada", "emmy"):
        (folder / student).mkdir()
        draw_seven(f"{student}/7.png")
    numbers = lab1.reconstruction(lab_of("-i", "ada/7.png", "emmy/7.png"), Figure())
    assert [*numbers["mse_of_own_pictures"]] == ["ada/7.png", "emmy/7.png"]


def test_more_units_than_pixels_leave_pca_no_error(weights, capsys):
    weights(1000)
    lab1.main([*GLYPHS, "--step", "4"])
    assert "PCA, 1000 components   MSE 0.0000" in capsys.readouterr().out


@torch.inference_mode()
def test_no_code_is_decoded_that_a_relu_cannot_give(weights, monkeypatch):
    weights(4)
    lab, lowest = lab_of(), []
    lab.model.fc2.bias.sub_(1)
    decode = lab.model.decode
    monkeypatch.setattr(lab.model, "decode", lambda code: lowest.append(code.min()) or decode(code))
    lab1.codes(lab, Figure())
    assert min(lowest) == 0


@pytest.mark.parametrize("times, warned", [(0.99, True), (1.01, False)])
@torch.inference_mode()
def test_a_reconstruction_worse_than_pcas_is_warned_of(times, warned, weights, capsys):
    weights()
    lab = lab_of()
    mse = metrics.mse(lab.model, lab.images, lab.images).item()
    lab.pca_mse = [times * mse] * 785
    lab1.reconstruction(lab, Figure())
    assert capsys.readouterr().err.startswith("warning: worse than PCA") == warned


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
    monkeypatch.setattr(results, "has_display", lambda: True)
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
    (["-l", "text.pth"], "text.pth was not written by torch.save, or is damaged: expected a file like", 1),
    (["-l", "other.pth"], "holds weight, bias; expected fc1.weight", 1),
    (["-l", "huge.pth"], "huge.pth gives codes or outputs that are not finite: train", 1),
    (["-l", "huge.pth", "--explore"], "huge.pth gives codes or outputs that are not finite: train", 1),
    (["--out", "text.pth"], "text.pth", 1),
    (["--out", "taken"], "taken/metrics.json is a folder", 1),
    (["--explore", "--out", "text.pth"], "text.pth", 1),
    (["-i", "300"], "-i 300: expected an index from 0 to 299, worst, best, digit=0", 2),
    (["-i", "-1"], "-i -1: expected an index", 2),
    (["-i", "digit=x"], "-i digit=x: expected", 2),
    (["-i", "digit=11"], "-i digit=11: expected", 2),
    (["-i", *map(str, range(101))], "-i chooses 101 images: a figure shows at most 100", 2),
    (["-i", "missing.png"], "missing.png does not exist: check the name", 1),
    (["-i", "text.pth"], "text.pth is not a picture that can be read", 1),
    (["--noise", "-1"], "argument --noise: -1: expected a number from 0 to ", 2),
    (["--steps", "1"], "argument --steps: 1: expected a whole number from 2 to 100", 2),
    (["--seed", "-1"], "argument --seed: -1: expected a whole number from 0 to ", 2),
    (["--step", "7"], "invalid choice: '7' (choose from", 2),
    (["--step", "denoising"], "invalid choice: 'denoising' (choose from", 2),
    (["--explore", "--step", "4"], "--explore takes no --step: leave it out", 2),
    (["--explore", "-i", "4"], "--explore takes no --index", 2),
    (["-l", "model.pth", "other.pth", "-i", "4"], "-l with several files takes no --index", 2),
    (["-l", "*.pth", "--explore"], "-l with several files takes no --explore", 2),
    (["-l", "nets", "--step", "4"], "-l with several files takes no --step", 2),
]


@pytest.mark.parametrize("args, words, status", MISTAKES, ids=[" ".join(args)[:30] for args, *_ in MISTAKES])
def test_mistakes_are_named_in_one_line_before_any_work(args, words, status, weights, folder, refused,
                                                        monkeypatch):
    weights()
    (folder / "text.pth").write_text("not weights")
    (folder / "folder").mkdir()
    (folder / "nets").mkdir()
    (folder / "nets/one.pth").write_text("not weights")
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
    line = refused(lab1.main, "model.pth", status=2)
    assert "required: -l/--load, as in python lab1.py -l model.pth (see --help)" in line
