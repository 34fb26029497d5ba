import io
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from labkit import UsageError, figures


def epochs(count):
    return [{"loss": 0.05 / number, "test_loss": 0.06 / number} for number in range(1, count + 1)]


def record(dataset="mnist", noise=0.0, epochs=50):
    return {"dataset": dataset, "epochs": epochs, "settings": {"bottleneck": 8, "epochs": 60, "noise": noise}}


def pixels(figure):
    return plt.imread(io.BytesIO(figures.to_bytes(figure)))


@pytest.mark.parametrize("count", [1, 2, 50])
def test_the_loss_curve_shows_losses_over_whole_epochs(count):
    figure, history = Figure(), epochs(count)
    figures.loss_curve(figure, history, record("kmnist"))
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
    figures.loss_curve(figure, epochs(count), record(noise=0.2))
    FigureCanvasAgg(figure).draw()
    axes, = figure.axes
    assert axes.get_ylim()[1] > 0.06  # the highest
    legend = axes.get_legend().get_window_extent().padded(3)  # pixels: the radius of a point
    for line in axes.lines:
        assert not any(legend.contains(*point) for point in axes.transData.transform(line.get_xydata()))


def test_one_epoch_is_a_point_that_can_be_seen():
    figure = Figure()
    figures.loss_curve(figure, epochs(1), record())
    assert {line.get_marker() for line in figure.axes[0].lines} == {"."}


def test_captions_and_images_appear_as_given():
    figure, captions = Figure(), ["7, image 0", "ü", r"a $\no$ formula.png"]
    rows = torch.rand(3, 2, 784, generator=torch.Generator().manual_seed(0))
    figures.image_rows(figure, r"Input | output of $\no$ formula", rows.unbind(1), captions, columns=2)
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
    figures.image_rows(figure, "title", torch.zeros(2, 1, 784), ["7, my7.png"], columns=5)
    box = figure.axes[0].get_position()
    assert box.width > 0.9 and box.height > 0.7


def test_a_long_title_fits_the_figure():
    figure = Figure()
    title = "Reconstruction on mnist by " + "a-long-name-of-a-folder/" * 5 + "model.pth\nshort"
    figures.image_rows(figure, title, torch.zeros(2, 10, 784), ["a"] * 10, columns=5)
    FigureCanvasAgg(figure).draw()
    drawn = figure._suptitle.get_window_extent()
    assert 0 < drawn.x0 and drawn.x1 < figure.bbox.width


@pytest.mark.parametrize("count, name", [(10, "5 (image 6386)"), (30, "5 (image 6386)"),
                                         (100, "5 (image 6386)"), (10, "IMG_2025112…3456789.jpg")])
def test_captions_leave_a_gap_between_them(count, name):
    figure = Figure()
    captions = [f"{name}: MSE 0.0161 → 0.0917"] * count
    figures.image_rows(figure, "title", torch.zeros(3, count, 784), captions, columns=5)
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
    figure, rows = Figure(), torch.zeros(3, 100, 784)
    figures.image_rows(figure, "title", rows, ["9, image 9999: MSE 0.0123 to 0.0123"] * 100, columns=2)
    assert len(figure.axes) == 100 and figure.get_figheight() <= figures.MAX_HEIGHT


def test_each_unit_has_a_row_and_a_mark_where_the_image_stands():
    figure, captions = Figure(), ["unit 1: 0 to 9", "unit 0: DEAD"]
    examples, rows = torch.zeros(2, 784), torch.zeros(2, 11, 784)
    figures.unit_rows(figure, "title", examples, rows, captions, positions=torch.tensor([0.5, 7.0]))
    assert [axes.get_title() for axes in figure.axes] == ["input | output", *captions]
    marks = [axes.lines[0].get_xdata()[0] for axes in figure.axes[1:]]
    assert marks == [14.5 + 30 * 5, 14.5 + 30 * 10]  # in the middle, and at the end where it is beyond


def test_a_legend_and_the_ranking_are_in_one_column_up_to_ten_units():
    for units, columns in ((1, 1), (10, 1), (11, 2), (29, 3)):
        figure = Figure()
        rows, captions = torch.zeros(units, 11, 784), [f"{rank}. unit" for rank in range(1, units + 1)]
        figures.unit_rows(figure, "title", torch.zeros(2, 784), rows, captions, torch.zeros(units))
        assert figure.axes[0].get_legend() and figure.get_figheight() <= figures.MAX_HEIGHT
        assert figure.axes[1].get_subplotspec().get_gridspec().ncols == columns


@pytest.mark.parametrize("steps, labels", [(2, ["start", "0", "1", "end"]),
                                           (4, ["start", "0", "1/3", "2/3", "1", "end"])])
def test_each_image_of_an_interpolation_says_where_on_the_line_it_is(steps, labels):
    figure = Figure()
    figures.interpolation_rows(figure, "title", torch.zeros(steps + 2, 3, 784), ["a"] * 3)
    texts = figure.axes[-1].texts
    assert [text.get_text() for text in texts] == labels
    assert [text.get_position()[0] for text in texts] == [14.5 + 30 * place for place in range(steps + 2)]


def test_the_small_print_tells_ten_students_figures_apart():
    text = figures.small_print(record(noise=0.2))
    assert text == "trained on mnist, 50 epochs, bottleneck 8, noise 0.2"
    assert figures.small_print(None) == "these weights do not say how they were trained"
    figure = Figure()
    figures.loss_curve(figure, epochs(2), record(noise=0.2))
    assert [print_.get_text() for print_ in figure.texts] == [text]
    figures.sign(figure, "long " * 60)
    FigureCanvasAgg(figure).draw()
    assert figure.texts[-1].get_window_extent().width < figure.bbox.width


def test_the_map_of_codes_shows_every_code_and_each_digits_place():
    figure, coordinates = Figure(), torch.randn(60, 2)
    labels, decoded = torch.arange(60) % 3, torch.rand(4, 5, 784)
    low, high = torch.tensor([-3.0, -2.0]), torch.tensor([3.0, 2.0])
    figures.code_map(figure, "t", ["x", "y"], coordinates, labels, low, high, decoded, torch.rand(10, 2, 784))
    dots, plane, strip = figure.axes
    assert [text.get_text() for text in dots.texts] == ["0", "1", "2"]
    assert dots.lines[1].get_xydata().tolist() == coordinates[1::3].tolist()
    assert dots.get_xlim() == plane.get_xlim() == (-3, 3) and dots.get_ylim() == plane.get_ylim() == (-2, 2)
    picture = torch.as_tensor(plane.images[0].get_array())
    assert picture[28:56, 56:84].equal(decoded[1, 2].view(28, 28)) and strip.images


@pytest.mark.parametrize("name", ["loss.png", "loss", "loss.svg", "loss.PDF"])
def test_formats_are_those_that_matplotlib_can_write(name):
    figures.require_format(Path(name))
    assert figures.to_bytes(Figure(), Path(name).suffix)[:4] in (b"\x89PNG", b"<?xm", b"%PDF")
    with pytest.raises(UsageError, match="try .png, .pdf or .svg"):
        figures.require_format(Path("loss.xyz"))
