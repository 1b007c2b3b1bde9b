"""Channels and how the server is set up."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from trainsanity import __version__
from trainsanity_server.pages.render import render, wants_part
from trainsanity_server.parts import Parts, PartsOf
from trainsanity_server.services.channels import Trial

router = APIRouter(prefix="/settings", include_in_schema=False)


@router.get("", name="page_settings")
def settings(parts: PartsOf, request: Request) -> Response:
    return _page(parts, request)


@router.post("/channels/{name}/test", name="page_test_channel")
def test_channel(parts: PartsOf, request: Request, name: str) -> Response:
    """Sends a real message, and shows the other side's own status and words."""
    trial = parts.channels.test(name)
    if not wants_part(request):
        return _page(parts, request, tested=name, trial=trial)
    channel = next(channel for channel in parts.channels.list() if channel.name == name)
    return render(
        request,
        "partials/channel.html",
        channel=channel,
        tested=name,
        trial=trial,
        now=parts.clock(),
    )


def _page(
    parts: Parts, request: Request, *, tested: str = "", trial: Trial | None = None
) -> Response:
    return render(
        request,
        "pages/settings.html",
        here="/settings",
        channels=parts.channels.list(),
        facts=_facts(parts),
        has_keys=bool(parts.settings.api_keys),
        tested=tested,
        trial=trial,
        now=parts.clock(),
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
