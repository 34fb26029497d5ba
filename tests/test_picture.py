"""Pictures of digits as people make them, drawn here with Pillow, and how they come out."""

import struct
import warnings
import zlib

import numpy
import pytest
import torch
from PIL import Image, ImageDraw

from labkit import picture
from labkit.picture import PictureError, find_digit, prepare, read_picture

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
    assert error(read(drawn(**options), tmp_path / "other.png"), seven) < 0.007


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


def nearest(image, seven):
    """Return the error of `image` to the 7, shifted by at most a pixel: the mass decides which."""
    image = image.view(28, 28)
    shifts = [image.roll((down, right), (0, 1)) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    return min(error(shifted.flatten(), seven) for shifted in shifts)


def table_edge(draw):
    draw.rectangle((0, 0, 25, 280), 60)


def table_all_round(draw):
    for box in ((0, 0, 25, 280), (255, 0, 280, 280), (0, 0, 280, 20), (0, 260, 280, 280)):
        draw.rectangle(box, 50)


def pen_lying_there(draw):
    draw.line([(240, 280), (270, 90)], 60, 9)


def punch_holes(draw):
    for y in (80, 200):
        draw.ellipse((8, y, 22, y + 14), 70)


def printed_line(draw):
    draw.text((15, 258), "Name: ________", 60)


def dust(draw):
    for x, y in ((20, 20), (250, 150), (30, 240)):
        draw.ellipse((x, y, x + 3, y + 3), 60)


def ruled(draw):
    for y in range(15, 280, 62):
        draw.line([(0, y), (280, y + 3)], 175, 2)


def box_round_it(draw):
    draw.rectangle((65, 50, 245, 235), outline=60, width=3)


@pytest.mark.parametrize("others", [
    table_edge, table_all_round, pen_lying_there, punch_holes, printed_line, dust, ruled, box_round_it])
def test_what_else_lies_on_the_page_is_no_part_of_the_digit(seven, tmp_path, others):
    page = drawn((280, 280), (90, 70), 140, 235, 30)
    others(ImageDraw.Draw(page))
    page.save(tmp_path / "page.png")
    assert nearest(read_picture(tmp_path / "page.png"), seven) < 0.02
    top, left, bottom, right = find_digit(tmp_path / "page.png").frame
    strokes = (83, 108, 213, 211)  # of the 7 itself
    edges = zip((top, left, bottom, right), strokes)
    assert all(abs(edge - 256 / 280 * stroke) < 12 for edge, stroke in edges)


def test_the_frame_lies_in_the_picture_as_it_was_loaded(tmp_path):
    drawn((1200, 800), (700, 100), 400).save(tmp_path / "my7.png")
    digit = find_digit(tmp_path / "my7.png")
    assert digit.image.equal(read_picture(tmp_path / "my7.png")) and digit.image.shape == (784,)
    assert digit.grey.shape == (171, 256) and 0 <= digit.grey.min() and digit.grey.max() <= 1
    top, left, bottom, right = digit.frame
    dark = (digit.grey < 0.5).nonzero()
    assert (dark >= torch.tensor([top, left])).all() and (dark < torch.tensor([bottom, right])).all()
    assert bottom - top < 95 and right - left < 75


@pytest.mark.parametrize("paper, ink", [(235, 40), (60, 200)])
def test_a_vignette_does_not_turn_paper_into_ink(seven, tmp_path, paper, ink):
    y, x = numpy.mgrid[-1:1:280j, -1:1:280j]
    page = numpy.asarray(drawn((280, 280), (90, 60), 140, paper, ink), float) * (1 - 0.4 * (x**2 + y**2))
    image = read(Image.fromarray(page.astype("uint8")), tmp_path / "page.png")
    assert nearest(image, seven) < 0.02


def test_light_ink_in_a_dark_window_is_the_digit_and_not_the_window(seven, tmp_path):
    screen = Image.new("L", (700, 500), 240)
    screen.paste(drawn((280, 280), (60, 30), 200, 15, 250), (250, 150))
    assert nearest(read(screen, tmp_path / "screen.png"), seven) < 0.01


def test_a_soft_shadow_leaves_the_digit(seven, tmp_path):
    y, x = numpy.mgrid[-1:1:280j, -1:1:280j]
    light = 1 - 0.5 / (1 + numpy.exp(12 * (numpy.hypot(x - 0.3, y + 0.1) - 0.5)))  # a disc
    grain = numpy.random.default_rng(0).normal(0, 2, light.shape)
    page = numpy.asarray(drawn((280, 280), (90, 60), 140, 235, 30)) * light + grain
    image = read(Image.fromarray(page.clip(0, 255).astype("uint8")), tmp_path / "seven.png")
    assert nearest(image, seven) < 0.02


def test_the_strongest_pixel_is_1_however_thin_the_pen(tmp_path):
    for width in (6, 20, 60):
        drawing = Image.new("L", (1000, 1000), "white")
        ImageDraw.Draw(drawing).line([(200, 200), (800, 200), (400, 900)], fill="black", width=width)
        assert read(drawing, tmp_path / "thin.png").max() == 1


def test_transparency_depth_and_floats_are_read_as_what_they_show(seven, tmp_path):
    white = drawn(paper=(255, 255, 255, 0), ink=(255, 255, 255, 255), mode="RGBA")
    floats = Image.fromarray(numpy.asarray(drawn(), "float32") / 255)
    twelve_bits = Image.fromarray(numpy.asarray(drawn(), "uint16") * 16)
    assert error(read(white, tmp_path / "white.png"), seven) < 0.005
    assert error(read(floats, tmp_path / "floats.tif"), seven) < 0.005
    assert error(read(twelve_bits, tmp_path / "twelve.png"), seven) < 0.005
    palette = drawn(mode="RGB", paper="white", ink="black").quantize(4)
    assert error(read(palette, tmp_path / "palette.png"), seven) < 0.005


def test_a_prepared_picture_comes_back_as_it_is(seven, tmp_path):
    image = (seven.view(28, 28) * 255).round().to(torch.uint8)
    image[image == 0] = 0
    faint = image.clone()
    faint[14, 13] = 9  # fainter than any texture of paper
    for pixels in (image, faint):
        expected = prepare(pixels.double() / 255)
        pixels = (expected * 255).round().to(torch.uint8)
        if not prepare(pixels.double() / 255).equal(pixels.float() / 255):
            continue
        for saved in (pixels, 255 - pixels):
            found = read(Image.fromarray(saved.numpy()), tmp_path / "mnist.png")
            assert found.equal(pixels.flatten().float() / 255)


@pytest.mark.parametrize("digits", [2, 4])
def test_several_digits_are_counted_and_refused(tmp_path, digits):
    page = Image.new("L", (60 + 150 * digits, 260), 245)
    for k in range(digits):
        page.paste(drawn((150, 200), (15, 10), 150, 245, 20), (30 + 150 * k, 30))
    with pytest.raises(PictureError, match=f"{digits} parts.*crop"):
        read(page, tmp_path / "several.png")


def test_a_blank_page_is_refused(tmp_path):
    y, x = numpy.mgrid[0:1:300j, 0:1:400j]
    grain = numpy.random.default_rng(0).normal(0, 3, x.shape)
    lines = numpy.where((numpy.arange(300) % 30 < 2)[:, None], 0.6, 1) + 0 * x
    for name, light in {
        "plain": 1 + 0 * x, "table": numpy.where(x < 0.1, 0.2, 1),
        "ruled": lines, "squares": lines * numpy.where(numpy.arange(400) % 30 < 2, 0.6, 1),
        "hard shadow": numpy.where(x + 0.3 * y < 0.6, 0.55, 1),
        "soft shadow": 1 - 0.5 / (1 + numpy.exp(14 * (x - 0.5 + 0.3 * y))),
        "finger": 1 - 0.45 / (1 + numpy.exp(60 * abs(x - 0.3 - 0.4 * y) - 5)) * (y > 0.3),
        "vignette": 1 - 1.2 * ((x - 0.5) ** 2 + (y - 0.5) ** 2),
    }.items():
        Image.fromarray((230 * light + grain).clip(0, 255).astype("uint8")).save(tmp_path / f"{name}.png")
        with pytest.raises(PictureError):
            read_picture(tmp_path / f"{name}.png")


def test_specks_blots_strips_and_animations_are_refused_for_what_they_are(tmp_path):
    speck = Image.new("L", (256, 256), 245)
    ImageDraw.Draw(speck).rectangle((100, 100, 102, 102), 60)
    blot = Image.new("L", (256, 256), 245)
    ImageDraw.Draw(blot).ellipse((100, 100, 140, 140), 60)
    strip = Image.new("L", (2000, 3), 255)
    strip.paste(0, (0, 0, 1000, 3))
    dot = Image.new("L", (1, 1))
    for image, reason in ((speck, "no ink"), (blot, "no ink"), (strip, "narrow"), (dot, "small")):
        with pytest.raises(PictureError, match=reason):
            read(image, tmp_path / "nothing.png")
    drawn().save(tmp_path / "moving.gif", save_all=True, append_images=[drawn(corner=(20, 20))])
    with pytest.raises(PictureError, match="holds 2 pictures"):
        read_picture(tmp_path / "moving.gif")


@pytest.mark.parametrize("contrast, found", [(0.08, False), (0.13, True)])
def test_how_faint_ink_may_be(seven, tmp_path, contrast, found):
    page = drawn(paper=230, ink=round(230 * (1 - contrast)))
    if found:
        assert error(read(page, tmp_path / "pale.png"), seven) < 0.01
    else:
        with pytest.raises(PictureError, match="no ink"):
            read(page, tmp_path / "pale.png")


def test_the_limit_is_found_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(picture, "MOST_PIXELS", 280 * 280 - 1)
    monkeypatch.setattr(picture, "to_grey", lambda image: pytest.fail("decoded"))
    drawn().save(tmp_path / "my7.png")
    with pytest.raises(PictureError, match="pixels"):
        read_picture(tmp_path / "my7.png")
