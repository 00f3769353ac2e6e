"""Takes the README's first screenshot: a digit drawn on the page of a served model.

python -m experiments.mnist --preset fast --run-dir runs/fast
python -m benchmarks.serve_picture runs/fast docs/serve.png

Needs `pip install -e '.[serve]' playwright` and Chromium.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

# a 2, in fractions of the canvas
STROKE = [(0.36, 0.34), (0.38, 0.27), (0.44, 0.22), (0.52, 0.21), (0.6, 0.24), (0.64, 0.31),
          (0.63, 0.39), (0.57, 0.48), (0.49, 0.58), (0.41, 0.67), (0.36, 0.75), (0.5, 0.75),
          (0.66, 0.74)]  # fmt: skip


def draw(page) -> str:
    """Draws the digit with the mouse; returns the model's answer."""
    box = page.locator("#draw").bounding_box()
    points = [(box["x"] + x * box["width"], box["y"] + y * box["width"]) for x, y in STROKE]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=6)
    page.mouse.up()
    page.wait_for_selector("#seen canvas >> nth=1")
    return page.inner_text("#answer")


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run on MNIST")
    parser.add_argument("screenshot", type=Path, help="file of the screenshot")
    options = parser.parse_args()
    command = [sys.executable, "-m", "experiments.serve", str(options.run), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = next(m[0] for line in server.stdout if (m := re.search(r"http://\S+", line)))
        with sync_playwright() as browsers:
            chromium = shutil.which("chromium") or shutil.which("chromium-browser")
            browser = browsers.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1200, "height": 800})
            page.goto(url)
            page.wait_for_selector("#scores tr")
            print(f"the model answers {draw(page)}")
            page.screenshot(path=options.screenshot)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
