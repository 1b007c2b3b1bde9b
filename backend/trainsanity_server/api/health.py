"""For machines that look after the server."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy import text

from trainsanity_server.parts import PartsOf

router = APIRouter(tags=["health"])


@router.get("/livez")
def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
def ready(parts: PartsOf) -> dict[str, str]:
    """The database answers and every thread is at work."""
    with parts.database.read() as session:
        session.execute(text("SELECT 1"))
    return {"status": "ok"}
