"""Chromium and Firefox, headless and offline, for the tests of the page."""

import shutil

import pytest

webdriver = pytest.importorskip("selenium.webdriver")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FIREFOX = next(filter(None, map(shutil.which, ("firefox", "firefox-esr"))), None)


def chromium(profile):
    """Return a driver of Chromium, which keeps its profile in a folder, or skip the test."""
    driver = shutil.which("chromedriver")
    if not (CHROMIUM and driver):
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "no-first-run", "proxy-server=127.0.0.1:9",
                     "disable-background-networking", "disable-component-update", "disable-sync",
                     f"user-data-dir={profile}"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(driver))


def firefox():
    """Return a driver of Firefox, or skip the test."""
    driver = shutil.which("geckodriver")
    if not (FIREFOX and driver):
        pytest.skip("needs firefox and geckodriver")
    options = webdriver.FirefoxOptions()
    options.binary_location = FIREFOX
    options.add_argument("-headless")
    return webdriver.Firefox(options, webdriver.FirefoxService(driver))


def emulate(browser, width, height, touch=False, **media):
    """Give Chromium's window a size and media features, such as prefers_color_scheme="dark"."""
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch})
    features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def press(browser, *keys):
    """Press keys, one after the other, wherever the focus is."""
    webdriver.ActionChains(browser).send_keys(*keys).perform()


def point(browser, element, place):
    """Return where in the window a place is, given as fractions of an element's width and height."""
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    box = browser.execute_script("return arguments[0].getBoundingClientRect()", element)
    return box["x"] + place[0] * box["width"], box["y"] + place[1] * box["height"]


def mouse(browser, element, places, kind="mouse", hold=True):
    """Move a mouse or pen over an element from place to place in Chromium, its button down or not."""
    for i, (x, y) in enumerate([point(browser, element, place) for place in places]):
        event = {"x": x, "y": y, "button": "left", "buttons": int(hold), "clickCount": 1, "pointerType": kind}
        if hold and i == 0:
            browser.execute_cdp_cmd("Input.dispatchMouseEvent", {**event, "type": "mousePressed"})
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", {**event, "type": "mouseMoved"})
    if hold:
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", {**event, "type": "mouseReleased", "buttons": 0})


def finger(browser, element, places):
    """Move a finger over an element from place to place in Chromium."""
    for i, (x, y) in enumerate([point(browser, element, place) for place in places]):
        touch = {"type": "touchMove" if i else "touchStart", "touchPoints": [{"x": x, "y": y}]}
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", touch)
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
