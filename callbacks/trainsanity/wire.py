"""The packets in which a run travels from the training process to the server.

A packet is one msgpack map. Packets of a run are numbered from 0 without gaps, so a retry is
recognised and a loss is noticed. Numbers travel as little-endian columns, never as rows:
NaN and infinity arrive as they are, and an empty column costs nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

VERSION = 1
MEDIA_TYPE = "application/vnd.trainsanity.packet+msgpack"
MAX_PACKET_BYTES = 8 * 1024 * 1024
MAX_NAME_LENGTH = 256  # characters of a signal or audit name
LONGEST_WITNESS = 64  # characters that stay of it where a name is cut
MAX_STEP = 2**53  # steps are exact in every language that reads them
STATES = ("running", "finished", "failed")
_DTYPES: dict[str, np.dtype[Any]] = {
    "<f4": np.dtype("<f4"),
    "<f8": np.dtype("<f8"),
}


class WireError(ValueError):
    """A packet cannot be what a client of ours has written."""


@dataclass(frozen=True)
class Block:
    """Samples of several signals at the same steps.

    Attributes:
        names: k signal names, all different.
        steps: shape (n,), int64, strictly increasing, each 0 or more.
        values: shape (k, n), float32 or float64; NaN and infinities are data.
    """

    names: tuple[str, ...]
    steps: NDArray[np.int64]
    values: NDArray[np.floating[Any]]

    @property
    def points(self) -> int:
        return int(self.values.size)


@dataclass(frozen=True)
class Audit:
    """A structured fact, measured once (or once in a while) at one step."""

    name: str
    step: int
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Signal:
    """What a client says of a signal before it sends the first sample."""

    name: str  # "<quantity>/<witness>"
    unit: str = ""
    label: str = ""


@dataclass(frozen=True)
class Packet:
    """One numbered message of a run.

    Attributes:
        run_id: UUIDv7 of the run, as text.
        seq: 0 for the first packet of the run, then one more each.
        time: seconds since the epoch when the packet was closed, by the client's clock.
        step: last training step the client had seen when it closed the packet.
        state: "running", "finished" or "failed".
        silent_after: seconds after which the client, if alive, will have spoken again.
        run: the run's header (project, name, tags, versions ...); in packet 0, later only if
        changed.
        signals: signals that appear for the first time.
        blocks, audits: the evidence.
    """

    run_id: str
    seq: int
    time: float
    step: int = 0
    state: str = "running"
    silent_after: float = 60.0
    run: Mapping[str, Any] | None = None
    signals: Sequence[Signal] = ()
    blocks: Sequence[Block] = ()
    audits: Sequence[Audit] = field(default=())

    @property
    def points(self) -> int:
        return sum(block.points for block in self.blocks)


def encode(packet: Packet) -> bytes:
    """Packs a packet. The same packet always gives the same bytes."""
    message: dict[str, Any] = {
        "v": VERSION,
        "run_id": packet.run_id,
        "seq": packet.seq,
        "time": packet.time,
        "step": packet.step,
        "state": packet.state,
        "silent_after": packet.silent_after,
    }
    if packet.run is not None:
        message["run"] = packet.run
    if packet.signals:
        message["signals"] = [[s.name, s.unit, s.label] for s in packet.signals]
    if packet.blocks:
        message["blocks"] = [_encode_block(block) for block in packet.blocks]
    if packet.audits:
        message["audits"] = [[a.name, a.step, a.facts] for a in packet.audits]
    # A name may hold what is no text in UTF-8, such as half of a surrogate pair.
    packed = msgpack.packb(message, default=_plain, unicode_errors="backslashreplace")
    return bytes(packed)


def _encode_block(block: Block) -> list[Any]:
    dtype = "<f8" if block.values.dtype == np.float64 else "<f4"
    values = np.ascontiguousarray(block.values, dtype=dtype)
    steps = np.ascontiguousarray(block.steps, dtype="<i8")
    return [list(block.names), dtype, steps.tobytes(), values.tobytes()]


def _plain(value: Any) -> Any:
    """Numpy scalars and arrays inside facts become plain numbers and lists."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(
        "facts must be made of None, bool, numbers, text, lists and dicts. "
        f"Received: {value!r} of type {type(value).__name__}"
    )


def decode(data: bytes) -> Packet:
    """Unpacks and checks a packet.

    Raises:
        WireError: the bytes are no packet, or a field is missing, of the wrong type or out of
            range; the message names the field and the value received.
    """
    if len(data) > MAX_PACKET_BYTES:
        raise WireError(
            f"a packet holds at most {MAX_PACKET_BYTES} bytes. Received: {len(data)} bytes"
        )
    try:
        message = msgpack.unpackb(data, strict_map_key=True, max_ext_len=0)
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError(
            f"the body is not a msgpack map. Received: {data[:24]!r} ({error})"
        ) from error
    if not isinstance(message, dict):
        raise WireError(f"the body must be a msgpack map. Received: {type(message).__name__}")
    version = message.get("v")
    if version != VERSION:
        raise WireError(f"this server reads packets of version {VERSION}. Received: v={version!r}")
    state = _take(message, "state", str)
    if state not in STATES:
        raise WireError(f"state must be one of {STATES}. Received: state={state!r}")
    run = message.get("run")
    if run is not None and not isinstance(run, dict):
        raise WireError(f"run must be a map. Received: run={run!r}")
    return Packet(
        run_id=_take(message, "run_id", str),
        seq=_whole(message, "seq"),
        time=_finite(message, "time"),
        step=_whole(message, "step"),
        state=state,
        silent_after=_finite(message, "silent_after"),
        run=run,
        signals=[_decode_signal(row) for row in _rows(message, "signals")],
        blocks=[_decode_block(row) for row in _rows(message, "blocks")],
        audits=[_decode_audit(row) for row in _rows(message, "audits")],
    )


