"""Everything a server knows of one run, written piece by piece so that long runs fit in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from trainsanity.remote import Remote, run_path

FORMAT = 1
POINTS = 5000  # samples asked for at once, of each signal


def document(remote: Remote, run: Mapping[str, Any]) -> Iterator[str]:
    """One JSON object, in pieces: run, audits, alerts, verdicts, and signals with their samples."""
    yield f'{{\n"format": {FORMAT},\n"run": {_json(run)}'
    for part in ("audits", "alerts", "verdicts"):
        yield f',\n"{part}": {_json(remote.get(run_path(run, part))[part])}'
    yield ',\n"signals": ['
    for number, signal in enumerate(_signals(remote, run)):
        columns: dict[str, list[Any]] = {"step": [], "value": []}
        for piece in samples(remote, run, signal):
            columns["step"] += piece["step"]
            columns["value"] += piece["value"]
        yield (",\n" if number else "\n") + _json({**signal, **columns})
    yield "\n]\n}\n"


def lines(remote: Remote, run: Mapping[str, Any]) -> Iterator[str]:
    """One JSON object a line, each with its `type`; long signals take several lines."""
    yield _line("run", {"format": FORMAT, **run})
    for part in ("audits", "alerts", "verdicts"):
        for item in remote.get(run_path(run, part))[part]:
            yield _line(part.removesuffix("s"), item)
    for signal in _signals(remote, run):
        yield _line("signal", signal)
        for piece in samples(remote, run, signal):
            yield _line("samples", {"name": signal["name"], **piece})


def _signals(remote: Remote, run: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = remote.get(run_path(run, "signals"))["signals"]
    return found


def samples(
    remote: Remote, run: Mapping[str, Any], signal: Mapping[str, Any]
) -> Iterator[dict[str, list[Any]]]:
    """Every sample of a signal as columns `step` and `value`, in the order of steps.

    A stretch that the server would thin is asked for in halves until it comes whole.
    """
    stretches = [(signal["first_step"], signal["last_step"])] if signal["count"] else []
    while stretches:
        first, last = stretches.pop()
        data = remote.get(
            run_path(run, "signals/data"),
            name=signal["name"],
            first_step=first,
            last_step=last,
            points=POINTS,
        )
        columns = data["signals"][0]
        if "value" in columns:
            yield {"step": columns["step"], "value": columns["value"]}
        else:
            middle = (first + last) // 2
            stretches += [(middle + 1, last), (first, middle)]


def _line(type_: str, content: Mapping[str, Any]) -> str:
    return _json({"type": type_, **content}) + "\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
