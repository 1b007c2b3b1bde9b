"""What people do with alerts, by forms."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from trainsanity_server.pages.render import render, wants_part
from trainsanity_server.pages.run_page import alert_values
from trainsanity_server.parts import Parts, PartsOf
from trainsanity_server.services.alerts import MAX_REASON
from trainsanity_server.services.runs import Alert

router = APIRouter(prefix="/alerts/{alert_id}", include_in_schema=False)

Reason = Annotated[str, Form(max_length=MAX_REASON)]


@router.post("/acknowledge", name="page_acknowledge")
def acknowledge(parts: PartsOf, request: Request, alert_id: str, reason: Reason = "") -> Response:
    return _answer(parts, request, parts.alerts.acknowledge(alert_id, reason=reason))


@router.post("/mute", name="page_mute")
def mute(
    parts: PartsOf,
    request: Request,
    alert_id: str,
    hours: Annotated[float, Form(gt=0, le=366 * 24)],
    reason: Reason = "",
) -> Response:
    until = parts.clock() + hours * 3600
    return _answer(parts, request, parts.alerts.mute(alert_id, reason=reason, until=until))


@router.post("/unmute", name="page_unmute")
def unmute(parts: PartsOf, request: Request, alert_id: str, reason: Reason = "") -> Response:
    return _answer(parts, request, parts.alerts.unmute(alert_id, reason=reason))


@router.post("/resolve", name="page_resolve")
def resolve(parts: PartsOf, request: Request, alert_id: str, reason: Reason = "") -> Response:
    return _answer(parts, request, parts.alerts.resolve(alert_id, reason=reason))


def _answer(parts: Parts, request: Request, alert: Alert) -> Response:
    """The run's alerts anew; without a script, the run's page at this alert."""
    if not wants_part(request):
        root = request.app.state.path_prefix
        address = f"{root}/runs/{alert.run_id}#alert-{alert.id}"
        return RedirectResponse(address, HTTPStatus.SEE_OTHER)
    run = parts.runs.get(alert.run_id)
    values = alert_values(parts, run)
    return render(request, "partials/alerts.html", run=run, now=parts.clock(), **values)
