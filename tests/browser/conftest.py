"""A real server, a real browser, and runs that come in by the server's own front door."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from feed import Feed, setup_audits, tagger
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from trainsanity_server.app import create_app
from trainsanity_server.parts import Parts
from trainsanity_server.settings import Settings

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
PATIENCE = 10_000  # milliseconds, for whatever has no promise of its own


@dataclass
class LiveServer:
    """A server under uvicorn in a thread of its own."""

    address: str
    parts: Parts

    def feed(self, name: str, **header: Any) -> Feed:
        return Feed(self.address, name, **header)


@dataclass
class Watched:
    """What a page should never have done."""

    errors: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    def watch(self, page: Page, address: str) -> None:
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", lambda dialog: self.errors.append(f"dialog: {dialog.message}"))
        page.on("console", self._console)
        page.on("request", lambda request: self._request(request.url, address))

    def _console(self, message: Any) -> None:
        is_expected = "the server responded with a status of" in message.text
        if message.type == "error" and not is_expected:
            self.errors.append(message.text)

    def _request(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:")):
            self.strangers.append(url)


def run_server(folder: Path, **settings: Any) -> Iterator[LiveServer]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        database = f"sqlite:///{folder / 'trainsanity.db'}"
        app = create_app(Settings(database_url=database, base_url=address, **settings))
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        started = threading.Event()
        thread = threading.Thread(target=_serve, args=(server, listener, started), daemon=True)
        thread.start()
        assert started.wait(30), "the server did not start"
        try:
            yield LiveServer(address, app.state.parts)
        finally:
            server.should_exit = True
            thread.join(30)


def _serve(server: uvicorn.Server, listener: socket.socket, started: threading.Event) -> None:
    startup = server.startup

    async def announced_startup(sockets: list[socket.socket] | None = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = announced_startup  # type: ignore[method-assign]
    server.run(sockets=[listener])


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    yield from run_server(tmp_path_factory.mktemp("server"))


@pytest.fixture
def empty_server(tmp_path: Path) -> Iterator[LiveServer]:
    yield from run_server(tmp_path)


@pytest.fixture(scope="session")
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


def wait_until_settled(server: LiveServer, run_id: str) -> None:
    """Until every rule has spoken; told by the same hub as browsers are."""

    async def wait() -> None:
        async with server.parts.hub.subscribe(run_id) as subscription:
            while not server.parts.runs.get(run_id).settled:
                await asyncio.wait_for(subscription.next(), 30)

    # Playwright has an event loop in this thread.
    with ThreadPoolExecutor(1) as other:
        other.submit(asyncio.run, wait()).result()
