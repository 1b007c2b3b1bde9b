"""A real server, a real browser, and runs that come in by the server's own front door."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from feed import setup_audits, tagger
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from scene import PATIENCE, LiveServer, Watched, run_server, wait_until_settled

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    yield from run_server(tmp_path_factory.mktemp("server"))


@pytest.fixture
def empty_server(tmp_path: Path) -> Iterator[LiveServer]:
    yield from run_server(tmp_path)


# Not for the whole session: its event loop would stand in the way of other tests.
@pytest.fixture(scope="module")
def browser(chromium: Path) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(chromium), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def watched() -> Iterator[Watched]:
    """Fails a test whose pages threw an error, broke the policy, or asked anybody else."""
    watched = Watched()
    yield watched
    assert watched.errors == []
    assert watched.strangers == []


@pytest.fixture
def context(browser: Browser, server: LiveServer, watched: Watched) -> Iterator[BrowserContext]:
    context = browser.new_context(
        base_url=server.address, viewport={"width": 1280, "height": 900}, color_scheme="light"
    )
    context.set_default_timeout(PATIENCE)
    context.on("page", lambda page: watched.watch(page, server.address))
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


@pytest.fixture(scope="session")
def wrong_run(server: LiveServer) -> str:
    """A finished run in which the mask was lost; tests leave it as it is."""
    feed = server.feed("residual written x + y", project="wrong", tags=["tagger"])
    feed.send(audits=setup_audits(lost=True))
    feed.send(tagger(400, lost=True))
    feed.send(tagger(100, lost=True, after=400), state="finished")
    wait_until_settled(server, feed.run_id)
    return feed.run_id


@pytest.fixture(scope="session")
def right_run(server: LiveServer) -> str:
    """The same with the mask kept."""
    feed = server.feed("residual with Add()", project="right")
    feed.send(audits=setup_audits(lost=False))
    feed.send(tagger(500, lost=False), state="finished")
    wait_until_settled(server, feed.run_id)
    return feed.run_id
