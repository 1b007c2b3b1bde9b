"""The list of runs."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from trainsanity_server.errors import NotFoundError
from trainsanity_server.pages.render import address_of_server, render, wants_part
from trainsanity_server.parts import PartsOf
from trainsanity_server.storage.models import RUN_STATES

router = APIRouter(include_in_schema=False)

RUNS_ON_A_PAGE = 30


@router.get("/", name="page_run_list")
def run_list(
    parts: PartsOf,
    request: Request,
    project: Annotated[str, Query(max_length=256)] = "",
    state: Annotated[str, Query(max_length=16)] = "",
    q: Annotated[str, Query(max_length=200)] = "",
    cursor: Annotated[str, Query(max_length=500)] = "",
) -> Response:
    state = state if state in RUN_STATES else ""
    filters = {"q": q, "project": project, "state": state}
    page = parts.runs.page(
        project=project or None,
        state=state or None,
        q=q or None,
        limit=RUNS_ON_A_PAGE,
        cursor=cursor or None,
    )
    is_unfiltered = not any(filters.values()) and not cursor
    is_part = wants_part(request)
    projects = set() if is_part else {*parts.runs.projects(), project} - {""}
    template = "partials/run_list.html" if is_part else "pages/run_list.html"
    return render(
        request,
        template,
        page=page,
        now=parts.clock(),
        filters=filters,
        projects=sorted(projects),
        is_first_visit=is_unfiltered and not page.runs,
        has_keys=bool(parts.settings.api_keys),
        address=address_of_server(request, parts.settings.base_url),
        is_first_page=not cursor,
        first_page=_address(filters),
        this_page=_address(filters, cursor),
        next_page=_address(filters, page.next_cursor or ""),
    )


@router.get("/runs/{run_id}/row", name="page_run_row")
def run_row(parts: PartsOf, request: Request, run_id: str) -> Response:
    """One line of the list, for live updates."""
    try:
        run = parts.runs.get(run_id)
    except NotFoundError:  # deleted: the line goes too
        return Response(headers={"HX-Reswap": "delete"})
    return render(request, "partials/run_row.html", run=run, now=parts.clock())


def _address(filters: dict[str, str], cursor: str = "") -> str:
    given = {key: value for key, value in {**filters, "cursor": cursor}.items() if value}
    return f"/?{urlencode(given)}" if given else "/"
