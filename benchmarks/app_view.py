"""How long the first view of a study takes in the review app, on loopback, in Chromium.

    python -m benchmarks.app_view --address http://127.0.0.1:8000 --study <id> --out view.json

The server runs with SOLO=1. Each time a new browser opens the page: nothing is cached. `first` is
when the three planes stand as a picture, `seconds` when they can be moved through; `graphics` is
the part in which the browser starts WebGL and compiles the viewer's shaders. Without a graphics
card that is done in software, and takes most of the time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from pipelines import cli

SOFTWARE_GL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]


def first_view(address: str, study: str) -> dict[str, float]:
    """Seconds from asking for the page to its pictures, and those of the graphics."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=SOFTWARE_GL)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(f"{address}/studies/{study}")
        page.wait_for_selector("#viewer[data-ready]", timeout=120_000)
        told = page.locator("#viewer").evaluate("viewer => ({...viewer.dataset})")
        browser.close()
    return {name: float(told[name]) for name in ("first", "seconds", "graphics")}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.app_view", description=__doc__)
    parser.add_argument("--address", default="http://127.0.0.1:8000")
    parser.add_argument("--study", required=True, help="the id of a study that is done")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    measured: list[dict[str, Any]] = []
    for _ in range(arguments.times):
        load = os.getloadavg()[0]
        measured.append(first_view(arguments.address, arguments.study) | {"load": round(load, 1)})
        print(measured[-1], flush=True)
    found = {"cores": os.cpu_count(), "graphics card": None, "views": measured}
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    cli.leave(main)
