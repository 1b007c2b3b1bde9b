"""What a packet says of the run as a whole, checked before it reaches the database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainsanity.wire import Packet
from trainsanity_server.errors import MalformedError

MAX_DEPTH = 32
MAX_TIME = 32503680000.0  # the year 3000, in seconds since the epoch
MAX_SILENCE = 30 * 86400.0  # seconds
MAX_TEXT = 256  # characters of a project or a name; what is longer is cut
MAX_TAGS = 64
TEXTS = ("project", "name", "kind", "session_id", "keras_version", "backend")
DOCUMENTS = ("config", "environment", "expect")


def header_columns(packet: Packet) -> dict[str, Any]:
    """Columns of the run that this packet fills; empty for most packets.

    Raises:
        MalformedError: a field of the header or of an audit is not what it should be.
    """
    _within(packet.time, "time", MAX_TIME)
    _within(packet.silent_after, "silent_after", MAX_SILENCE)
    columns = _from_header(packet.run) if packet.run is not None else {}
    for audit in packet.audits:
        check_document(audit.facts, f"facts of audit {audit.name}")
        if audit.name == "environment":
            columns["environment"] = dict(audit.facts)
    return columns


def _from_header(header: Mapping[str, Any]) -> dict[str, Any]:
    check_document(header, "run")
    columns: dict[str, Any] = {}
    for key in TEXTS:
        if key in header:
            columns[key] = _typed(header, key, str)[:MAX_TEXT]
    for key in DOCUMENTS:
        if key in header:
            columns[key] = _typed(header, key, dict)
    if "tags" in header:
        tags = _typed(header, "tags", list)[:MAX_TAGS]
        columns["tags"] = [str(tag)[:MAX_TEXT] for tag in tags]
    if "started_at" in header:
        started_at = float(_typed(header, "started_at", (int, float)))
        columns["started_at"] = _within(started_at, "run.started_at", MAX_TIME)
    return columns


def _within(value: float, where: str, most: float) -> float:
    if not 0 <= value <= most:
        raise MalformedError(f"{where} must be within 0..{most:g} seconds. Received: {value!r}")
    return value


def _typed(header: Mapping[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
    value = header[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise MalformedError(f"run.{key} is of the wrong type. Received: {str(value)[:120]!r}")
    return value


def check_document(value: Any, where: str, depth: int = 0) -> None:
    """Facts are None, bool, numbers, text, lists and maps with text as keys, not too deep.

    Raises:
        MalformedError: they hold something else.
    """
    if depth > MAX_DEPTH:
        raise MalformedError(f"{where} may be nested {MAX_DEPTH} deep. Received: deeper")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise MalformedError(f"keys of {where} must be text. Received: {key!r}")
            check_document(item, where, depth + 1)
    elif isinstance(value, list):
        for item in value:
            check_document(item, where, depth + 1)
    elif not (value is None or isinstance(value, (bool, int, float, str))):
        raise MalformedError(
            f"{where} must be made of null, numbers, text, lists and maps. "
            f"Received: a {type(value).__name__}"
        )
