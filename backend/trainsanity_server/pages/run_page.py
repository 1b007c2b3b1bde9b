"""The page of one run, and its parts for live updates."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response

from trainsanity.rules import all_rules
from trainsanity_server.errors import NotFoundError
from trainsanity_server.pages.charts import Chart, chart, charts
from trainsanity_server.pages.epochs import epoch_table
from trainsanity_server.pages.headline import headline
from trainsanity_server.pages.mask_picture import mask_picture
from trainsanity_server.pages.render import render
from trainsanity_server.pages.setup_sheet import SHOWN_AUDITS, setup_sheet
from trainsanity_server.parts import Parts, PartsOf
from trainsanity_server.services.runs import Alert, Run
from trainsanity_server.services.signals import Signal

router = APIRouter(prefix="/runs/{run_id}", include_in_schema=False)

Values = dict[str, Any]


@router.get("", name="page_run")
def run_page(parts: PartsOf, request: Request, run_id: str) -> Response:
    run = parts.runs.get(run_id)
    values: Values = {}
    for fill in PARTS.values():
        values |= fill(parts, run)
    return render(request, "pages/run.html", here="/", run=run, now=parts.clock(), **values)


@router.post("/delete", name="page_delete_run")
def delete_run(parts: PartsOf, request: Request, run_id: str) -> Response:
    # Pressed twice, or by two people: it is gone, as was wanted.
    with contextlib.suppress(NotFoundError):
        parts.deletion.delete(run_id)
    return RedirectResponse(f"{request.app.state.path_prefix}/", HTTPStatus.SEE_OTHER)


@router.get("/parts/{name}", name="page_run_part")
def run_part(
    parts: PartsOf,
    request: Request,
    run_id: str,
    name: str,
    known: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """One part of the page; 204 where the browser has what there is."""
    if name not in PARTS:
        raise NotFoundError(f"a run's page has no part {name!r}. Parts: {', '.join(PARTS)}")
    run = parts.runs.get(run_id)
    values = PARTS[name](parts, run)
    if known and known == values.get(f"{name}_known"):
        return Response(status_code=HTTPStatus.NO_CONTENT)
    return render(request, f"partials/{name}.html", run=run, now=parts.clock(), **values)


def head_values(parts: Parts, run: Run) -> Values:
    verdicts = parts.runs.verdicts(run.id)
    return {"headline": headline(run, parts.runs.alerts(run.id), verdicts)}


def alert_values(parts: Parts, run: Run) -> Values:
    alerts = parts.runs.alerts(run.id)
    # To look at all signals takes a while, and most runs have no alert.
    known = parts.signals.known(run.id) if alerts else []
    signals = {signal.name: signal for signal in known}

    def drawn_witnesses(alert: Alert) -> Chart | None:
        """The first quantity of which two or more witnesses are signals; None where none is."""
        groups: dict[tuple[str, str], list[Signal]] = {}
        for name in dict.fromkeys(str(witness["name"]) for witness in alert.witnesses):
            if name in signals:
                scale = name.rpartition("/")[0], signals[name].unit
                groups.setdefault(scale, []).append(signals[name])
        for (quantity, _), members in groups.items():
            if len(members) > 1:
                return chart(members, quantity)
        return None

    return {"alerts": alerts, "drawn_witnesses": drawn_witnesses}


def mask_values(parts: Parts, run: Run) -> Values:
    flows = parts.runs.audits(run.id, ["mask_flow"])
    return {"picture": mask_picture(flows[-1].facts) if flows else None}


def signal_values(parts: Parts, run: Run) -> Values:
    signals = parts.signals.known(run.id)
    return {
        "charts": charts(signals),
        "signal_count": len(signals),
        "signals_known": _digest([signal.name for signal in signals]),
    }


def epoch_values(parts: Parts, run: Run) -> Values:
    audits = parts.runs.audits(run.id, ["epoch"])
    ended = len(audits) + audits.left_out
    return {
        "epochs": epoch_table(audits, left_out=audits.left_out),
        "epochs_known": f"{run.state}-{ended}",
    }


def verdict_values(parts: Parts, run: Run) -> Values:
    # They come the worst first.
    severities = {alert.rule: alert.severity for alert in reversed(parts.runs.alerts(run.id))}
    return {
        "verdicts": parts.runs.verdicts(run.id),
        "severities": severities,
        "summaries": {rule.id: rule.explanation()["summary"] for rule in all_rules()},
    }


def setup_values(parts: Parts, run: Run) -> Values:
    audits = parts.runs.audits(run.id, SHOWN_AUDITS)
    known = _digest([audit.name for audit in audits])
    return {"setup": setup_sheet(run, audits), "setup_known": known}


PARTS: dict[str, Callable[[Parts, Run], Values]] = {
    "run_head": head_values,
    "alerts": alert_values,
    "mask": mask_values,
    "signals": signal_values,
    "epochs": epoch_values,
    "verdicts": verdict_values,
    "setup": setup_values,
}


def _digest(names: list[str]) -> str:
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]
