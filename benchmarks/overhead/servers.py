"""What the callback's client meets: a server that answers, one that is slow, or none."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

READY_SECONDS = 60.0
SLOW_SECONDS = 2.0  # before every answer of the slow server


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def up() -> Iterator[str]:
    """A real server on a database of its own."""
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "trainsanity", "serve", "--port", str(port)]
        server = subprocess.Popen(
            [*command, "--db", f"sqlite:///{folder}/bench.db"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TRAINSANITY_API_KEYS": ""},
        )
        try:
            _wait(server, f"http://127.0.0.1:{port}/readyz")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()


def _wait(server: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(address).close()
        except urllib.error.URLError:
            if server.poll() is not None:
                raise SystemExit(f"the server ended with status {server.returncode}") from None
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"the server did not answer at {address} within {READY_SECONDS:.0f} s")


@contextmanager
def down() -> Iterator[str]:
    """Nobody listens."""
    yield f"http://127.0.0.1:{_free_port()}"


class _Slow(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(SLOW_SECONDS)
        self.send_error(503)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def slow() -> Iterator[str]:
    """Takes every packet, waits, and says that it is busy."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Slow)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


SERVERS: dict[str, Callable[[], AbstractContextManager[str]]] = {
    "up": up,
    "slow": slow,
    "down": down,
}
