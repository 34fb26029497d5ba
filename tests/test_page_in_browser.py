"""The page in headless browsers, offline, driven as people do: by mouse, pen, finger, keys and address."""

import base64
import functools
import io
import json
from itertools import pairwise

import pytest
import torch
from PIL import Image

pytest.importorskip("selenium")
import browser as browsers
from browser import emulate, finger, mouse, press
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from labkit import metrics, page
from labkit.picture import prepare
from model import autoencoderMLP4Layer

STROKES = [(0.3, 0.2), (0.75, 0.25), (0.45, 0.55), (0.4, 0.85)]  # a 7, as fractions of the pad
HOSTILE = "</script><img src=x onerror=alert(1)></script ><!--<script>&amp;"
SETTINGS = {"bottleneck": 8, "epochs": 50, "batch_size": 256, "lr": 1e-3, "noise": 0.2, "init": "mean",
            "seed": 0}
RECORD = {"dataset": "mnist", "epochs": 50, "settings": SETTINGS}
DESKTOP, PHONE, LANDSCAPE, ZOOMED, PROJECTOR = (1280, 1000), (360, 740), (740, 360), (320, 256), (1920, 1080)


def images_and_labels(count=200):
    """Return smooth random images, rounded to 256 levels as files of the data set are, and labels."""
    generator = torch.Generator().manual_seed(0)
    blobs = torch.rand(count, 1, 5, 5, generator=generator)
    images = torch.nn.functional.interpolate(blobs, 28, mode="bicubic").clamp(0, 1)
    return (images.flatten(1) * 255).round() / 255, torch.arange(count) % 10


IMAGES, LABELS = images_and_labels()


@functools.cache
def network(units):
    """Return a network, as the page rounds it, whose units all fire but the last of several."""
    torch.manual_seed(0)
    model = autoencoderMLP4Layer(N_bottleneck=units).requires_grad_(False)
    model.fc2.weight.mul_(10)
    model.fc2.bias.fill_(5)
    model.fc3.weight.mul_(2)
    model.fc4.weight.mul_(4)
    if units > 1:
        model.fc2.bias[-1] = -100
    return page.round_weights(model)[0]


