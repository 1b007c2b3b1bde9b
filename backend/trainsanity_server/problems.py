"""Every error in one shape: RFC 9457 problem details."""

from __future__ import annotations

import logging
import reprlib
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from trainsanity_server.errors import ServerError, UnauthorizedError

MEDIA_TYPE = "application/problem+json"
log = logging.getLogger(__name__)
_SHORT = reprlib.Repr()
_SHORT.maxstring = 100


def problem(
    status: int, detail: str, *, headers: dict[str, str] | None = None, **members: Any
) -> JSONResponse:
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        **members,
    }
    return JSONResponse(body, status, headers=headers, media_type=MEDIA_TYPE)


def server_error(_: Request | None, error: ServerError) -> Response:
    headers = {}
    if isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    if "retry_after" in error.members:
        headers["Retry-After"] = str(error.members["retry_after"])
    return problem(error.status, error.detail, headers=headers or None, **error.members)


def http_error(request: Request, error: HTTPException) -> Response:
    detail = error.detail
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"there is nothing at {request.url.path}"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "another method")
        detail = f"{request.url.path} takes {allowed}. Received: {request.method}"
    return problem(error.status_code, detail, headers=dict(error.headers or {}) or None)


def invalid_request(_: Request, error: RequestValidationError) -> Response:
    errors = [
        {"where": ".".join(str(part) for part in e["loc"]), "what": e["msg"] + _received(e)}
        for e in jsonable_encoder(error.errors())
    ]
    detail = "; ".join(f"{e['where']}: {e['what']}" for e in errors)
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=errors)


def _received(error: dict[str, Any]) -> str:
    value = error.get("input")
    if error["type"] == "missing" or not isinstance(value, (str, int, float)):
        return ""
    return f". Received: {_SHORT.repr(value)}"


def unexpected_error(request: Request, error: Exception) -> Response:
    """Starlette logs the traceback; the caller gets no inner detail."""
    return problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        f"{request.method} {request.url.path} failed inside the server; its log has the traceback",
    )


SCHEMA = {
    "type": "object",
    "description": "RFC 9457 problem details; some problems have further members.",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {
            "type": "string",
            "description": "What was wrong, what was received, what to do.",
        },
    },
    "required": ["type", "title", "status", "detail"],
    "additionalProperties": True,
}


def describe(document: dict[str, Any]) -> None:
    """Says of every error in an OpenAPI document that it is a problem."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Problem"] = SCHEMA
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for methods in document["paths"].values():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                if status >= "400":
                    response["content"] = content


def install(app: FastAPI) -> None:
    handlers: dict[Any, Any] = {
        ServerError: server_error,
        HTTPException: http_error,
        RequestValidationError: invalid_request,
        Exception: unexpected_error,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            describe(plain())
        assert app.openapi_schema is not None
        return app.openapi_schema

    # The way of FastAPI's manual ("Extending OpenAPI"): the method is replaced on the instance.
    app.openapi = openapi  # type: ignore[method-assign]
