"""A real HTTP server on loopback that plays Slack's webhooks and remembers what it was sent."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import httpx2

WEBHOOK_PATH = "/services/T00000000/B00000000/s3cr3ts3cr3ts3cr3tABCD"
PATIENT = httpx2.Timeout(20.0)  # an answer that comes late would be asked for twice
SOON = httpx2.Timeout(20.0, read=2.0)  # for what never answers


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: str = "ok"
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: bool = False  # accepts the request and never answers
    garbage: bytes = b""  # sent instead of an answer that is HTTP

    @property
    def timeout(self) -> httpx2.Timeout:
        """How long a test waits for it."""
        return SOON if self.hang else PATIENT


class SlackReceiver:
    """Answers with the replies in `script`, then with `200 ok`, or 400 to what it `refuses`;
    `posts` are the bodies it took.

    `on_post` is called before each answer, in the server's thread: a test moves its clock there.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.script: deque[Reply] = deque()
        self.always: Reply | None = None
        self.refuses: Callable[[dict[str, Any]], bool] = lambda body: False
        self.posts: list[dict[str, Any]] = []
        self.accepted: list[dict[str, Any]] = []  # those answered with 200
        self.paths: list[str] = []
        self.on_post: Callable[[], None] = lambda: None
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reply = receiver._next(body, self.path)
                if reply.hang:
                    receiver._stopping.wait(60)
                    self.close_connection = True
                elif reply.garbage:
                    self.wfile.write(reply.garbage)
                    self.close_connection = True
                else:
                    self._answer(reply)

            def _answer(self, reply: Reply) -> None:
                content = reply.body.encode()
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def _next(self, body: dict[str, Any], path: str) -> Reply:
        with self._changed:
            self.posts.append(body)
            self.paths.append(path)
            reply = self.script.popleft() if self.script else self.always or self._usual(body)
            if reply.status == 200 and not reply.hang and not reply.garbage:
                self.accepted.append(body)
            self.on_post()
            self._changed.notify_all()
        return reply

    def _usual(self, body: dict[str, Any]) -> Reply:
        return Reply(400, "invalid_blocks") if self.refuses(body) else Reply()

    def wait_until(self, happened: Callable[[], bool], *, seconds: float = 20) -> None:
        """Waits for a post after which `happened` is true."""
        with self._changed:
            arrived = self._changed.wait_for(happened, timeout=seconds)
        assert arrived, f"not within {seconds} s. Received: {len(self.posts)} posts"

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{WEBHOOK_PATH}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
