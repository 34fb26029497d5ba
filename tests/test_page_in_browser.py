"""The page in headless Chromium, offline, driven as a person does: by mouse, pen, finger and keys."""

import functools
import json
import shutil
from itertools import pairwise

import pytest
import torch

pytest.importorskip("selenium")
from selenium import webdriver
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.interaction import POINTER_MOUSE, POINTER_PEN
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from labkit.page import explore_page
from labkit.picture import prepare
from model import autoencoderMLP4Layer

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")
STROKES = [(0.3, 0.2), (0.75, 0.25), (0.45, 0.55), (0.4, 0.85)]  # a 7, as fractions of the pad
HOSTILE = "</script><img src=x onerror=alert(1)></script ><!--<script>&amp;"


def images_and_labels(count=400):
    """Return smooth random images, rounded to 256 levels as files of the data set are, and labels."""
    generator = torch.Generator().manual_seed(0)
    blobs = torch.rand(count, 1, 5, 5, generator=generator)
    images = torch.nn.functional.interpolate(blobs, 28, mode="bicubic").clamp(0, 1)
    return (images.flatten(1) * 255).round() / 255, torch.arange(count) % 10


def network(units):
    """Return a network whose units all fire, but the last of several, which is dead."""
    torch.manual_seed(0)
    model = autoencoderMLP4Layer(N_bottleneck=units)
    with torch.no_grad():
        model.fc2.weight.mul_(10)
        model.fc2.bias.fill_(5)
        model.fc3.weight.mul_(2)
        model.fc4.weight.mul_(4)
        if units > 1:
            model.fc2.bias[-1] = -100
    return model


IMAGES, LABELS = images_and_labels()


@functools.cache
def page(units, dataset, weights):
    """Return the page of network(units), whose importance rises from unit to unit."""
    importance = torch.arange(1.0, units + 1)
    return explore_page(network(units), IMAGES, LABELS, importance / importance.sum(), dataset, weights)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "no-first-run", "proxy-server=127.0.0.1:9",
                     "disable-background-networking", "disable-component-update", "disable-sync",
                     f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture
def open_page(browser, tmp_path):
    """Open the page in a window of a size; the test fails if the browser complains."""

    def open_page(units=8, size=(1280, 1000), dataset="mnist", weights="model.pth", touch=False):
        (tmp_path / "explore.html").write_text(page(units, dataset, weights), "utf-8")
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": touch})
        browser.get((tmp_path / "explore.html").as_uri())
        return browser

    browser.get("about:blank")
    browser.get_log("browser"), browser.get_log("performance")  # reading a log empties it
    yield open_page
    assert browser.get_log("browser") == []


def find(browser, name):
    return browser.find_element(By.ID, name)


def numbers(browser, expression):
    """Return an array of the page as a tensor."""
    text = browser.execute_script(f"return Array.from({expression}).join()")  # faster than as an array
    return torch.tensor([float(number) for number in text.split(",")])


def picture(browser, name):
    """Return the colours of a canvas of the page, (784, 3) in [0, 1]."""
    browser.execute_script("""
        window.copy ??= new OffscreenCanvas(28, 28).getContext("2d", {willReadFrequently: true});
        copy.drawImage(element(arguments[0]), 0, 0)""", name)
    return numbers(browser, "copy.getImageData(0, 0, 28, 28).data").view(784, 4)[:, :3] / 255


def state(browser):
    """Return the position of the image shown, None for a drawing, the code and the output."""
    values = numbers(browser, "[state.position ?? -1, ...state.code, ...state.output]")
    position = int(values[0])
    return position if position >= 0 else None, values[1:-784], values[-784:]


def press(browser, *keys):
    webdriver.ActionChains(browser).send_keys(*keys).perform()


def drag(browser, element, points, kind=POINTER_MOUSE):
    """Draw over an element from point to point, given as fractions of its width and height."""
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    actions = ActionBuilder(browser, mouse=PointerInput(kind, kind), duration=10)
    width, height = element.size["width"], element.size["height"]
    for i, (x, y) in enumerate(points):
        actions.pointer_action.move_to(element, round((x - 0.5) * width), round((y - 0.5) * height))
        if i == 0:
            actions.pointer_action.pointer_down()
    actions.pointer_action.pointer_up()
    actions.perform()


