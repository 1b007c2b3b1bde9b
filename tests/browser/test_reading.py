"""Readable by everybody: without scripts, on a phone, with a keyboard, in light and dark."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from feed import setup_audits, tagger
from playwright.sync_api import Browser, Page, expect
from scene import LiveServer, Watched, wait_until_settled

PAGES = [
    "/",
    "/runs/{wrong}",
    "/runs/{right}",
    "/runs/{wrong}/table?name=loss/reported",
    "/alerts",
    "/rules",
    "/rules/mask-coverage-mismatch",
    "/settings",
    "/docs",
    "/runs/00000000-0000-7000-8000-000000000000",
]


@pytest.fixture
def paths(wrong_run: str, right_run: str) -> list[str]:
    return [path.format(wrong=wrong_run, right=right_run) for path in PAGES]


# Not `wait_for_function`: it asks again by `eval`, which the policy of the pages forbids.
DRAWN = """() => new Promise((resolve, reject) => {
  const isDrawn = (figure) =>
    figure.getBoundingClientRect().top > innerHeight || figure.dataset.liveState;
  const look = () =>
    [...document.querySelectorAll('figure[data-chart]')].every(isDrawn)
      ? resolve()
      : requestAnimationFrame(look);
  look();
  setTimeout(() => reject('a chart in view is not drawn'), 30_000);
})"""


def settle(page: Page) -> None:
    """Until all charts in view are drawn."""
    page.evaluate(DRAWN)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_no_page_has_a_barrier_that_axe_knows(
    browser: Browser,
    server: LiveServer,
    watched: Watched,
    paths: list[str],
    scheme: str,
    width: int,
) -> None:
    with browser.new_context(
        base_url=server.address,
        color_scheme=scheme,
        viewport={"width": width, "height": 844},
        bypass_csp=True,  # axe itself is an inline script
    ) as context:
        page = context.new_page()
        found: list[str] = []
        for path in paths:
            page.goto(path)
            settle(page)
            results = Axe().run(page)
            for violation in results.response["violations"]:
                nodes = [node["html"] for node in violation["nodes"]]
                found.append(f"{path}: {violation['help']}: {nodes[:3]}")
        assert found == []


@pytest.mark.parametrize("width", [390, 320])
def test_no_page_scrolls_sideways_on_a_phone(
    browser: Browser, server: LiveServer, watched: Watched, paths: list[str], width: int
) -> None:
    wordy = server.feed(
        "W" * 200, project="p" * 100, tags=["t" * 100] * 5, config={"k" * 99: "v" * 99}
    )
    embedding = f"embedding:{'x' * 200}"
    ids = {
        f"{embedding}/id_max": [9.0],
        f"{embedding}/id_min": [1.0],
        f"{embedding}/input_dim": [5.0],
    }
    wordy.send({**ids, f"{'m' * 200}/reported": [1.0]}, state="finished")
    wait_until_settled(server, wordy.run_id)
    with browser.new_context(
        base_url=server.address,
        viewport={"width": width, "height": 844},
        has_touch=True,
        is_mobile=True,
    ) as context:
        page = context.new_page()
        watched.watch(page, server.address)
        for path in [*paths, f"/runs/{wordy.run_id}"]:
            page.goto(path)
            settle(page)
            too_wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert too_wide <= 0, path


@pytest.fixture
def page_without_script(browser: Browser, server: LiveServer, watched: Watched):
    context = browser.new_context(base_url=server.address, java_script_enabled=False)
    page = context.new_page()
    watched.watch(page, server.address)
    yield page
    context.close()


def test_the_list_reads_and_filters_without_scripts(
    page_without_script: Page, wrong_run: str, right_run: str
) -> None:
    page = page_without_script
    page.goto("/")
    expect(page.locator(f"#run-{wrong_run}")).to_contain_text("1 critical")
    page.get_by_label("Project").select_option("right")
    page.get_by_role("button", name="Filter").click()
    expect(page.locator(f"#run-{wrong_run}")).to_have_count(0)
    expect(page.locator(f"#run-{right_run}")).to_be_visible()


def test_a_run_reads_without_scripts(page_without_script: Page, wrong_run: str) -> None:
    page = page_without_script
    page.goto(f"/runs/{wrong_run}")
    expect(page.locator(".verdict-text")).to_contain_text("1 contradiction")
    expect(page.locator(".alert .witness")).to_have_count(2)
    expect(page.locator("#mask .layer.is-lost")).to_be_visible()
    summary = page.locator("#signals .chart-summary").first
    expect(summary).to_be_visible()
    expect(summary).to_contain_text("loss/reported:")
    expect(page.get_by_text("Reconnecting")).to_have_count(0)


def test_a_table_of_samples_reads_without_scripts(
    page_without_script: Page, wrong_run: str
) -> None:
    page = page_without_script
    page.goto(f"/runs/{wrong_run}")
    figure = page.locator("#signals figure").first
    figure.locator("summary").click()
    figure.get_by_role("link", name="Open the table").click()
    expect(page.locator("tbody tr").first).to_contain_text("1 to")
    expect(page.locator("thead")).to_contain_text("loss/reported")


def test_alerts_are_handled_without_scripts(page_without_script: Page, server: LiveServer) -> None:
    feed = server.feed("no scripts")
    feed.send(audits=setup_audits(lost=True))
    feed.send(tagger(50, lost=True), state="finished")
    wait_until_settled(server, feed.run_id)
    page = page_without_script
    page.goto(f"/runs/{feed.run_id}")
    expect(page.locator(".alert")).to_have_count(1)
    page.get_by_role("button", name="Acknowledge").click()
    expect(page).to_have_url(re.compile(f"/runs/{feed.run_id}#alert-"))
    expect(page.locator(".alert-head .tag")).to_have_text("acknowledged")
    page.locator("summary", has_text="Mute").click()
    page.get_by_label("Because").fill("known")
    page.get_by_role("button", name="Mute", exact=True).click()
    expect(page.locator("#handled")).to_contain_text("1 finding muted or resolved")
    assert server.parts.runs.alerts(feed.run_id)[0].state == "muted"


def test_a_chosen_theme_stays(page: Page) -> None:
    page.goto("/")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.locator("#theme").click()  # light
    page.locator("#theme").click()  # dark
    dark = page.evaluate(ground)
    assert dark != light
    page.reload()
    assert page.evaluate(ground) == dark
    expect(page.locator("#theme")).to_have_attribute("aria-label", "Colours: dark")


def test_the_keyboard_reaches_everything_and_shows_where_it_is(page: Page, wrong_run: str) -> None:
    page.goto(f"/runs/{wrong_run}")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.textContent.trim().slice(0, 11)"))
        width = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
        assert width not in ("", "0px"), page.evaluate("document.activeElement.outerHTML")
    assert {"Runs", "Acknowledge", "Findings", "log"} <= reached
