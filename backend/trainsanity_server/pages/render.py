"""From a template to an answer: a page, or the part of it that a script asked for."""

from __future__ import annotations

import functools
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment

from trainsanity_server.pages import templates_environment

# Nothing from elsewhere and nothing inline: a name with markup in it can at worst look odd.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "worker-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Vary": "HX-Request, HX-Request-Type",
}


def wants_part(request: Request) -> bool:
    """Whether a script wants to put the answer into a page that is there already."""
    is_restored = request.headers.get("HX-History-Restore-Request") == "true"
    return (
        request.headers.get("HX-Request") == "true"
        and request.headers.get("HX-Request-Type") != "full"
        and not is_restored
    )


def path_of(request: Request) -> str:
    """The path that was asked for, as this server names it."""
    return request.url.path.removeprefix(request.app.state.path_prefix)


def address_of_server(request: Request, public: str) -> str:
    """As the visitor has it.

    Args:
        public: by the setting; it holds where the host is the same, since a proxy may have taken
            TLS off without telling.
    """
    if request.url.netloc == urlsplit(public).netloc:
        return public
    return str(request.base_url).rstrip("/")


def render(
    request: Request,
    template: str,
    *,
    status: int = HTTPStatus.OK,
    headers: dict[str, str] | None = None,
    **values: Any,
) -> HTMLResponse:
    """Fills `template`.

    In it, `root` is what stands before every path of this server, and `here` the path of the
    current part of the site after that.
    """
    values.setdefault("here", path_of(request))
    values["root"] = request.app.state.path_prefix
    body = _environment().get_template(template).render(**values)
    return HTMLResponse(body, status, headers={**HEADERS, **(headers or {})})


@functools.cache
def _environment() -> Environment:
    return templates_environment.environment()
