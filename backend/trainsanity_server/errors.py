"""What can go wrong, each with its HTTP status. `problems.py` gives it its shape."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, ClassVar


class StartupError(Exception):
    """The server cannot start as it is configured; the text says what to change."""


class ServerError(Exception):
    """Base of the errors that a caller may see.

    Attributes:
        status: HTTP status.
        detail: what was wrong, what was received, what to do.
        members: further members of the problem document.
    """

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR

    def __init__(self, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.members = members


class MalformedError(ServerError):
    """The body or a parameter cannot be what it should be."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY


class UnauthorizedError(ServerError):
    status = HTTPStatus.UNAUTHORIZED


class ForbiddenError(ServerError):
    status = HTTPStatus.FORBIDDEN


class NotFoundError(ServerError):
    status = HTTPStatus.NOT_FOUND


class GoneError(ServerError):
    """It was here and has been deleted."""

    status = HTTPStatus.GONE


class ConflictError(ServerError):
    status = HTTPStatus.CONFLICT


class TooLargeError(ServerError):
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class UnsupportedMediaTypeError(ServerError):
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class MisdirectedError(ServerError):
    """The request was sent to a name that this server does not answer to."""

    status = HTTPStatus.MISDIRECTED_REQUEST


class UnavailableError(ServerError):
    """The server cannot do it now; later it can, in about `retry_after` seconds."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
