"""Identifiers that sort by the time they were made, without asking the database."""

from __future__ import annotations

import secrets
import time
import uuid


def new_id() -> str:
    """A UUIDv7 as text.

    Source: RFC 9562, section 5.7.
    """
    milliseconds = time.time_ns() // 1_000_000
    random = secrets.randbits(74)
    value = (milliseconds & (2**48 - 1)) << 80
    value |= 0x7 << 76 | (random >> 62) << 64
    value |= 0b10 << 62 | random & (2**62 - 1)
    return str(uuid.UUID(int=value))


def alert_id(run_id: str, rule: str, subject: str) -> str:
    """The same for the same (run, rule, subject): so two servers cannot open one alert twice."""
    return str(uuid.uuid5(uuid.UUID(run_id), f"{rule}\n{subject}"))