def drag_finger(browser, element, points):
    """Draw over an element with a finger."""
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    box = browser.execute_script("return arguments[0].getBoundingClientRect()", element)
    for i, (x, y) in enumerate(points):
        point = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
        kind = "touchMove" if i else "touchStart"
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


@pytest.mark.parametrize("units", [1, 2, 8, 64])
def test_codes_and_outputs_are_pytorchs(open_page, units):
    browser, model = open_page(units), network(units)
    index = browser.execute_script("return data.index")
    for position in (1, 2):
        with torch.inference_mode():
            code = model.encode(IMAGES[index[position]])
            output = model.decode(code)
        shown, page_code, page_output = state(browser)
        assert shown == position
        torch.testing.assert_close(page_code, code, rtol=2e-5, atol=2e-4)
        torch.testing.assert_close(page_output, output, rtol=0, atol=2e-4)

        image = IMAGES[index[position]]
        for name, grey in (("input", image), ("output", output)):
            for channel in picture(browser, name).T:
                torch.testing.assert_close(channel, grey, rtol=0, atol=0.004)
        red, _, blue = picture(browser, "difference").T
        difference = torch.where(output > image, red, -blue)
        torch.testing.assert_close(difference, output - image, rtol=0, atol=0.004)
        find(browser, "next").click()
    error = ((model(IMAGES) - IMAGES) ** 2).mean().item()
    assert find(browser, "test-mse").text == f"{error:.4f}"
    assert find(browser, "dataset").text.startswith("mnist, 400 test images")


def test_it_asks_nobody_for_anything(open_page):
    browser = open_page()
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert requests and all(sent["request"]["url"].startswith(("file:", "data:")) for sent in requests)
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0

    fetched = browser.execute_async_script(
        "const done = arguments[0]; fetch('data:,a').then(() => done('fetched'), () => done('refused'))")
    assert fetched == "refused"
    assert "Content Security Policy" in browser.get_log("browser")[0]["message"]


def test_hostile_names_are_text(open_page):
    browser = open_page(dataset=HOSTILE, weights=HOSTILE)
    assert find(browser, "weights").text == HOSTILE
    assert find(browser, "dataset").text.startswith(HOSTILE)
    assert not browser.find_elements(By.TAG_NAME, "img")


@pytest.mark.parametrize("device", ["mouse", "pen", "finger"])
def test_a_drawing_is_prepared_as_pictures_are_encoded_and_decoded(open_page, device):
    browser = open_page(size=(360, 740), touch=True) if device == "finger" else open_page()
    pad = find(browser, "pad")
    if device == "finger":
        drag_finger(browser, pad, STROKES)
    else:
        drag(browser, pad, STROKES, POINTER_PEN if device == "pen" else POINTER_MOUSE)

    ink = numbers(browser, "pad.getImageData(0, 0, 280, 280).data").view(280, 280, 4)[:, :, 0] / 255
    assert all(ink[int(280 * y), int(280 * x)] > 0 for x, y in STROKES)
    image = prepare(ink).flatten()
    torch.testing.assert_close(numbers(browser, "state.image"), image, rtol=0, atol=1 / 255)
    assert 40 < image.sum() < 160  # as much ink as MNIST's digits have
    position, code, output = state(browser)
    assert position is None
    with torch.inference_mode():
        torch.testing.assert_close(code, network(8).encode(image), rtol=1e-3, atol=1e-2)
        torch.testing.assert_close(output, network(8)(image), rtol=0, atol=1e-2)

    assert not find(browser, "pad-hint").is_displayed()
    find(browser, "clear").click()
    assert find(browser, "pad-hint").is_displayed()
    assert numbers(browser, "state.image").sum() == 0


def test_the_keyboard_draws(open_page):
    browser = open_page()
    press(browser, "d")
    keys = webdriver.ActionChains(browser)
    keys.key_down(Keys.SHIFT).send_keys(8 * Keys.ARROW_DOWN).key_up(Keys.SHIFT).perform()
    assert browser.execute_script("return state.position") is None
    rows = numbers(browser, "state.image").view(28, 28).amax(1)
    assert (rows > 0.5).sum() == 20
    press(browser, "c")
    assert numbers(browser, "state.image").sum() == 0


