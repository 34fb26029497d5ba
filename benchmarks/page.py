"""Measures explore.html in headless Chromium: its size, its speed, and ten digits drawn on it.

    python lab1.py -l model.pth --explore
    python benchmarks/page.py outputs/mnist/explore.html

Speed, over 200 moves of the mouse: from an event's first listener to the end of the frame that shows it;
"work" leaves out the wait for that frame, of which there are 60 a second.
"""

import shutil
import sys
from pathlib import Path
from statistics import median

from selenium import webdriver

DIGITS = {  # strokes: x, y in tenths of a box a third of the pad wide and half of it high, at its upper left
    0: [(5, 0, 1, 2, 0, 5, 1, 8, 5, 10, 9, 8, 10, 5, 9, 2, 5, 0)],
    1: [(5, 0, 5, 10)],
    2: [(0, 2, 3, 0, 7, 0, 9, 3, 6, 6, 0, 10, 10, 10)],
    3: [(1, 0, 7, 0, 9, 2, 7, 4, 4, 5, 8, 6, 9, 8, 6, 10, 0, 10)],
    4: [(2, 0, 0, 6, 9, 6), (8, 0, 7, 10)],
    5: [(9, 0, 2, 0, 1, 4, 6, 4, 9, 7, 6, 10, 0, 10)],
    6: [(7, 0, 3, 3, 1, 7, 3, 10, 7, 10, 9, 7, 6, 5, 2, 6)],
    7: [(0, 0, 9, 0, 4, 10)],
    8: [(5, 0, 1, 2, 5, 5, 9, 8, 5, 10, 1, 8, 5, 5, 9, 2, 5, 0)],
    9: [(8, 3, 5, 0, 1, 2, 2, 5, 6, 5, 8, 3, 8, 6, 6, 10)],
}
WATCH = """
    const name = arguments[0];
    window.times = [];
    window.addEventListener(name, () => {
      const start = performance.now(), {port1: end, port2} = new MessageChannel();
      let computed;
      window.addEventListener(name, () => { computed = performance.now(); }, {once: true});
      requestAnimationFrame(() => {
        const frame = performance.now();
        end.onmessage = () => {
          const painted = performance.now();
          times.push([painted - start, computed - start + painted - frame]);
        };
        port2.postMessage(0);
      });
    }, true)"""
SCALED = """
    const rgba = pad.getImageData(0, 0, 280, 280).data;
    const ink = new Float64Array(280 * 280).map((_, i) => rgba[4 * i] / 255);
    const scaled = average(average(ink, 280, 280, 28), 28, 280, 28);
    return meanSquaredError(scaled, decode(encode(scaled)))"""


def find(browser, name):
    return browser.execute_script(f"return element('{name}').getBoundingClientRect()")


def mouse(browser, kind, x, y):
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", {
        "type": f"mouse{kind}", "x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1})


def draw(browser, box, digit):
    browser.find_element("id", "clear").click()
    for stroke in DIGITS[digit]:
        points = [(box["x"] + box["width"] * (0.1 + x / 30), box["y"] + box["height"] * (0.1 + y / 20))
                  for x, y in zip(stroke[::2], stroke[1::2])]
        for kind, point in zip(["Pressed"] + len(points) * ["Moved"], points):
            mouse(browser, kind, *point)
        mouse(browser, "Released", *points[-1])


def main(path):
    options = webdriver.ChromeOptions()
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1280,1000"):
        options.add_argument(f"--{argument}")
    print(f"{path}: {Path(path).stat().st_size:,} bytes")
    with webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver"))) as browser:
        measure(browser, path)


def measure(browser, path):
    for name, event in (("unit-0", "input"), ("mix", "input"), ("pad", "pointermove")):
        browser.get(Path(path).resolve().as_uri())
        box = find(browser, name)
        left, width, y = box["x"] + 12, box["width"] - 24, box["y"] + box["height"] / 2
        browser.execute_script(WATCH, event)
        mouse(browser, "Pressed", left, y)
        for i in range(200):
            mouse(browser, "Moved", left + width * (37 * i % 200) / 200, y)
        mouse(browser, "Released", left, y)
        painted, worked = zip(*browser.execute_script("return times"))
        print(f"{name:6}: {len(painted)} events, painted after {median(painted):.1f} ms, at worst "
              f"{max(painted):.1f}; work {median(worked):.1f} ms, at worst {max(worked):.1f}")

    box = find(browser, "pad")
    for digit in DIGITS:
        draw(browser, box, digit)
        mse = browser.find_element("id", "mse").text
        print(f"{digit}: MSE {mse}, not prepared {browser.execute_script(SCALED):.4f}")


if __name__ == "__main__":
    main(sys.argv[1])
