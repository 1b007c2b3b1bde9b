"""A reverse proxy on loopback that serves a server under a path and takes the path off."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import httpx2
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
