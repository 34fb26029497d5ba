import io

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from labkit import figures


def epochs(count):
    return [{"epoch": number, "loss": 0.05 / number, "test_loss": 0.06 / number, "learning_rate": 1e-3,
             "seconds": 1.0} for number in range(1, count + 1)]


def pixels(figure, **options):
    return plt.imread(io.BytesIO(figures.to_bytes(figure, **options)))


@pytest.mark.parametrize("count", [1, 2, 50])
def test_the_loss_curve_shows_losses_over_whole_epochs(count):
    figure, history = Figure(), epochs(count)
    figures.loss_curve(figure, history, "kmnist", noise=0)
    assert pixels(figure).std() > 0.05  # drawn, and not empty
    axes, = figure.axes
    training, test = axes.lines
    assert training.get_label() == "training images, mean over the epoch"
    assert test.get_label() == "test images"
    for line, losses in ((training, "loss"), (test, "test_loss")):
        assert line.get_xdata().tolist() == list(range(1, count + 1))
        assert line.get_ydata().tolist() == [epoch[losses] for epoch in history]
    low, high = axes.get_xlim()
    shown = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert shown and all(tick == int(tick) for tick in shown)
    assert "kmnist" in axes.get_title() and f"{0.06 / count:.4f}" in axes.get_title()
    assert f"after epoch {count}" in axes.get_title() and axes.get_ylim()[0] == 0


@pytest.mark.parametrize("count", [1, 2, 50])
def test_the_legend_covers_no_loss(count):
    figure = Figure()
    figures.loss_curve(figure, epochs(count), "mnist", noise=0.2)
    FigureCanvasAgg(figure).draw()
    axes, = figure.axes
    legend = axes.get_legend().get_window_extent().padded(3)  # pixels: the radius of a point
    for line in axes.lines:
        assert not any(legend.contains(*point) for point in axes.transData.transform(line.get_xydata()))


def test_one_epoch_is_a_point_that_can_be_seen():
    figure = Figure()
    figures.loss_curve(figure, epochs(1), "mnist", noise=0)
    assert {line.get_marker() for line in figure.axes[0].lines} == {"."}


def test_the_loss_curve_says_that_the_training_images_were_noisy():
    figure = Figure()
    figures.loss_curve(figure, epochs(2), "mnist", noise=0.2)
    training, test = figure.axes[0].lines
    assert training.get_label() == "training images with 0.2 × noise, mean over the epoch"
    assert test.get_label() == "test images"


def test_captions_and_images_appear_as_given():
    figure, captions = Figure(), ["7, image 0", "ü", r"a $\no$ formula.png"]
    rows = torch.rand(3, 2, 784, generator=torch.Generator().manual_seed(0))
    figures.image_rows(figure, r"Input | output of $\no$ formula", rows, captions, columns=2)
    assert [axes.get_title() for axes in figure.axes] == captions
    assert figure.get_suptitle() == r"Input | output of $\no$ formula"
    for axes, row in zip(figure.axes, rows):
        picture = torch.as_tensor(axes.images[0].get_array())
        assert picture[:, 1:29].equal(row[0].view(28, 28))
        assert picture[:, -29:-1].equal(row[1].view(28, 28))
        assert axes.images[0].get_clim() == (0, 1)  # the same grey in every row
    assert pixels(figure).std() > 0.1


def test_one_image_fills_the_figure():
    figure = Figure()
    figures.image_rows(figure, "title", torch.zeros(1, 2, 784), ["7, my7.png"], columns=5)
    box = figure.axes[0].get_position()
    assert box.width > 0.9 and box.height > 0.7


def test_a_long_title_fits_the_figure():
    figure = Figure()
    title = "Reconstruction on mnist by " + "a-long-name-of-a-folder/" * 5 + "model.pth\nshort"
    figures.image_rows(figure, title, torch.zeros(10, 2, 784), ["a"] * 10, columns=5)
    FigureCanvasAgg(figure).draw()
    drawn = figure._suptitle.get_window_extent()
    assert 0 < drawn.x0 and drawn.x1 < figure.bbox.width


@pytest.mark.parametrize("count, name", [(10, "5 (image 6386)"), (30, "5 (image 6386)"),
                                         (100, "5 (image 6386)"), (10, "IMG_2025112…3456789.jpg")])
def test_captions_leave_a_gap_between_them(count, name):
    figure = Figure()
    captions = [f"{name}: MSE 0.0161 → 0.0917"] * count
    figures.image_rows(figure, "title", torch.zeros(count, 3, 784), captions, columns=5)
    FigureCanvasAgg(figure).draw()
    first, second = (axes.title.get_window_extent() for axes in figure.axes[:2])
    assert second.x0 - first.x1 > 5 and first.x0 > 0


@pytest.mark.parametrize("name, expected", [
    ("my7.png", "my7.png"),
    ("two\nlines.png", "two lines.png"),
    ("\udcff.png", "?.png"),
    ("a" * 20 + "b" * 20 + ".png", "aaaaaaaaaaa…bbbbbbb.png"),
])
def test_a_files_name_is_one_short_line_that_can_be_drawn(name, expected, recwarn):
    assert figures.label(name, 24) == expected
    figure = Figure()
    figure.suptitle(expected + " 数")
    figures.to_bytes(figure)
    assert not recwarn.list


def test_100_images_fit_a_screen():
    figure, rows = Figure(), torch.zeros(100, 3, 784)
    figures.image_rows(figure, "title", rows, ["9, image 9999: MSE 0.0123 to 0.0123"] * 100, columns=2)
    assert len(figure.axes) == 100 and figure.get_figheight() <= figures.MAX_HEIGHT


def test_each_unit_has_a_row_and_a_mark_where_the_image_stands():
    figure, captions = Figure(), ["unit 1: 0 to 9", "unit 0: DEAD"]
    examples, rows = torch.zeros(2, 784), torch.zeros(2, 11, 784)
    figures.unit_rows(figure, "title", examples, rows, captions, positions=torch.tensor([0.5, 7.0]))
    assert [axes.get_title() for axes in figure.axes] == ["input | output", *captions]
    marks = [axes.lines[0].get_xdata()[0] for axes in figure.axes[1:]]
    assert marks == [14.5 + 30 * 5, 14.5 + 30 * 10]  # in the middle, and at the end where it is beyond


def test_formats_are_those_that_matplotlib_can_write():
    assert figures.can_write("png") and figures.can_write("svg") and figures.can_write("pdf")
    assert not figures.can_write("xyz") and not figures.can_write("")
    assert figures.to_bytes(Figure(), "svg").startswith(b"<?xml")


@pytest.fixture
def display(monkeypatch):
    """Set or unset what tells whether Linux has a display."""

    def display(name):
        for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
            monkeypatch.delenv(variable, raising=False)
        if name:
            monkeypatch.setenv(name, "0")

    monkeypatch.setattr(figures.sys, "platform", "linux")
    return display


def test_only_linux_can_be_without_a_display(display, monkeypatch):
    display(None)
    assert not figures.has_display()
    display("WAYLAND_DISPLAY")
    assert figures.has_display()
    display(None)
    monkeypatch.setattr(figures.sys, "platform", "darwin")
    assert figures.has_display()


def test_windows_open_where_there_is_a_display_and_the_backend_has_them(display, monkeypatch):
    display("DISPLAY")
    assert figures.interactive_pyplot() is None  # Agg
    monkeypatch.setattr(plt, "get_backend", lambda: "TkAgg")
    assert figures.interactive_pyplot() is plt
    display(None)
    assert figures.interactive_pyplot() is None
