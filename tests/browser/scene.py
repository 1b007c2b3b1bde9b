"""A real server, and what its pages must never do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from feed import PATIENCE_SECONDS, Feed
from playwright.sync_api import Page

from trainsanity_server.app import create_app
from trainsanity_server.parts import Parts
from trainsanity_server.settings import Settings

PATIENCE = 1000 * PATIENCE_SECONDS  # milliseconds, for whatever has no promise of its own


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


@contextlib.contextmanager
def serving(app: Any, listener: socket.socket) -> Iterator[None]:
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    started = threading.Event()
    thread = threading.Thread(target=serve, args=(server, listener, started), daemon=True)
    thread.start()
    assert started.wait(30), "the server did not start"
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(30)


def run_server(folder: Path, **settings: Any) -> Iterator[LiveServer]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        database = f"sqlite:///{folder / 'trainsanity.db'}"
        given = {"database_url": database, "base_url": address, **settings}
        app = create_app(Settings(**given))
        with serving(app, listener):
            yield LiveServer(address, app.state.parts)


def serve(server: uvicorn.Server, listener: socket.socket, started: threading.Event) -> None:
    startup = server.startup

    async def announced_startup(sockets: list[socket.socket] | None = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = announced_startup
    server.run(sockets=[listener])


def wait_until_settled(server: LiveServer, run_id: str) -> None:
    """Until every rule has spoken; told by the same hub as browsers are."""

    async def wait() -> None:
        async with server.parts.hub.subscribe(run_id) as subscription:
            while not server.parts.runs.get(run_id).settled:
                await asyncio.wait_for(subscription.next(), 30)

    # Playwright has an event loop in this thread.
    with ThreadPoolExecutor(1) as other:
        other.submit(asyncio.run, wait()).result()
