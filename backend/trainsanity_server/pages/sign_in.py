"""Coming in with a key, where the server asks for one."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from trainsanity_server.access import COOKIE, Keys
from trainsanity_server.pages.errors import sign_in_page
from trainsanity_server.pages.render import address_of_server
from trainsanity_server.parts import PartsOf

router = APIRouter(include_in_schema=False)

THIRTY_DAYS = 30 * 86400  # seconds


@router.post("/sign-in", name="page_sign_in")
def sign_in(
    parts: PartsOf,
    request: Request,
    key: Annotated[str, Form(max_length=1000)],
    wanted: Annotated[str, Form()] = "",
) -> Response:
    keys: Keys = request.app.state.keys
    if keys and not keys.accept(key.strip()):
        message = "This is not one of the server's keys."
        return sign_in_page(request, HTTPStatus.UNAUTHORIZED, message=message, wanted=wanted)
    start = f"{request.app.state.path_prefix}/"
    answer = RedirectResponse(_within(wanted, start), HTTPStatus.SEE_OTHER)
    if not keys:  # nothing to keep; whatever was sent may not even fit into a cookie
        return answer
    answer.set_cookie(
        COOKIE,
        key.strip(),
        max_age=THIRTY_DAYS,
        path=_cookie_path(request),  # other programs on the host shall not get it
        httponly=True,
        samesite="lax",
        secure=address_of_server(request, parts.settings.base_url).startswith("https:"),
    )
    return answer


@router.post("/sign-out", name="page_sign_out")
def sign_out(request: Request) -> Response:
    start = f"{request.app.state.path_prefix}/"
    answer = RedirectResponse(start, HTTPStatus.SEE_OTHER)
    answer.delete_cookie(COOKIE, path=_cookie_path(request))
    return answer


def _cookie_path(request: Request) -> str:
    prefix: str = request.app.state.path_prefix
    return prefix or "/"


def _within(address: str, start: str) -> str:
    """Only a path of this server: `//elsewhere` would lead away."""
    is_path = address.startswith(start) and not address.startswith(("//", "/\\"))
    return address if is_path else start
