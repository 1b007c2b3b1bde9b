"""Channels and how the server is set up."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from trainsanity import __version__
from trainsanity_server.pages.render import render, wants_part
from trainsanity_server.parts import Parts, PartsOf
from trainsanity_server.services.channels import Trial

router = APIRouter(prefix="/settings", include_in_schema=False)

LOOKS = 15  # at most that the page takes, one every two seconds, at what is tried again


@router.get("", name="page_settings")
def settings(parts: PartsOf, request: Request) -> Response:
    return _page(parts, request, **_outcome())


@router.get("/channels/{name}", name="page_channel")
def channel(
    parts: PartsOf, request: Request, name: str, looks: Annotated[int, Query(ge=0, le=LOOKS)] = 0
) -> Response:
    return _answer(parts, request, name, looks=looks)


@router.post("/channels/{name}/test", name="page_test_channel")
def test_channel(parts: PartsOf, request: Request, name: str) -> Response:
    """Sends a real message, and shows the other side's own status and words."""
    trial = parts.channels.test(name)
    parts.outbox.wake()
    return _answer(parts, request, name, trial=trial)


@router.post("/channels/{name}/retry", name="page_retry_channel")
def retry_channel(parts: PartsOf, request: Request, name: str) -> Response:
    """Tries once more what was given up."""
    count = parts.channels.try_again(name)
    parts.outbox.wake()
    return _answer(parts, request, name, retried=count, looks=LOOKS)


def _answer(parts: Parts, request: Request, name: str, **what: Any) -> Response:
    """The channel alone for a script, else the whole page."""
    channel = parts.channels.status(name)
    outcome = _outcome(acted=name, **what)
    if not wants_part(request):
        return _page(parts, request, **outcome)
    now = parts.clock()
    return render(request, "partials/channel.html", channel=channel, now=now, **outcome)


def _outcome(
    acted: str = "", trial: Trial | None = None, retried: int | None = None, looks: int = 0
) -> dict[str, Any]:
    """What became of a button that was pressed, for the templates."""
    return {"acted": acted, "trial": trial, "retried": retried, "looks": looks}


def _page(parts: Parts, request: Request, **values: Any) -> Response:
    return render(
        request,
        "pages/settings.html",
        here="/settings",
        channels=parts.channels.list(),
        facts=_facts(parts),
        has_keys=bool(parts.settings.api_keys),
        now=parts.clock(),
        **values,
    )


def _facts(parts: Parts) -> dict[str, str]:
    settings = parts.settings
    return {
        "Version": __version__,
        "Address in links": settings.base_url,
        "Database": parts.database.url.render_as_string(hide_password=True),
        "Keys": f"{len(settings.api_keys)} set"
        if settings.api_keys
        else "none: everybody may come in",
        "Channels hear of": f"{settings.notify_from.value} and worse",
        "Rules of thumb": "on" if settings.heuristics else "off",
    }
