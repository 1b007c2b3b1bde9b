"""Pictures of a running server for the README: `make screenshots`.

    python -m tests.browser.screenshots --url http://127.0.0.1:8321 --out docs/images

They show what the server has; nothing is made up for them. The run that is shown is the one named,
or else that with the most contradictions.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
from playwright.sync_api import Browser, Page, sync_playwright

ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Shot:
    """One picture.

    Attributes:
        path: of the page; `{run}` stands for the run's id.
        part: the element that is shown; the window where empty.
        width, height: of the window, in CSS pixels.
    """

    name: str
    path: str
    part: str = ""
    width: int = 1280
    height: int = 860
    scheme: str = "light"


SHOTS = (
    Shot("runs", "/", height=560),
    Shot("run", "/runs/{run}"),
    Shot("run-dark", "/runs/{run}", scheme="dark"),
    Shot("run-phone", "/runs/{run}", width=390, height=844),
    Shot("mask", "/runs/{run}", part="#mask"),
    Shot("signals", "/runs/{run}", part="#signals .charts"),
    Shot("rules", "/rules", height=720),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8321", help="address of the server")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder to write to")
    parser.add_argument("--run", default="", help="name of the run to show")
    options = parser.parse_args()
    url = options.url.rstrip("/")
    run = telling_run(url, options.run)
    options.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(), args=ARGUMENTS)
        for shot in SHOTS:
            target = options.out / f"{shot.name}.png"
            take(browser, url + shot.path.format(run=run["id"]), shot, target)
            print(target)
        browser.close()


def telling_run(url: str, name: str) -> dict[str, Any]:
    """The run of this name, or that with the most contradictions; of several, the newest."""
    try:
        answer = urllib3.request("GET", f"{url}/api/v1/runs?limit=100", retries=False, timeout=10)
    except urllib3.exceptions.HTTPError as error:
        sys.exit(f"no server answers at {url} ({error}). Start one with `make demo`.")
    runs = [run for run in answer.json()["runs"] if name in ("", run["name"])]
    if not runs:
        sys.exit(f"the server at {url} has no run {name!r} to show. `make demo` brings some.")
    return dict(max(runs, key=lambda run: run["alert_counts"]["critical"]))


def take(browser: Browser, address: str, shot: Shot, target: Path) -> None:
    context = browser.new_context(
        viewport={"width": shot.width, "height": shot.height},
        color_scheme=shot.scheme,
        device_scale_factor=2,
        reduced_motion="reduce",
        bypass_csp=True,  # `wait_for_function` asks again by `eval`
    )
    page = context.new_page()
    page.goto(address)
    if shot.part:
        _fit_window(page, shot)
    page.wait_for_function(
        """() => [...document.querySelectorAll('figure[data-chart]')].every(figure =>
            figure.getBoundingClientRect().top > innerHeight || figure.dataset.liveState)"""
    )
    if shot.part:
        page.locator(shot.part).screenshot(path=target)
    else:
        page.screenshot(path=target)
    context.close()


def _fit_window(page: Page, shot: Shot) -> None:
    """Makes the window as high as the page: charts are drawn where they are seen."""
    height = page.evaluate("document.documentElement.scrollHeight")
    page.set_viewport_size({"width": shot.width, "height": height})


def _chromium() -> str:
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    sys.exit(f"none of {', '.join(BROWSERS)} is installed (apt-get install chromium)")


if __name__ == "__main__":
    main()
