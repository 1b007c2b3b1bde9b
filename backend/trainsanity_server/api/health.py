"""For machines that look after the server."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Depends, Response
from fastapi.responses import PlainTextResponse
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from trainsanity_server import metrics
from trainsanity_server.access import require_key
from trainsanity_server.errors import UnavailableError
from trainsanity_server.parts import PartsOf

router = APIRouter(tags=["health"])


@router.get("/livez")
def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"description": "It can do no work now."}})
def ready(parts: PartsOf) -> dict[str, str]:
    """The database answers, and every thread is at work."""
    try:
        with parts.database.read() as session:
            session.execute(text("SELECT 1"))
    except DBAPIError as error:
        raise UnavailableError(f"the database does not answer: {error.orig}") from error
    dead = [worker.name for worker in parts.threads if not worker.is_alive]
    if dead:
        raise UnavailableError(f"these threads have ended; restart the server: {', '.join(dead)}")
    return {"status": "ok"}


@router.get(
    "/metrics",
    dependencies=[Depends(require_key)],
    response_class=PlainTextResponse,
    responses={401: {"description": "The server asks for a key."}},
)
def prometheus(parts: PartsOf) -> Any:
    """Numbers about the server itself, for Prometheus."""
    return Response(parts.metrics.text(), HTTPStatus.OK, media_type=metrics.MEDIA_TYPE)
