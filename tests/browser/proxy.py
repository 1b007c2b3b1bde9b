"""A reverse proxy on loopback that serves a server under a path and takes the path off."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator

import httpx2
import uvicorn
from scene import serve
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

PATH = "/team/sanity"
METHODS = ["GET", "POST", "DELETE"]
OF_ONE_HOP = {"connection", "transfer-encoding", "keep-alive", "date", "server"}


def proxy(upstream: str) -> Starlette:
    """Everything outside of `PATH` is none of this server's: 404."""
    client = httpx2.AsyncClient(base_url=upstream, timeout=None)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    async def forward(request: Request) -> StreamingResponse:
        target = httpx2.URL(
            path=f"/{request.path_params['rest']}", query=request.url.query.encode()
        )
        asked = client.build_request(
            request.method, target, headers=request.headers.raw, content=await request.body()
        )
        answer = await client.send(asked, stream=True)
        response = StreamingResponse(
            answer.aiter_raw(), answer.status_code, background=BackgroundTask(answer.aclose)
        )
        response.raw_headers = [
            (name, value)
            for name, value in answer.headers.raw
            if name.decode().lower() not in OF_ONE_HOP
        ]
        return response

    return Starlette(
        routes=[Route(f"{PATH}/{{rest:path}}", forward, methods=METHODS)], lifespan=lifespan
    )


@contextlib.contextmanager
def proxied(listener: socket.socket, upstream: str) -> Iterator[None]:
    config = uvicorn.Config(proxy(upstream), log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    started = threading.Event()
    thread = threading.Thread(target=serve, args=(server, listener, started), daemon=True)
    thread.start()
    assert started.wait(30), "the proxy did not start"
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(30)