def _decode_signal(row: Any) -> Signal:
    if not (isinstance(row, list) and len(row) == 3 and all(isinstance(x, str) for x in row)):
        raise WireError(f"a signal is [name, unit, label], all text. Received: {row!r}")
    return Signal(_name(row[0]), row[1][:MAX_NAME_LENGTH], row[2][:MAX_NAME_LENGTH])


def _decode_block(row: Any) -> Block:
    if not (isinstance(row, list) and len(row) == 4 and isinstance(row[0], list)):
        raise WireError("a block is [names, dtype, steps, values]")
    names, dtype_name, step_bytes, value_bytes = row
    dtype = _DTYPES.get(dtype_name) if isinstance(dtype_name, str) else None
    if dtype is None:
        raise WireError(f"dtype must be one of {sorted(_DTYPES)}. Received: dtype={dtype_name!r}")
    if not isinstance(step_bytes, bytes) or not isinstance(value_bytes, bytes):
        raise WireError("steps and values of a block must be binary")
    checked = tuple(_name(name) for name in names)
    if len(set(checked)) != len(checked):
        raise WireError(f"names of a block must differ. Received: {checked!r}")
    if len(step_bytes) % 8:
        raise WireError(f"steps must be 8-byte integers. Received: {len(step_bytes)} bytes")
    steps = np.frombuffer(step_bytes, dtype="<i8")
    expected = len(checked) * len(steps) * dtype.itemsize
    if len(value_bytes) != expected:
        raise WireError(
            f"values must hold {len(checked)} names × {len(steps)} steps = {expected} bytes. "
            f"Received: {len(value_bytes)} bytes"
        )
    if len(steps) and (steps[0] < 0 or steps[-1] > MAX_STEP or (np.diff(steps) <= 0).any()):
        raise WireError(
            f"steps must increase strictly within 0..{MAX_STEP}. Received: {steps[:5].tolist()} ..."
        )
    values: NDArray[np.floating[Any]] = np.frombuffer(value_bytes, dtype=dtype)
    return Block(checked, steps, values.reshape(len(checked), len(steps)))


def _decode_audit(row: Any) -> Audit:
    if not (isinstance(row, list) and len(row) == 3 and isinstance(row[2], dict)):
        raise WireError(f"an audit is [name, step, facts]. Received: {str(row)[:120]}")
    step = row[1]
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step <= MAX_STEP:
        raise WireError(f"step of an audit must be within 0..{MAX_STEP}. Received: step={step!r}")
    return Audit(_name(row[0]), step, row[2])


def _rows(message: Mapping[str, Any], key: str) -> list[Any]:
    rows = message.get(key, [])
    if not isinstance(rows, list):
        raise WireError(f"{key} must be a list. Received: {type(rows).__name__}")
    return rows


def as_name(text: str) -> str:
    """A text as it may name a signal: one that is too long is cut, and what is not printable
    replaced. Its witness, behind the last slash, stays, and different texts stay different.
    """
    if 1 <= len(text) <= MAX_NAME_LENGTH and text.isprintable():
        return text
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    plain = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
    quantity, slash, witness = plain.rpartition("/")
    tail = f"~{digest}{slash}{witness[:LONGEST_WITNESS]}" if slash else f"~{digest}"
    return (quantity if slash else plain)[: MAX_NAME_LENGTH - len(tail)] + tail


def _name(value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_NAME_LENGTH:
        raise WireError(f"a name is text of 1 to {MAX_NAME_LENGTH} characters. Received: {value!r}")
    if not value.isprintable():
        raise WireError(f"a name holds printable characters only. Received: {value!r}")
    return value


def _take(message: Mapping[str, Any], key: str, kind: type) -> Any:
    value = message.get(key)
    if not isinstance(value, kind):
        raise WireError(f"{key} must be {kind.__name__}. Received: {key}={value!r}")
    return value


def _whole(message: Mapping[str, Any], key: str) -> int:
    value = message.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_STEP:
        raise WireError(f"{key} must be an integer within 0..{MAX_STEP}. Received: {key}={value!r}")
    return value


def _finite(message: Mapping[str, Any], key: str) -> float:
    value = message.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not np.isfinite(value):
        raise WireError(f"{key} must be a finite number. Received: {key}={value!r}")
    return float(value)