def test_a_slider_changes_the_output_and_a_key_goes_back_to_the_encoded_values(open_page):
    browser = open_page()
    slider, model = find(browser, "unit-2"), network(8)
    value = find(browser, "unit-2").find_element(By.XPATH, "../following-sibling::output")
    low, high = (float(slider.get_attribute(end)) for end in ("min", "max"))
    for back in ("e", Keys.BACKSPACE, None):
        _, code, output = state(browser)
        drag(browser, slider, [(0.5, 0.5), (0.9, 0.5), (0.98, 0.5)])
        _, moved, changed = state(browser)
        assert (moved != code).nonzero().flatten().tolist() == [2]
        with torch.inference_mode():
            torch.testing.assert_close(changed, model.decode(moved), rtol=0, atol=2e-4)
        assert not torch.equal(changed, output)
        assert value.text == f"{moved[2]:.1f}"
        mark = slider.find_element(By.XPATH, "..").get_attribute("style").removeprefix("--encoded:")
        assert float(mark.strip(" ;")) == pytest.approx((code[2].item() - low) / (high - low), abs=1e-3)
        if back:
            press(browser, back)
        else:
            find(browser, "back").click()
        assert torch.equal(state(browser)[1], code)
        assert float(slider.get_property("value")) == pytest.approx(code[2].item(), abs=1e-3)


def test_sliders_go_over_the_range_of_the_test_set_by_importance_and_the_dead_last(open_page):
    browser = open_page(4)
    names = [label.text for label in browser.find_elements(By.CSS_SELECTOR, ".unit label")]
    importance = [number.text for number in browser.find_elements(By.CSS_SELECTOR, ".unit .number")]
    assert names == ["unit 2", "unit 1", "unit 0", "unit 3"]
    assert importance == ["30%", "20%", "10%", "dead"]
    with torch.inference_mode():
        codes = network(4).encode(IMAGES)
    ends = [float(find(browser, "unit-1").get_attribute(end)) for end in ("min", "max")]
    assert ends == pytest.approx([codes[:, 1].min().item(), codes[:, 1].max().item()], rel=1e-5)


