import os
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from statistics import median

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import ROOT, Report
from matplotlib.backend_bases import KeyEvent, MouseButton, MouseEvent

from explore import Explorer
from labkit import data
from model import autoencoderMLP4Layer


@pytest.fixture
def explorer(small, request):
    plt.switch_backend("agg")
    test = data.load("glyphs", None, "test")[1]
    torch.manual_seed(0)
    model = autoencoderMLP4Layer(N_bottleneck=getattr(request, "param", 8))
    model.fc2.bias.data.fill_(1)
    with torch.inference_mode():
        explorer = Explorer(model, data.to_float(test.images), test.labels, 3, 4)
    explorer.figure.canvas.draw()
    yield explorer
    plt.close("all")


def shown(explorer):
    return torch.as_tensor(explorer.decoded.get_array())


def press(explorer, key):
    canvas = explorer.figure.canvas
    canvas.callbacks.process("key_press_event", KeyEvent("key_press_event", canvas, key))


def click(explorer, axes, x, y=0.5):
    """Press the mouse in the middle of `axes`, or at x and y of 0 to 1, and let it go."""
    canvas = explorer.figure.canvas
    place = axes.transAxes.transform((x, y))
    for name in ("button_press_event", "button_release_event"):
        canvas.callbacks.process(name, MouseEvent(name, canvas, *place, MouseButton.LEFT))


@pytest.mark.parametrize("explorer", [2, 8, 32], indirect=True)
def test_it_begins_with_the_encoded_image(explorer):
    with torch.inference_mode():
        expected = explorer.model(explorer.images[3]).view(28, 28)
    torch.testing.assert_close(shown(explorer), expected)
    boxes = [slider.ax.get_position() for slider in explorer.sliders]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(0 <= box.x0 < box.x1 <= 1 and 0.08 < box.y0 < box.y1 <= 1 for box in boxes)


def test_a_slider_moves_the_digit_and_r_brings_it_back(explorer):
    before = shown(explorer).clone()
    click(explorer, explorer.sliders[2].ax, 0.02)
    assert explorer.sliders[2].val < 0.1 * explorer.sliders[2].valmax
    code = torch.tensor([slider.val for slider in explorer.sliders], dtype=torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(shown(explorer), explorer.model.decode(code).view(28, 28))
    assert not shown(explorer).equal(before)
    press(explorer, "r")
    torch.testing.assert_close(shown(explorer), before)
    click(explorer, explorer.sliders[2].ax, 0.02)
    click(explorer, explorer.back.ax, 0.5)
    torch.testing.assert_close(shown(explorer), before)


def test_keys_and_button_choose_images_and_mix_goes_between_them(explorer):
    press(explorer, "right")
    click(explorer, explorer.next.ax, 0.5)
    assert (explorer.first, explorer.second) == (5, 4)
    press(explorer, "left")
    press(explorer, "up")
    press(explorer, "up")
    press(explorer, "down")
    assert (explorer.first, explorer.second) == (4, 5)
    with torch.inference_mode():
        torch.testing.assert_close(shown(explorer), explorer.model(explorer.images[4]).view(28, 28))
        click(explorer, explorer.mix.ax, 1)
        torch.testing.assert_close(shown(explorer), explorer.model(explorer.images[5]).view(28, 28))
    press(explorer, "r")
    assert explorer.mix.val == 0


@pytest.mark.browser
def test_the_window_in_a_browser(tmp_path):
    """lab1.py --explore over WebAgg in headless Chromium: a slider dragged, the page changes."""
    browser, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not (browser and driver and find_spec("tornado") and find_spec("selenium")):
        pytest.skip("needs Debian's chromium and chromium-driver, tornado and selenium")
    from selenium import webdriver
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    torch.save(Report().state_dict() | {"fc2.bias": torch.ones(8)}, tmp_path / "model.pth")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "matplotlibrc").write_text(f"webagg.port: {port}\nwebagg.open_in_browser: False\n")
    command = [sys.executable, ROOT / "lab1.py", "-l", "model.pth", "--explore", "--dataset", "glyphs"]
    log = open(tmp_path / "log", "w")
    server = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, env=os.environ | {"MPLBACKEND": "webagg"})
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for switch in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
                   "--window-size=1300,800", f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(switch)
    page = None
    try:
        page = webdriver.Chrome(options, webdriver.ChromeService(driver))
        for _ in range(120):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.25)
        page.get(f"http://127.0.0.1:{port}/")
        read = "const c = document.querySelectorAll('canvas')[0]; return c ? c.toDataURL() : ''"
        canvas = page.find_element(By.CSS_SELECTOR, "canvas")

        def settled():
            """Return the page's picture once it has not changed for half a second."""
            pictures = [page.execute_script(read)]
            while len(pictures) < 6 or len(set(pictures[-3:])) > 1:
                time.sleep(0.25)
                pictures.append(page.execute_script(read))
                assert len(pictures) < 100
            return pictures[-1]

        before = settled()
        box = canvas.size  # the first slider is at 0.38 to 0.88 of the width, near 0.15 of the height from the top
        start, level = -0.5 * box["width"] + 0.45 * box["width"], -0.5 * box["height"] + 0.14 * box["height"]
        overlay = page.find_elements(By.CSS_SELECTOR, "canvas")[-1]
        drag = ActionChains(page).move_to_element_with_offset(overlay, int(start), int(level)).click_and_hold()
        drag.move_by_offset(int(0.3 * box["width"]), 0).release().perform()
        assert settled() != before
        if os.environ.get("SCREENSHOT"):
            canvas.screenshot(os.environ["SCREENSHOT"])
    finally:
        if page:
            page.quit()
        server.terminate()
        server.wait()
        log.close()


def redraws(explorer):
    """Return the median time of a redraw in ms: `PYTHONPATH=. python tests/test_explore.py` prints it."""
    times = []
    for i in range(40):
        start = time.perf_counter()
        explorer.sliders[1].set_val(i / 40)
        times.append(time.perf_counter() - start)
    return 1e3 * median(times)


if __name__ == "__main__":
    test = data.load("glyphs", None, "test")[1]
    for units in (8, 32):
        print(units, "units:", round(redraws(Explorer(autoencoderMLP4Layer(784, units), test.images / 255, test.labels))), "ms")
