"""Errors as pages, for those who came with a browser; programs get problem documents."""

from __future__ import annotations

import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from trainsanity_server import problems
from trainsanity_server.errors import ServerError, UnauthorizedError
from trainsanity_server.pages.render import path_of, render, wants_part

FOR_PROGRAMS = ("/api/", "/livez", "/readyz", "/metrics", "/openapi.json", "/static/", "/live")
ADVICE = {
    HTTPStatus.NOT_FOUND: "It may have been deleted, or the address may be mistyped.",
    HTTPStatus.CONFLICT: "Somebody or something else was faster. Load the page again.",
    HTTPStatus.SERVICE_UNAVAILABLE: "Nothing is lost: clients keep what they measured.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "The rest of the server goes on. Its log has the traceback.",
}
log = logging.getLogger(__name__)


def install(app: FastAPI) -> None:
    """After `problems.install`: takes over the errors of pages."""
    handlers: dict[Any, Any] = {
        ServerError: _either(problems.server_error, server_error),
        HTTPException: _either(problems.http_error, http_error),
        RequestValidationError: _either(problems.invalid_request, invalid_request),
        Exception: _either(problems.unexpected_error, unexpected_error),
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def is_page(request: Request) -> bool:
    if path_of(request).startswith(FOR_PROGRAMS):
        return False
    accepts = request.headers.get("Accept", "")
    return "text/html" in accepts or "HX-Request" in request.headers


def _either(
    for_programs: Callable[[Request, Any], Response], for_people: Callable[[Request, Any], Response]
) -> Callable[[Request, Any], Response]:
    def handle(request: Request, error: Any) -> Response:
        return (for_people if is_page(request) else for_programs)(request, error)

    return handle


def server_error(request: Request, error: ServerError) -> Response:
    if isinstance(error, UnauthorizedError):
        return sign_in_page(request, HTTPStatus.UNAUTHORIZED)
    return error_page(request, error.status, error.detail)


def http_error(request: Request, error: HTTPException) -> Response:
    detail = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"There is no page at {request.url.path}"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{request.url.path} is no page of its own: a button on another page leads there"
    return error_page(request, error.status_code, detail, headers=dict(error.headers or {}))


def invalid_request(request: Request, error: RequestValidationError) -> Response:
    detail = "; ".join(_in_words(fault) for fault in error.errors())
    return error_page(request, HTTPStatus.UNPROCESSABLE_ENTITY, detail)


def _in_words(fault: Any) -> str:
    where = ".".join(str(part) for part in fault["loc"][1:])
    given = fault["input"]
    received = "nothing" if given is None else repr(given)[:80]
    return f"{where}: {fault['msg']}. Received: {received}"


def unexpected_error(request: Request, error: Exception) -> Response:
    """Starlette logs the traceback; the page gives no inner detail."""
    return error_page(
        request,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        f"{request.method} {request.url.path} failed inside the server",
    )


def error_page(
    request: Request, status: int, detail: str, *, headers: dict[str, str] | None = None
) -> Response:
    template = "partials/error.html" if wants_part(request) else "pages/error.html"
    known = HTTPStatus(status)
    return render(
        request,
        template,
        status=status,
        headers=headers,
        number=int(status),
        title=known.phrase,
        detail=detail[:1].upper() + detail[1:],
        advice=ADVICE.get(known, ""),
    )


def sign_in_page(request: Request, status: int, *, message: str = "", wanted: str = "") -> Response:
    """Asks for a key, and comes back to the page that was wanted."""
    if wants_part(request):  # a page that is open shows the form in place of itself
        return render(
            request,
            "partials/error.html",
            status=status,
            headers={"HX-Refresh": "true"},
            number=int(status),
            title="Sign in",
            detail="The key is gone.",
            advice="",
        )
    if not wanted:
        wanted = _address(request) if request.method == "GET" else ""
    return render(request, "pages/sign_in.html", status=status, wanted=wanted, message=message)


def _address(request: Request) -> str:
    query = request.url.query
    return f"{request.url.path}?{query}" if query else request.url.path