def test_keys_and_buttons_choose_images(open_page):
    browser = open_page()

    def position():
        return browser.execute_script("return state.position")

    def label():
        return browser.execute_script("return data.labels[state.position]")

    press(browser, Keys.ARROW_RIGHT)
    assert position() == 2
    press(browser, Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert position() == browser.execute_script("return data.index.length") - 1
    for digit in (3, 0):
        press(browser, str(digit))
        assert label() == digit
        assert f"{digit} (image " in find(browser, "input-name").text
    before = position()
    press(browser, "0")
    assert position() != before and label() == 0

    with torch.inference_mode():
        errors = (network(8)(IMAGES) - IMAGES).square().mean(1)
    for worst in errors.argsort(descending=True)[:3].tolist():
        press(browser, "w")
        assert find(browser, "input-name").text.endswith(f"(image {worst})")
    seen = set()
    for _ in range(5):
        press(browser, "r")
        seen.add(position())
    assert len(seen) > 1


def test_arrows_on_a_slider_move_the_slider_alone(open_page):
    browser = open_page()
    before = state(browser)
    browser.execute_script("document.getElementById('unit-2').focus()")
    press(browser, Keys.ARROW_RIGHT)
    after = state(browser)
    assert after[0] == before[0] and after[1][2] > before[1][2]


def test_noise_is_added_and_the_mse_is_that_to_the_clean_image(open_page):
    browser = open_page()
    clean, code = numbers(browser, "state.image"), state(browser)[1]
    drag(browser, find(browser, "noise"), [(0.03, 0.5), (0.5, 0.5)])
    assert torch.equal(numbers(browser, "state.image"), clean)
    _, noisy_code, output = state(browser)
    assert not torch.equal(noisy_code, code)
    assert find(browser, "mse").text == f"{(output - clean).square().mean().item():.4f}"
    noise = picture(browser, "input")[:, 0] - clean
    assert 0.2 < noise.std() < 0.6 and abs(noise.mean()) < 0.1  # 0.5, cut off at black and white


def test_the_ends_of_the_interpolation_are_shown_with_the_noise_that_was_encoded(open_page):
    browser = open_page()
    drag(browser, find(browser, "noise"), [(0.03, 0.5), (0.5, 0.5)])
    noisy = picture(browser, "input")
    assert picture(browser, "to").equal(noisy)
    press(browser, "h", Keys.ARROW_RIGHT)
    assert picture(browser, "from").equal(noisy) and not picture(browser, "to").equal(noisy)


def test_interpolation_plays_from_the_image_held_to_the_input(open_page):
    browser = open_page()
    press(browser, "5", "h")
    start = state(browser)[1]
    press(browser, "8")
    _, end, output = state(browser)
    mix = find(browser, "mix")
    drag(browser, mix, [(0.98, 0.5), (0.5, 0.5)])
    t = float(mix.get_property("value"))
    assert 0.4 < t < 0.6
    torch.testing.assert_close(state(browser)[1], torch.lerp(start, end, t), rtol=1e-5, atol=1e-4)

    play = find(browser, "play")
    browser.execute_script("requestAnimationFrame = (draw) => { window.drawFrame = draw; return 1; };"
                           "performance.now = () => 5000")
    play.click()
    browser.execute_script("drawFrame(6000)")  # one of two seconds later
    assert mix.get_property("value") == "0.5" and play.text == "Stop"
    torch.testing.assert_close(state(browser)[1], torch.lerp(start, end, 0.5), rtol=1e-5, atol=1e-4)
    browser.execute_script("drawFrame(7010)")
    assert mix.get_property("value") == "1" and play.text == "Play"
    assert torch.equal(state(browser)[1], end) and torch.equal(state(browser)[2], output)
    press(browser, "p")
    assert play.text == "Stop"
    press(browser, Keys.ARROW_RIGHT)  # whatever else one does stops it
    assert play.text == "Play"


@pytest.mark.parametrize("units", [1, 2, 8])
def test_a_click_on_a_dot_chooses_its_image(open_page, units):
    browser = open_page(units)
    places = torch.tensor(browser.execute_script("return dots.map(onMap)"))
    for position in (5, 50, 200):
        dot = browser.find_element(By.CSS_SELECTOR, f"#map circle:nth-of-type({position + 1})")
        webdriver.ActionChains(browser, duration=0).click(dot).perform()
        chosen = browser.execute_script("return state.position")
        assert (places[chosen] - places[position]).abs().max() < 2  # of 400: another dot may lie there, too
        ring = browser.find_element(By.CSS_SELECTOR, "#map .now")
        centre = [float(ring.get_attribute(axis)) for axis in ("cx", "cy")]
        assert centre == pytest.approx(places[chosen].tolist(), abs=0.1)


def test_two_units_are_the_axes_of_the_map(open_page):
    browser = open_page(2)
    dots = browser.execute_script("return dots")
    with torch.inference_mode():
        codes = network(2).encode(IMAGES[browser.execute_script("return data.index")])
    torch.testing.assert_close(torch.tensor(dots), codes, rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize("width", [360, 600, 900, 1600])
def test_it_fits_the_screen_and_fingers(open_page, width):
    browser = open_page(32, size=(width, 740))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    sizes = browser.execute_script("""
        const boxes = [...document.querySelectorAll("button, input")].map((e) => e.getBoundingClientRect());
        return boxes.map(({width, height, left, right}) => [Math.min(width, height), left, right])""")
    assert all(size >= 32 and left >= 0 and right <= width for size, left, right in sizes)


def test_controls_have_names_and_sliders_stand_below_one_another(open_page):
    browser = open_page()
    elements = browser.find_elements(By.CSS_SELECTOR, "button, input, canvas, svg[role]")
    assert elements and all(element.accessible_name for element in elements)
    sliders = browser.find_elements(By.CSS_SELECTOR, ".unit input")
    tops = [slider.rect["y"] for slider in sliders]
    assert all(a < b for a, b in pairwise(tops))
