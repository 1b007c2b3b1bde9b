"""HTML for people."""

from __future__ import annotations

from fastapi import APIRouter, Depends, FastAPI

from trainsanity_server.access import require_key
from trainsanity_server.pages import (
    alert_actions,
    alert_list,
    api_reference,
    errors,
    front_end,
    rule_catalogue,
    run_list,
    run_page,
    settings_page,
    sign_in,
    signal_table,
    stream,
)
from trainsanity_server.pages.static_files import CompressedStaticFiles


def install(app: FastAPI) -> None:
    """Adds all pages, and takes over the errors of those who came with a browser."""
    errors.install(app)
    pages = APIRouter(dependencies=[Depends(require_key)])
    for part in (
        run_list,
        run_page,
        signal_table,
        alert_list,
        alert_actions,
        rule_catalogue,
        settings_page,
        api_reference,
        stream,
    ):
        pages.include_router(part.router)
    app.include_router(pages)
    app.include_router(sign_in.router)
    app.mount("/static", CompressedStaticFiles(directory=front_end.STATIC), name="static")
