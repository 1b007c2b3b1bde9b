"""Questions about runs."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Response
from pydantic import BeforeValidator

from trainsanity_server.api import shapes
from trainsanity_server.parts import PartsOf

RUNS_IN_AN_ANSWER = 50


def _given(value: str) -> str | None:
    """A parameter without a value, as forms send it, asks for nothing."""
    return value or None


def _limit(value: str) -> str | int:
    return value or RUNS_IN_AN_ANSWER


router = APIRouter(prefix="/runs", tags=["runs"], responses=shapes.PROBLEMS)


@router.get("", response_model=shapes.RunList)
def list_runs(
    parts: PartsOf,
    project: Annotated[str | None, BeforeValidator(_given)] = None,
    state: Annotated[
        Literal["running", "finished", "failed", "silent"] | None, BeforeValidator(_given)
    ] = None,
    q: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=500), BeforeValidator(_limit)] = RUNS_IN_AN_ANSWER,
    cursor: Annotated[str | None, Query(max_length=500)] = None,
) -> Any:
    return parts.runs.page(project=project, state=state, q=q, limit=limit, cursor=cursor)


@router.get("/{run_id}", response_model=shapes.Run, responses={304: {"description": "As it was."}})
def get_run(
    parts: PartsOf,
    response: Response,
    run_id: str,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Any:
    run = parts.runs.get(run_id)
    etag = f'"{run.id}-{run.version}"'
    if if_none_match == etag:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers={"ETag": etag})
    response.headers["ETag"] = etag
    return run


@router.delete("/{run_id}", status_code=HTTPStatus.NO_CONTENT)
def delete_run(parts: PartsOf, run_id: str) -> None:
    """It is gone at once for whoever looks; its samples are deleted bit by bit."""
    parts.deletion.delete(run_id)


@router.get("/{run_id}/alerts", response_model=shapes.AlertList)
def list_alerts(parts: PartsOf, run_id: str) -> Any:
    return {"alerts": parts.runs.alerts(run_id)}


@router.get("/{run_id}/verdicts", response_model=shapes.VerdictList)
def list_verdicts(parts: PartsOf, run_id: str) -> Any:
    return {"verdicts": parts.runs.verdicts(run_id)}


@router.get("/{run_id}/audits", response_model=shapes.AuditList)
def list_audits(
    parts: PartsOf, run_id: str, name: Annotated[str | None, Query(max_length=256)] = None
) -> Any:
    """Audits in the order in which they arrived.

    Where there are too many for one answer, those in the middle are left out: ask for one `name`.
    """
    audits = parts.runs.audits(run_id, [name] if name else ())
    return {"audits": audits, "left_out": audits.left_out}
