"""Pictures of digits as people make them, drawn here with Pillow, and how they come out."""

import struct
import warnings
import zlib

import numpy
import pytest
import torch
from PIL import Image, ImageDraw

from labkit import picture
from labkit.picture import PictureError, prepare, read_picture

SEVEN = [(0.2, 0.15), (0.8, 0.18), (0.45, 0.55), (0.4, 0.95)]


def drawn(size=(280, 280), corner=(60, 30), height=200, paper=255, ink=0, mode="L"):
    """Return a Pillow image of a 7 whose strokes are an eighth of its height."""
    image = Image.new(mode, size, paper)
    points = [(corner[0] + x * height, corner[1] + y * height) for x, y in SEVEN]
    ImageDraw.Draw(image).line(points, ink, height // 8, joint="curve")
    return image


def read(image, path, **options):
    image.save(path, **options)
    return read_picture(path)


def write_header(path, size):
    """Write a PNG that says it is of a size, and has no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
    header = b"\x89PNG\r\n\x1a\n\0\0\0\r" + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(header + b"\0\0\0\1IDAT")


def error(a, b):
    return (a - b).square().mean().item()


@pytest.fixture
def seven(tmp_path):
    return read(drawn(), tmp_path / "my7.png")


def test_a_digit_is_20_pixels_high_and_its_mass_in_the_middle(seven):
    assert seven.shape == (784,) and seven.dtype == torch.float32
    image = seven.view(28, 28)
    assert image.min() == 0 and 0.9 < image.max() <= 1
    assert (image.amax(1) > 0).sum() == 20 and (image.amax(0) > 0).sum() < 20
    places = torch.arange(28.0)
    for mass in (image.sum(0), image.sum(1)):
        assert abs(mass @ places / mass.sum() - 14) <= 0.5


@pytest.mark.parametrize("options", [
    {"paper": 0, "ink": 255},
    {"size": (2000, 1500), "corner": (1200, 40), "height": 1000},
    {"size": (900, 300), "corner": (10, 80)},
    {"paper": 200, "ink": 90},
    {"paper": (250, 245, 230), "ink": (20, 40, 160), "mode": "RGB"},
    {"paper": (0, 0, 0, 0), "ink": (0, 0, 0, 255), "mode": "RGBA"},
    {"paper": 60000, "ink": 2000, "mode": "I;16"},
    {"paper": 1, "ink": 0, "mode": "1"},
])
def test_the_same_strokes_come_out_the_same(seven, tmp_path, options):
    assert error(read(drawn(**options), tmp_path / "other.png"), seven) < 0.005


def test_a_photograph_is_read_in_bad_light(seven, tmp_path):
    paper = numpy.asarray(drawn((1200, 900), (400, 200), 400), float) / 255
    y, x = numpy.mgrid[0:1:900j, 0:1:1200j]
    light = (0.9 - 0.4 * x - 0.2 * y) * (1 - 0.3 * ((x - 0.5) ** 2 + (y - 0.5) ** 2))
    grain = numpy.random.default_rng(0).normal(0, 0.04, light.shape)
    photo = light * (0.25 + 0.75 * paper) + grain
    Image.fromarray((photo.clip(0, 1) * 255).astype("uint8")).save(tmp_path / "photo.jpg", quality=60)
    image = read_picture(tmp_path / "photo.jpg").view(28, 28)
    shifts = [image.roll((down, right), (0, 1)) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    assert min(error(shifted.flatten(), seven) for shifted in shifts) < 0.01  # the mass decides which


def test_a_phone_held_upright_says_so(seven, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by 90 degrees to the right to look at it
    turned = drawn().transpose(Image.Transpose.ROTATE_90)
    assert error(read(turned, tmp_path / "turned.jpg", exif=exif, quality=95), seven) < 0.002


def test_prepare_leaves_a_prepared_image_as_it_is(seven):
    assert error(prepare(seven.view(28, 28)).flatten(), seven) < 1e-12
    assert prepare(torch.zeros(9, 5)).sum() == 0


def test_prepare_averages_by_area():
    ink = torch.zeros(50, 90)
    ink[10:40, 20:40] = 1  # 30 x 20 to 20 x 13: nothing but ink
    image = prepare(ink)
    assert image.sum() == pytest.approx(20 * 13, rel=1e-6)
    assert image[5:25, 8:21].min() == pytest.approx(1)

    ink = torch.tensor([0.2, 0.8, 0.5]).repeat(10)[:, None].expand(30, 30)  # 1.5 rows to a pixel
    column = prepare(ink)[:, 14]
    assert column[column > 0].tolist() == pytest.approx(10 * [0.4, 0.6])


def test_prepare_keeps_heavy_corners_inside():
    ink = torch.full((100, 100), 0.001)
    ink[90:, 90:] = 1
    image = prepare(ink)
    assert image[:20, :20].min() > 0 and image[20:].sum() == 0 and image[:, 20:].sum() == 0
    assert torch.equal(prepare(ink.flip(0, 1)), image.flip(0, 1))


def test_a_picture_that_cannot_be_used_is_refused_in_one_line(tmp_path):
    (tmp_path / "text.png").write_text("seven")
    drawn().save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:200])
    drawn().save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:1500])
    Image.new("L", (200, 200), 255).save(tmp_path / "blank.png")
    drawn(paper=200, ink=190).save(tmp_path / "pale.png")
    noise = numpy.random.default_rng(0).normal(180, 12, (300, 300)).clip(0, 255)
    Image.fromarray(noise.astype("uint8")).save(tmp_path / "paper.jpg")
    for name, width in (("large.png", 8000), ("larger.png", 10_000), ("huge.png", 30_000)):
        write_header(tmp_path / name, (width, width))
    refused = {"missing.png": "does not exist", "text.png": "not a picture",
               "cut.png": "damaged", "cut.jpg": "damaged",
               "large.png": "50 million", "larger.png": "50 million", "huge.png": "50 million",
               "blank.png": "no ink", "pale.png": "no ink", "paper.jpg": "no ink"}
    for name, reason in refused.items():
        with warnings.catch_warnings(), pytest.raises(PictureError, match=reason) as raised:
            warnings.simplefilter("error")
            read_picture(tmp_path / name)
        text = str(raised.value)
        assert text.startswith(str(tmp_path / name)) and "\n" not in text

    with pytest.raises(PictureError, match=f"^{tmp_path} is not a file$"):
        read_picture(tmp_path)


def test_lines_too_thin_for_28_pixels_are_named(tmp_path):
    for width in (2, 60):
        drawing = Image.new("L", (1000, 1000), "white")
        ImageDraw.Draw(drawing).line([(200, 200), (800, 200), (400, 900)], fill="black", width=width)
        drawing.save(tmp_path / f"{width}.png")
    with pytest.raises(PictureError, match="too thin"):
        read_picture(tmp_path / "2.png")
    assert read_picture(tmp_path / "60.png").max() > 0.9


def test_the_limit_is_found_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(picture, "MOST_PIXELS", 280 * 280 - 1)
    monkeypatch.setattr(picture, "to_grey", lambda image: pytest.fail("decoded"))
    drawn().save(tmp_path / "my7.png")
    with pytest.raises(PictureError, match="pixels"):
        read_picture(tmp_path / "my7.png")