@functools.cache
def html(units=8, dataset="mnist", weights="model.pth"):
    """Return the page of network(units), whose importance rises from unit to unit."""
    importance = torch.arange(1.0, units + 1) / torch.arange(1.0, units + 1).sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page.metrics, "importance", lambda *_: importance)
        return page.explore_page(network(units), IMAGES, LABELS, dataset, weights, RECORD)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    driver = browsers.chromium(tmp_path_factory.mktemp("chromium"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def last():
    return {}


@pytest.fixture
def visit(driver, folder, last):
    """Open a page in Chromium at an address and a window's size; the test fails if the browser complains.

    A page that is open already is not loaded anew.
    """
    def visit(address="", size=DESKTOP, fresh=False, touch=False, media=None, **options):
        if (size, touch, media) != last.get("emulated"):
            emulate(driver, *size, touch=touch, **media or {})
            last["emulated"] = size, touch, media
        path = folder / f"{abs(hash(tuple(options.items())))}.html"
        if not path.exists():
            path.write_text(html(**options), "utf-8")
        if fresh or not driver.current_url.startswith(path.as_uri()):
            driver.get("about:blank")
            driver.get(f"{path.as_uri()}#{address}")
        else:
            driver.execute_script("""location.hash = arguments[0];
                document.activeElement.blur();
                scrollTo(0, 0)""", address)
        driver.execute_async_script("begun.then(() => { readAddress(); settle(); arguments[0](); })")
        return driver

    driver.get_log("browser")  # reading a log empties it
    yield visit
    assert driver.get_log("browser") == []


@pytest.fixture(scope="module")
def firefox(folder):
    driver = browsers.firefox()
    (folder / "firefox.html").write_text(html(), "utf-8")
    driver.set_window_size(*DESKTOP)
    driver.get((folder / "firefox.html").as_uri())
    yield driver
    driver.quit()


def find(driver, name):
    return driver.find_element(By.ID, name)


def text(driver, name):
    return driver.execute_script("return document.getElementById(arguments[0]).textContent", name)


def numbers(driver, expression):
    """Return an array of the page as a tensor."""
    joined = driver.execute_script(f"return Array.from({expression}).join()")  # faster than as an array
    return torch.tensor([float(number) for number in joined.split(",")])


def colours(driver, name, size=28):
    """Return the colours of a canvas of the page, (size * size, 4) in [0, 1]."""
    driver.execute_script("""
        window.copy ??= newContext(280);
        copy.clearRect(0, 0, 280, 280);
        copy.drawImage(element(arguments[0]), 0, 0)""", name)
    return numbers(driver, f"copy.getImageData(0, 0, {size}, {size}).data").view(-1, 4) / 255


def picture(driver, name):
    """Return the red, green and blue of a picture of the page, each (784,) in [0, 1]."""
    return colours(driver, name)[:, :3].T


def drawn(driver):
    return colours(driver, "pad", 280)


def code(driver):
    return numbers(driver, "view.code")


def shown(driver):
    """Return the index of the test image that is shown, None for a drawing."""
    return driver.execute_script("return data.index[state.input.position] ?? null")


def address(driver):
    """Return what the address says once nothing changes."""
    driver.execute_script("settle()")
    return driver.current_url.partition("#")[2]


def close(a, b, tolerance=2e-4):
    torch.testing.assert_close(a, b, rtol=2e-5, atol=tolerance)


def screenshot(driver, element):
    """Return an element's colours, (height, width, 3) in [0, 1]."""
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    image = Image.open(io.BytesIO(base64.b64decode(element.screenshot_as_base64))).convert("RGB")
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return values.view(image.height, image.width, 3) / 255


def contrast(a, b):
    """Return the contrast of two colours, (3,) in [0, 1], from 1 to 21 (WCAG 2.2)."""
    def luminance(colour):
        linear = torch.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
        return linear @ torch.tensor([0.2126, 0.7152, 0.0722]) + 0.05

    ratio = (luminance(a) / luminance(b)).item()
    return max(ratio, 1 / ratio)


# Numbers


@pytest.mark.parametrize("units", [1, 2, 8, 64])
def test_codes_outputs_and_pca_are_pytorchs(visit, units):
    driver, model = visit(units=units), network(units)
    mean, components, _ = metrics.pca(IMAGES.double())
    integers, steps = page.round_rows(components[:page.MAX_COMPONENTS])
    components = integers * steps[:, None]
    for index in (1, 47):
        visit(f"input=image{index}", units=units)
        image = IMAGES[index]
        close(code(driver), model.encode(image))
        output = model(image)
        close(numbers(driver, "view.output"), output)
        for count in {1, min(units, 40), 40}:
            visit(f"input=image{index}&components={count}", units=units)
            projected = mean + (image - mean) @ components[:count].T @ components[:count]
            close(numbers(driver, "view.linear"), projected.float())
            assert text(driver, "pca-mse") == f"MSE {(projected - image).square().mean():.4f}"

        assert text(driver, "mse") == f"MSE {(output - image).square().mean():.4f}"
        for name, grey in (("input", image), ("output", output)):
            for channel in picture(driver, name):
                close(channel, grey, 0.004)
        red, _, blue = picture(driver, "difference")
        close(torch.where(output > image, red, -blue), output - image, 0.004)


def test_it_asks_nobody_for_anything(visit):
    driver = visit()
    driver.get("about:blank")
    driver.get_log("performance")
    visit(fresh=True)
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    requests = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert requests and all(sent["request"]["url"].startswith(("file:", "data:")) for sent in requests)
    assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0

    fetched = driver.execute_async_script(
        "const done = arguments[0]; fetch('data:,a').then(() => done('fetched'), () => done('refused'))")
    assert fetched == "refused"
    assert "Content Security Policy" in driver.get_log("browser")[0]["message"]


def test_hostile_names_are_text(visit):
    driver = visit(dataset=HOSTILE, weights=HOSTILE)
    assert text(driver, "about").count(HOSTILE) == 2 and HOSTILE in text(driver, "lesson")
    assert not driver.find_elements(By.TAG_NAME, "img")


# The pad


@pytest.mark.parametrize("device", ["mouse", "pen", "finger"])
def test_a_drawing_is_prepared_as_pictures_are_encoded_and_decoded(visit, device):
    driver = visit(size=PHONE, touch=True) if device == "finger" else visit()
    pad = find(driver, "pad")
    if device == "finger":
        finger(driver, pad, STROKES)
    else:
        mouse(driver, pad, STROKES, device)

    ink = drawn(driver)[:, 0].view(280, 280)
    assert all(ink[int(280 * y), int(280 * x)] > 0 for x, y in STROKES)
    image = prepare(ink).flatten()
    close(numbers(driver, "view.image"), image, 1 / 255)
    assert 40 < image.sum() < 160  # as much ink as MNIST's digits have
    assert shown(driver) is None and not find(driver, "pad-hint").is_displayed()
    with torch.inference_mode():
        close(code(driver), network(8).encode(image), 1e-2)


def test_a_stroke_on_a_test_image_begins_a_new_drawing_and_draw_shows_the_last(visit):
    driver = visit()
    find(driver, "clear").click()
    mouse(driver, find(driver, "pad"), STROKES)
    seven = numbers(driver, "view.image")
    press(driver, "3")
    assert LABELS[shown(driver)] == 3 and "shows your drawing" in text(driver, "pad-hint")
    assert drawn(driver).unique(dim=0).tolist() == [[0, 0, 0, 1]]  # empty, and black even without backgrounds
    press(driver, "d")
    assert numbers(driver, "view.image").equal(seven)

    press(driver, "3")
    mouse(driver, find(driver, "pad"), [(0.5, 0.2), (0.5, 0.8)])
    one = numbers(driver, "view.image")
    assert driver.execute_script("return state.input.strokes.length") == 1
    mouse(driver, find(driver, "pad"), [(0.2, 0.5), (0.8, 0.5)])
    assert driver.execute_script("return state.input.strokes.length") == 2
    press(driver, "u")
    assert numbers(driver, "view.image").equal(one)
    find(driver, "undo").click()
    assert numbers(driver, "view.image").equal(seven)
    press(driver, "c")
    assert numbers(driver, "view.image").sum() == 0
    press(driver, "u")
    assert numbers(driver, "view.image").equal(seven)


def test_the_keyboard_draws_and_escape_leaves_the_pad(visit):
    driver = visit()
    press(driver, "c", "d")
    keys = browsers.webdriver.ActionChains(driver)
    keys.key_down(Keys.SHIFT).send_keys(8 * Keys.ARROW_DOWN).key_up(Keys.SHIFT).perform()
    rows = numbers(driver, "view.image").view(28, 28).amax(1)
    assert (rows > 0.5).sum() == 20
    press(driver, Keys.ESCAPE)
    assert driver.switch_to.active_element.get_attribute("id") == "draw"
    press(driver, Keys.ARROW_RIGHT)
    assert shown(driver) == 1


def test_arrows_choose_images_after_the_mouse_has_drawn(visit):
    driver = visit()
    press(driver, "d")  # the pad has the focus
    mouse(driver, find(driver, "pad"), STROKES)
    press(driver, Keys.ARROW_RIGHT)
    assert shown(driver) == 1
    press(driver, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert shown(driver) == 3


def test_fast_strokes_have_the_points_between_two_frames(visit):
    driver = visit()
    x, y = browsers.point(driver, find(driver, "pad"), (0, 0))
    driver.execute_script("""
        const [pad, x, y] = [element("pad"), arguments[0], arguments[1]];
        pad.setPointerCapture = () => {};
        const event = (name, dx, dy, coalescedEvents = []) => new PointerEvent(name, {
          clientX: x + dx, clientY: y + dy, isPrimary: true, coalescedEvents, bubbles: true});
        pad.dispatchEvent(event("pointerdown", 50, 50));
        const between = [[100, 60], [140, 100], [50, 150]].map(([dx, dy]) => event("pointermove", dx, dy));
        pad.dispatchEvent(event("pointermove", 50, 150, between));
        pad.dispatchEvent(event("pointerup", 50, 150));
        delete pad.setPointerCapture""", x, y)
    assert driver.execute_script("return state.input.strokes[0].length") == 8


# Images, sliders, interpolation


def test_keys_and_buttons_choose_images(visit):
    driver = visit()
    press(driver, Keys.ARROW_RIGHT)
    assert shown(driver) == 2
    press(driver, Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert shown(driver) == len(IMAGES) - 1
    press(driver, "3")
    assert LABELS[shown(driver)] == 3 and text(driver, "input-name").startswith("3 (image ")
    before = shown(driver)
    press(driver, "3")
    assert shown(driver) != before and LABELS[shown(driver)] == 3

    ranking = (network(8)(IMAGES) - IMAGES).square().mean(1).argsort(descending=True).tolist()
    visit(f"input=image{ranking[-1]}")
    for worst in ranking[:3]:
        press(driver, "w")
        assert shown(driver) == worst
    seen = {press(driver, "r") or shown(driver) for _ in range(5)}
    assert len(seen) > 1


def test_single_keys_can_be_switched_off_and_do_not_repeat_a_toggle(visit):
    driver = visit()
    for repeated in (False, True, True):
        event = {"type": "keyDown", "key": "p", "autoRepeat": repeated}
        driver.execute_cdp_cmd("Input.dispatchKeyEvent", event)
        assert text(driver, "play") == "Stop"
    visit()
    find(driver, "keys").click()
    assert address(driver) == "keys=false"
    press(driver, "3", "w", "p")
    assert address(driver) == "keys=false" and text(driver, "play") == "Play"
    driver.execute_script("document.activeElement.blur()")
    press(driver, Keys.ARROW_RIGHT)  # not a letter
    assert shown(driver) == 2


def test_a_slider_changes_the_output_and_a_key_goes_back_to_the_encoded_values(visit):
    driver = visit()
    slider = find(driver, "unit-2")
    low, high = (float(slider.get_attribute(end)) for end in ("min", "max"))
    before = code(driver)
    for back in ("e", Keys.BACKSPACE, None):
        mouse(driver, slider, [(0.5, 0.5), (0.9, 0.5), (0.98, 0.5)])
        moved = code(driver)
        assert ((moved - before).abs() > 1e-3).nonzero().flatten().tolist() == [2]
        close(numbers(driver, "view.output"), network(8).decode(moved))
        mark = slider.find_element(By.XPATH, "../*[1]/*").get_attribute("x1")
        assert float(mark.strip("%")) == pytest.approx(100 * (before[2].item() - low) / (high - low), abs=0.1)
        press(driver, back) if back else find(driver, "back").click()
        assert code(driver).equal(before)
        assert float(slider.get_property("value")) == pytest.approx(before[2].item(), abs=1e-3)
    driver.execute_script("arguments[0].focus()", slider)
    press(driver, Keys.ARROW_RIGHT)  # it moves the slider alone
    assert code(driver)[2] > before[2] and shown(driver) == 1


def test_sliders_go_over_the_range_of_the_test_set_by_importance_and_the_dead_last(visit):
    driver = visit(units=4)
    names = [label.text for label in driver.find_elements(By.CSS_SELECTOR, ".unit label")]
    importance = [number.text for number in driver.find_elements(By.CSS_SELECTOR, ".importance")]
    assert names == ["unit 2", "unit 1", "unit 0", "unit 3"]
    assert importance == ["30%", "20%", "10%", "dead"]
    assert "Dead: 0 for every test image, 1 of 4." in text(driver, "code-hint")
    codes = network(4).encode(IMAGES)
    ends = [float(find(driver, "unit-1").get_attribute(end)) for end in ("min", "max")]
    assert ends == pytest.approx([codes[:, 1].min().item(), codes[:, 1].max().item()], rel=1e-5)
    tops = [slider.rect["y"] for slider in driver.find_elements(By.CSS_SELECTOR, ".unit input")]
    assert all(a < b for a, b in pairwise(tops))


def test_numbers_have_three_digits(visit):
    driver = visit("code=0.0421,1.234,12.34,123.4,0,0,0,0")
    values = [text for _, text in sorted(driver.execute_script(
        "return rows.map(({value}, unit) => [unit, value.textContent])"))]
    assert values[:5] == ["0.042", "1.23", "12.3", "123", "0.000"]


def test_of_64_units_the_first_ten_are_shown_and_the_others_unfold(visit):
    driver = visit(units=64)
    rows = driver.find_elements(By.CSS_SELECTOR, ".unit")
    assert [row.is_displayed() for row in rows] == [True] * 10 + [False] * 54
    find(driver, "more-summary").click()
    assert all(row.is_displayed() for row in rows)


def test_noise_is_added_and_the_mse_is_that_to_the_clean_image(visit):
    driver = visit()
    clean, before = numbers(driver, "view.image"), code(driver)
    mouse(driver, find(driver, "noise"), [(0.03, 0.5), (0.5, 0.5)])
    assert numbers(driver, "view.image").equal(clean) and not code(driver).equal(before)
    assert text(driver, "mse") == f"MSE {(numbers(driver, 'view.output') - clean).square().mean():.4f}"
    noise = numbers(driver, "view.noisy") - clean
    assert noise.std() == pytest.approx(0.5, abs=0.05) and abs(noise.mean()) < 0.06
    assert picture(driver, "end").equal(picture(driver, "input"))


def test_interpolation_goes_from_the_image_held_and_compares_with_the_image_at_each_end(visit):
    driver = visit()
    press(driver, "5", "h")
    start, held = code(driver), text(driver, "mse")
    press(driver, "8")
    end, image = code(driver), numbers(driver, "view.image")
    mouse(driver, find(driver, "mix"), [(0.98, 0.5), (0.5, 0.5)])
    t = float(find(driver, "mix").get_property("value"))
    assert 0.4 < t < 0.6
    close(code(driver), torch.lerp(start, end, t))
    mouse(driver, find(driver, "mix"), [(0.5, 0.5), (0, 0.5)])
    assert text(driver, "mse") == held and text(driver, "input-name") == "cross-fade, 0%"
    assert not numbers(driver, "view.image").equal(image)


def test_play_speaks_once_at_its_end_and_stops_at_whatever_one_does(visit):
    driver = visit("from=image5&input=image8")
    end = code(driver)
    live = "[aria-live], [role=status], [role=alert], [role=log], output"
    assert driver.find_elements(By.CSS_SELECTOR, live) == [find(driver, "status")]
    driver.execute_script("""
        window.real = requestAnimationFrame;
        requestAnimationFrame = (draw) => { window.drawFrame = draw; return 1; };
        window.said = [];
        new MutationObserver(() => said.push(element("status").textContent))
          .observe(element("status"), {childList: true, characterData: true, subtree: true})""")
    find(driver, "play").click()
    now = driver.execute_script("return performance.now()")
    for i in range(20):
        driver.execute_script("drawFrame(arguments[0])", now + 100 * i)
    assert text(driver, "play") == "Stop" and driver.execute_script("return said") == []
    driver.execute_script("drawFrame(arguments[0])", now + 5000)
    assert text(driver, "play") == "Play" and code(driver).equal(end)
    driver.execute_async_script("setTimeout(arguments[0], 400)")
    press(driver, Keys.ARROW_RIGHT, "p")
    assert text(driver, "play") == "Stop"
    press(driver, Keys.ARROW_RIGHT)
    assert text(driver, "play") == "Play"
    driver.execute_async_script("requestAnimationFrame = real; setTimeout(arguments[0], 400)")
    said = driver.execute_script("return said")
    assert len(said) == 1 and said[0].startswith(text(driver, "input-name") + ": MSE ")


# The map


def on_map(driver, point):
    """Return the fractions of the map's width and height at which a place of its plane is."""
    x, y, width, height = driver.execute_script(
        "return [...onMap(arguments[0]), element('map').clientWidth, element('map').clientHeight]", point)
    return (x + 1) / (width + 2), (y + 1) / (height + 2)


@pytest.mark.parametrize("units", [1, 2, 8])
def test_the_map_moves_the_code_and_a_tap_on_a_dot_chooses_its_image(visit, units):
    driver, codes = visit("input=image3", units=units), network(units).encode(IMAGES)
    canvas, before = find(driver, "map"), code(driver)
    dots = torch.tensor(driver.execute_script("return map.dots.map((dot) => dot.place)"))
    if units == 2:
        close(dots, codes)
    middle = dots.quantile(0.7, 0).tolist()

    mouse(driver, canvas, [on_map(driver, middle)], hold=False)  # a pointer over it shows what is there
    previewed = code(driver)
    assert not previewed.equal(before) and address(driver).startswith("input=image3")
    assert driver.execute_script("return state.code") is None
    close(torch.tensor(driver.execute_script("return place(view.code, 0)"))[:units],
          torch.tensor(middle)[:units], 0.3)
    close(numbers(driver, "view.output"), network(units).decode(previewed))
    mouse(driver, find(driver, "title"), [(0.5, 0.5)], hold=False)
    assert code(driver).equal(before)

    mouse(driver, canvas, [on_map(driver, dots.quantile(0.2, 0).tolist()), on_map(driver, middle)])  # dragged
    close(code(driver), previewed, 0.2)
    assert shown(driver) == 3 and "code=" in address(driver)

    spread = torch.cdist(dots, dots).fill_diagonal_(torch.inf).amin(1)  # a dot that no other covers
    lonely = spread.argmax().item()
    mouse(driver, canvas, [on_map(driver, dots[lonely].tolist())])
    assert shown(driver) == lonely and driver.execute_script("return state.code") is None


def test_both_axes_of_the_map_have_the_same_scale_and_the_decoder_paints_behind_the_dots(visit):
    for size in (DESKTOP, PHONE):  # it is drawn again for a window of another size
        driver = visit(size=size, units=2)
        driver.execute_async_script("""
            const wait = () => map.next === map.columns * map.rows && map.width === element("map").clientWidth
              ? arguments[0]() : setTimeout(wait, 20);
            setTimeout(wait, 50)""")
        across, up = driver.execute_script("return map.scales")
        assert across == -up
        place = driver.execute_script("paintTile(0); return fromMap(map.tile / 2, map.tile / 2)")
        painted = numbers(driver, "map.stamp.getImageData(0, 0, 28, 28).data").view(784, 4)[:, 0] / 255
        close(painted, 0.5 * network(2).decode(torch.tensor(place)), 0.004)
        width, height, clear = driver.execute_script("""
            const {width, height} = element("map");
            const rgba = map.ground.getImageData(0, 0, width, height).data;
            return [width, height, rgba.filter((value, i) => i % 4 === 3 && value !== 255).length]""")
        assert clear == 0 and width <= size[0] and height >= 0.6 * width - 1


def test_with_many_units_the_map_is_the_plane_through_the_code(visit):
    driver = visit("input=image3")
    axes = torch.tensor(driver.execute_script("return data.map.axes"))
    before = code(driver)
    moved = numbers(driver, "codeAt(place(view.code, 0).map((value) => value + 2))")
    close(moved, before + 2 * axes.sum(0), 1e-2)
    variance = driver.execute_script("return data.map.variance")
    assert f"{variance:.0%} of the variance" in text(driver, "map-hint")
    painted = driver.execute_script("return map.painted")
    visit("input=image9")
    assert driver.execute_script("return map.painted") != painted  # another plane


def test_arrows_move_the_point_on_the_map_and_enter_chooses_the_nearest_image(visit):
    driver = visit("input=image3", units=2)
    before = code(driver)
    driver.execute_script("element('map').focus()")
    press(driver, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_UP)
    step = 10 / driver.execute_script("return map.scales[0]")
    there = before + torch.tensor([2 * step, step])
    close(code(driver), there, 1e-2)
    press(driver, Keys.ENTER)
    nearest = (network(2).encode(IMAGES) - there).norm(dim=1).argmin().item()
    assert shown(driver) == nearest
    press(driver, Keys.ESCAPE, Keys.ARROW_RIGHT)
    assert shown(driver) == nearest + 1


def test_a_finger_on_the_map_moves_the_code_and_elsewhere_the_page(visit):
    driver = visit("input=image3", size=PHONE, touch=True)
    before, canvas = code(driver), find(driver, "map")
    browsers.point(driver, canvas, (0.5, 0.5))
    at = driver.execute_script("return scrollY")
    finger(driver, canvas, [(0.5, 0.3), (0.5, 0.5), (0.6, 0.8)])
    assert not code(driver).equal(before) and driver.execute_script("return scrollY") == at
    finger(driver, find(driver, "input-hint"), [(0.5, 0.5), (0.5, -2), (0.5, -4)])
    assert driver.execute_script("return scrollY") != at
    assert driver.execute_script("return element('map').clientHeight") < 0.75 * PHONE[1]


# The lesson, and addresses


def test_the_lesson_says_what_the_network_is_and_how_it_was_trained(visit):
    lesson = text(visit(), "lesson")
    errors = (network(8)(IMAGES) - IMAGES).square().mean()
    assert "784 pixels → 392 → 8 numbers → 392 → 784" in lesson and f"(MSE) is {errors:.4f}" in lesson
    assert "trained on MNIST for 50 epochs, to remove noise of 0.2." in lesson
    covariance = IMAGES.double().T.cov(correction=0)
    left_out = torch.linalg.eigvalsh(covariance)[:-8].sum() / 784
    assert f"PCA, the best linear code, has {left_out:.4f} with as many numbers" in lesson


def test_each_experiment_is_a_link_that_sets_everything(visit):
    driver = visit("noise=0.7&components=3&mix=0.2&input=worst")
    links = driver.find_elements(By.CSS_SELECTOR, "#experiments a")
    assert len(links) == 7
    for link in links:
        driver.execute_script("arguments[0].click()", link)
        driver.execute_async_script("setTimeout(arguments[0], 20)")
        assert link.get_attribute("data-state") == f"#{address(driver)}" != "#"
        assert link.get_attribute("aria-current") == "true"
        assert text(driver, "look") == link.get_attribute("data-look")
    driver.execute_script("arguments[0].click()", links[0])  # where does 4 become 9?
    driver.execute_async_script("setTimeout(arguments[0], 20)")
    halfway = network(8).encode(IMAGES[[4, 9]]).mean(0)
    close(code(driver), halfway, 1e-3)
    press(driver, Keys.ARROW_RIGHT)
    driver.execute_script("arguments[0].click()", links[0])  # again, though the address has not changed yet
    driver.execute_async_script("setTimeout(arguments[0], 20)")
    close(code(driver), halfway, 1e-3)


STATES = [
    "input=image7&from=image4&mix=0.5&noise=0.3&components=12&difference=true&keys=false",
    "input=image5&code=1,2,3.5,4,5,6,7,80",
    "input=drawing:1s703w105w70-2l4s524s&from=drawing:3w103w70",
]


@pytest.mark.parametrize("state", STATES)
def test_reload_back_and_a_shared_link_show_the_same(visit, state):
    driver = visit(state, fresh=True)
    assert address(driver) == state

    def now():
        driver.execute_script("settle()")
        return driver.execute_script("""
            const inputs = [...document.querySelectorAll("input")];
            return [view.output.join(), element("status").textContent,
                    inputs.map(({value, checked}) => [value, checked])]""")

    before = now()
    driver.refresh()
    driver.execute_async_script("begun.then(arguments[0])")
    assert now() == before
    driver.execute_script("location.hash = 'input=image2&noise=1'")
    driver.execute_async_script("setTimeout(arguments[0], 20)")
    assert shown(driver) == 2
    driver.back()
    driver.execute_async_script("setTimeout(arguments[0], 20)")
    assert now() == before


def test_nonsense_in_the_address_is_ignored(visit):
    driver = visit("input=image99999&from=digit&mix=2&noise=-1&code=1,2&components=1.5&difference=7&keys=no"
                   "&constructor=1&__proto__=2&&=&input=drawing:zz&code=1,,3,4,5,6,7,8&mix=&%E0%A4%A")
    assert address(driver) == ""
    visit("input=digit7&from=class9.2&mix=0.25&nonsense")
    assert address(driver) == "input=image7&from=image19&mix=0.25"


def test_a_page_that_was_saved_by_the_browser_works_as_the_original(visit, folder):
    driver = visit("input=image7&noise=0.5")
    count = "return document.querySelectorAll('input, button, a, canvas, .unit').length"
    controls, status = driver.execute_script(count), text(driver, "status")
    saved = driver.execute_script("return document.documentElement.outerHTML")
    (folder / "saved.html").write_text(saved, "utf-8")
    driver.get((folder / "saved.html").as_uri() + "#input=image7&noise=0.5")
    driver.execute_async_script("begun.then(() => { settle(); arguments[0](); })")
    assert driver.execute_script(count) == controls and text(driver, "status") == status
    press(driver, Keys.ARROW_RIGHT)
    assert shown(driver) == 8


@pytest.mark.parametrize("dataset, title, name", [
    ("fashion-mnist", "A garment in 8 numbers", "sneaker"), ("kmnist", "A character in 8 numbers", "ya"),
    ("somebody's images", "An image in 8 numbers", "class 7")])
def test_other_data_sets_are_not_called_digits(visit, dataset, title, name):
    driver = visit("input=class7", dataset=dataset)
    assert text(driver, "title") == title and text(driver, "input-name") == f"{name} (image 7)"
    words = driver.execute_script("return document.body.innerText").replace("MNIST’s digits", "")
    assert "digit" not in words
    buttons = driver.find_elements(By.CSS_SELECTOR, "#kinds button")
    assert [button.text for button in buttons][7] == name
    assert all(button.get_property("scrollWidth") <= button.get_property("clientWidth") for button in buttons)
    assert len(driver.find_elements(By.CSS_SELECTOR, "#experiments a")) == 7


# What it looks like


@pytest.mark.parametrize("size", [DESKTOP, PHONE, LANDSCAPE, ZOOMED, PROJECTOR, (1280, 720), (600, 900)])
def test_it_fits_the_screen_and_no_control_with_the_focus_is_covered(visit, size):
    driver = visit(size=size, units=8)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= size[0]
    results = driver.execute_script("""
        const all = [...document.querySelectorAll("button, input, [tabindex], main a")]
          .filter((e) => e.checkVisibility() && !e.disabled);
        return all.concat(all.toReversed()).map((e) => {
          e.focus();
          const {left, right, top, bottom, width, height} = e.getBoundingClientRect();
          const y = Math.max(top, Math.min((top + bottom) / 2, innerHeight - 1));
          const free = e.contains(document.elementFromPoint((left + right) / 2, y));
          return [e.id || e.textContent, Math.min(width, height), left, right, free];
        })""")
    assert len(results) > 50
    for name, extent, left, right, free in results:
        assert extent >= 24 and left >= 0 and right <= size[0] and free, name
    area, position = driver.execute_script("""
        const box = element("pictures").getBoundingClientRect();
        return [box.width * box.height, getComputedStyle(element("pictures")).position]""")
    if position == "sticky":
        assert area < 0.35 * size[0] * size[1]


def test_on_a_phone_a_switch_shows_the_difference_in_place_of_pca(visit):
    driver = visit(size=PHONE)
    seen = [find(driver, name).is_displayed() for name in ("input", "output", "linear", "difference")]
    assert seen == [True, True, True, False]
    find(driver, "swap").click()
    seen = [find(driver, name).is_displayed() for name in ("input", "output", "linear", "difference")]
    assert seen == [True, True, False, True]
    driver = visit(size=DESKTOP)
    assert find(driver, "linear").is_displayed() and find(driver, "difference").is_displayed()
    assert not find(driver, "swap").is_displayed()


def test_sizes_follow_the_readers_font_size_and_grow_on_a_projector(visit):
    driver = visit(size=PHONE)
    size = "return element('next').getBoundingClientRect().height"
    small = driver.execute_script(size)
    driver.execute_script("document.documentElement.style.fontSize = '32px'")
    assert driver.execute_script(size) == pytest.approx(2 * small, abs=3)
    driver.execute_script("document.documentElement.style.fontSize = ''")
    visit(size=PROJECTOR)
    assert driver.execute_script(size) == pytest.approx(1.25 * small, abs=3)


@pytest.mark.parametrize("media", [{"prefers-color-scheme": "light"}, {"prefers-color-scheme": "dark"},
                                   {"forced-colors": "active"}])
def test_tracks_thumbs_and_legends_stand_out(visit, media):
    driver = visit("noise=0.5", media=media)
    colours = screenshot(driver, find(driver, "noise"))
    middle, paper = colours[colours.shape[0] // 2], colours[2, colours.shape[1] // 4]
    assert contrast(middle[colours.shape[1] // 4], paper) >= 3  # the track
    assert contrast(middle[colours.shape[1] // 2], paper) >= 3  # the thumb
    legend = driver.execute_script("""return ["brighter", "darker"].map((name) =>
        getComputedStyle(document.querySelector("." + name), "::before").borderTopColor)""")
    assert legend == ["rgb(224, 120, 0)", "rgb(60, 140, 255)"]


def test_dots_stand_out_from_the_map(visit):
    colours = visit().execute_script("return COLOURS")
    for colour in colours:
        dot = torch.tensor([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        assert contrast(dot, torch.zeros(3)) >= 3 and contrast(dot, torch.full((3,), 0.25)) >= 3


def test_controls_have_names(visit):
    driver = visit()
    elements = driver.find_elements(By.CSS_SELECTOR, "button:not(#swap), input, canvas, a")
    assert elements and all(element.accessible_name for element in elements)


# Firefox, where it is installed


def test_firefox_shows_the_same_numbers(firefox, visit):
    for state in STATES:
        firefox.get(firefox.current_url.partition("#")[0] + "#" + state)
        driver = visit(state)
        status = text(driver, "status")
        wait(firefox, lambda status=status: text(firefox, "status") == status)
        for name in ("mse", "pca-mse", "pca-name", "noise-value"):
            assert text(firefox, name) == text(driver, name)


def test_firefox_shows_the_state_of_the_address_after_reload_and_back(firefox):
    page = firefox.current_url.partition("#")[0]
    firefox.get(page + "#input=image7&noise=0.3")
    wait(firefox, lambda: "noise 0.30" in text(firefox, "status"))
    find(firefox, "components").send_keys(Keys.ARROW_RIGHT)
    wait(firefox, lambda: firefox.current_url.endswith("#input=image7&noise=0.3&components=9"))
    before = text(firefox, "status")
    firefox.refresh()
    wait(firefox, lambda: text(firefox, "status") == before)
    assert find(firefox, "components").get_property("value") == "9"
    assert find(firefox, "noise").get_property("value") == "0.3"
    firefox.get(page + "#input=image9")
    wait(firefox, lambda: "image 9" in text(firefox, "status"))
    firefox.back()
    wait(firefox, lambda: text(firefox, "status") == before)
    assert find(firefox, "noise").get_property("value") == "0.3"


def test_firefox_draws_chooses_and_leaves_the_pad(firefox):
    firefox.get(firefox.current_url.partition("#")[0] + "#input=image9")
    actions = browsers.webdriver.ActionChains(firefox, duration=20)
    pad = find(firefox, "pad")
    actions.move_to_element_with_offset(pad, -40, -50).click_and_hold().move_by_offset(80, 10)
    actions.move_by_offset(-50, 80).release().perform()
    wait(firefox, lambda: text(firefox, "status").startswith("your drawing: MSE "))
    assert "input=drawing:" in firefox.current_url
    press(firefox, Keys.ARROW_RIGHT)
    assert "(image 1)" in text(firefox, "input-name")
    press(firefox, "d")
    assert text(firefox, "input-name") == "your drawing"
    press(firefox, Keys.ESCAPE)
    assert firefox.switch_to.active_element.get_attribute("id") == "draw"


def wait(driver, condition):
    """Wait until `condition()` is true; the page settles some tenths of a second after a change."""
    WebDriverWait(driver, 5, poll_frequency=0.05).until(lambda _: condition())
