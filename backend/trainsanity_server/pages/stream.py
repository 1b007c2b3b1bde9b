"""The live stream: says which run changed in what way; the page asks for the rest.

One stream serves all tabs of a browser (see `frontend/static/js/live.js`), since a browser opens
only six connections to a server at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent

from trainsanity_server.live import Subscription
from trainsanity_server.parts import PartsOf

router = APIRouter(include_in_schema=False)

ALL = "*"
PACE_SECONDS = 0.25  # events within this time travel together
LIFE_SECONDS = 600.0  # then the browser comes again: proxies and laptops forget long connections
RETRY_MILLISECONDS = 1000


@router.get("/live", name="page_live", response_class=EventSourceResponse)
async def live(
    parts: PartsOf, watch: Annotated[list[str], Query(max_length=100)]
) -> AsyncIterator[ServerSentEvent]:
    """Events of the runs in `watch`, or of all for `*`. It holds no database session."""
    wanted = set(watch)
    only = watch[0] if len(wanted) == 1 and ALL not in wanted else None
    ends_at = time.monotonic() + LIFE_SECONDS
    async with parts.hub.subscribe(only) as subscription:
        # The browser now knows that from here on it misses nothing.
        yield ServerSentEvent(event="ready", data={}, retry=RETRY_MILLISECONDS)
        while not subscription.is_closed and (left := ends_at - time.monotonic()) > 0:
            async for event in _next(subscription, wanted, left):
                yield event
            await asyncio.sleep(PACE_SECONDS)
    if not subscription.is_closed:
        yield ServerSentEvent(event="again", data={})


async def _next(
    subscription: Subscription, wanted: set[str], timeout_seconds: float
) -> AsyncIterator[ServerSentEvent]:
    kinds_by_run: dict[str, set[str]] = {}
    with contextlib.suppress(TimeoutError):
        for event in await asyncio.wait_for(subscription.next(), timeout_seconds):
            kinds_by_run.setdefault(event.run_id, set()).add(event.kind)
    for run_id, kinds in kinds_by_run.items():
        if ALL in wanted or run_id in wanted:
            yield ServerSentEvent(event="change", data={"run": run_id, "kinds": sorted(kinds)})
