"""What stands open over all runs."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from trainsanity_server.pages.render import render, wants_part
from trainsanity_server.parts import PartsOf

router = APIRouter(include_in_schema=False)

SHOWN = 200


@router.get("/alerts", name="page_alerts")
def alerts(parts: PartsOf, request: Request) -> Response:
    standing = parts.runs.standing_alerts(limit=SHOWN + 1)
    template = "partials/all_alerts.html" if wants_part(request) else "pages/alerts.html"
    return render(
        request, template, standing=standing[:SHOWN], more=len(standing) > SHOWN, now=parts.clock()
    )
