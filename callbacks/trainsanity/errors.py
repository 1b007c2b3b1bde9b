"""What can go wrong in the client."""

from __future__ import annotations

import logging

log = logging.getLogger("trainsanity")


class TrainsanityError(Exception):
    """Base of everything the client raises on purpose."""


class CannotAudit(TrainsanityError):  # noqa: N818 - says a state
    """An audit cannot be made of this model or data, for a reason that is nobody's mistake."""


class SampleRefused(TrainsanityError, ValueError):  # noqa: N818 - says a state
    """What was given to `audit` is no model with rows of data; the text says what to change."""


class SettingsError(TrainsanityError, ValueError):
    """An argument or a TRAINSANITY_* variable cannot be used; the text says what to change."""


class SpoolError(TrainsanityError):
    """A spool file cannot be used."""


class SpoolBusy(SpoolError):  # noqa: N818 - says a state, as BlockingIOError's kin do
    """Another process or thread is writing or sending this run."""


class SpoolClosed(SpoolError):  # noqa: N818 - as SpoolBusy
    """The spool was closed while somebody still wanted to use it."""


class SpoolDamaged(SpoolError):  # noqa: N818 - as SpoolBusy
    """A record does not have the checksum it was written with."""


class DeliveryError(TrainsanityError):
    """The server did not take a packet.

    Attributes:
        status: HTTP status, or None where no answer came.
        permanent: the same packet would be refused again until somebody changes something.
        retry_after: seconds to wait before the next attempt, where the server named them.
    """

    def __init__(
        self,
        text: str,
        *,
        status: int | None = None,
        permanent: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.permanent = permanent
        self.retry_after = retry_after


class RunRefused(DeliveryError):  # noqa: N818 - as SpoolBusy
    """The server will never take packets of this run: its id is another run's, or was deleted."""

    def __init__(self, text: str, *, status: int) -> None:
        super().__init__(text, status=status, permanent=True)


class WrongPacket(DeliveryError):  # noqa: N818 - as SpoolBusy
    """The server expects another packet of this run next (409)."""

    def __init__(self, text: str, expected_seq: int) -> None:
        super().__init__(text, status=409)
        self.expected_seq = expected_seq
