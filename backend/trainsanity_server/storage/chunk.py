"""How samples and their summaries are packed into bytes.

Each signal is compressed on its own, so a chart of two signals unpacks two. Every part carries a
checksum: what is damaged is told, never drawn.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainsanity_server.storage.buckets import Buckets, Whole

VERSION = 1
LEVEL = 1  # of zlib; level 9 makes noisy numbers 1 % smaller (measured)

_HEADER = struct.Struct("<BxxxIII")  # version, signals, buckets, checksum of the rest
_DATA = struct.Struct("<BxxxIII")  # version, signals, rows, checksum of both and of the table
_PART = np.dtype([("kind", "<u1"), ("end", "<u4"), ("checksum", "<u4")])
_FLOATS = ("min", "max", "sum", "first", "last")
_DTYPES = (np.dtype("<f4"), np.dtype("<f8"), np.dtype("<i8"))
# Styles of a part: one number for all, plain, compressed. Its kind is 4 × dtype + style.
_CONSTANT, _PLAIN, _COMPRESSED = 0, 1, 2


class DamagedError(Exception):
    """Stored bytes are not what was written; the text says which."""


def pack_header(buckets: Buckets) -> bytes:
    """Summaries, signal after signal."""
    steps = np.stack([buckets.first_step, buckets.last_step, buckets.rows]).astype("<i8")
    floats = np.stack([getattr(buckets, name) for name in _FLOATS], axis=1).astype("<f8")
    counts = np.stack([buckets.nan, buckets.inf], axis=1).astype("<u4")
    rest = steps.tobytes() + floats.tobytes() + counts.tobytes()
    return _HEADER.pack(VERSION, len(buckets.min), len(buckets), zlib.crc32(rest)) + rest


def unpack_header(data: bytes, signals: Sequence[int]) -> Buckets:
    """Summaries of some of the signals.

    Raises:
        DamagedError: the checksum is wrong.
    """
    try:
        version, k, b, checksum = _HEADER.unpack_from(data)
    except struct.error as error:
        raise DamagedError(f"a header is cut off at {len(data)} bytes") from error
    rest = memoryview(data)[_HEADER.size :]
    if version != VERSION or len(rest) != b * (24 + 48 * k) or zlib.crc32(rest) != checksum:
        raise DamagedError("a header's checksum is wrong")
    steps = np.frombuffer(rest, "<i8", 3 * b).reshape(3, b)
    floats = np.frombuffer(rest, "<f8", 5 * k * b, 24 * b).reshape(k, 5, b)[list(signals)]
    counts = np.frombuffer(rest, "<u4", 2 * k * b, (24 + 40 * k) * b).reshape(k, 2, b)
    counts = counts[list(signals)].astype(np.int64)
    columns = {name: floats[:, i] for i, name in enumerate(_FLOATS)}
    first_step, last_step, rows = steps.astype(np.int64)
    return Buckets(first_step, last_step, rows, **columns, nan=counts[:, 0], inf=counts[:, 1])


def pack_rows(steps: Whole, values: NDArray[Any]) -> bytes:
    """Samples of k signals at n steps.

    Args:
        steps: shape (n,), strictly increasing. values: shape (k, n), float32 or float64.
    """
    parts = [_pack(np.diff(steps, prepend=0).astype("<i8")), *(_pack(_narrow(v)) for v in values)]
    table = np.zeros(len(parts), _PART)
    table["kind"] = [kind for kind, _ in parts]
    table["end"] = np.cumsum([len(body) for _, body in parts])
    table["checksum"] = [zlib.crc32(body) for _, body in parts]
    checksum = _table_checksum(len(values), len(steps), table)
    head = _DATA.pack(VERSION, len(values), len(steps), checksum)
    return head + table.tobytes() + b"".join(body for _, body in parts)


def _table_checksum(signals: int, rows: int, table: NDArray[Any]) -> int:
    return zlib.crc32(table.tobytes(), zlib.crc32(b"%d %d" % (signals, rows)))


def unpack_rows(data: bytes, signals: Sequence[int]) -> tuple[Whole, NDArray[np.float64]]:
    """Steps, and the values of some of the signals, shape (len(signals), n).

    Raises:
        DamagedError: a checksum is wrong.
    """
    try:
        version, k, n, checksum = _DATA.unpack_from(data)
        table = np.frombuffer(data, _PART, k + 1, _DATA.size)
    except (struct.error, ValueError) as error:
        raise DamagedError(f"a chunk is cut off at {len(data)} bytes") from error
    if version != VERSION or _table_checksum(k, n, table) != checksum:
        raise DamagedError("the checksum of a chunk's table is wrong")
    body = memoryview(data)[_DATA.size + table.nbytes :]

    def part(index: int) -> NDArray[Any]:
        start = int(table["end"][index - 1]) if index else 0
        piece = body[start : int(table["end"][index])]
        if zlib.crc32(piece) != table["checksum"][index]:
            raise DamagedError(f"the checksum of part {index} of a chunk is wrong")
        return _unpack(int(table["kind"][index]), piece, n)

    values = np.empty((len(signals), n), np.float64)
    for at, signal in enumerate(signals):
        values[at] = part(signal + 1)
    return np.cumsum(part(0), dtype=np.int64), values


def _narrow(values: NDArray[Any]) -> NDArray[Any]:
    """As float32 where that loses nothing: most numbers were float32 in the training process."""
    if values.dtype == np.float32:
        return values.astype("<f4", copy=False)
    with np.errstate(over="ignore"):
        narrow = values.astype("<f4")
    is_same = (narrow.astype(np.float64) == values) | np.isnan(values)
    return narrow if is_same.all() else values.astype("<f8", copy=False)


def _pack(numbers: NDArray[Any]) -> tuple[int, bytes]:
    kind = 4 * _DTYPES.index(numbers.dtype)
    raw = np.frombuffer(numbers.tobytes(), np.uint8).reshape(len(numbers), -1)
    if (raw == raw[0]).all():
        return kind + _CONSTANT, raw[0].tobytes()
    shuffled = raw.T.tobytes()  # exponents beside exponents: they are what compresses
    compressed = zlib.compress(shuffled, LEVEL)
    if len(compressed) < len(shuffled):
        return kind + _COMPRESSED, compressed
    return kind + _PLAIN, shuffled


def _unpack(kind: int, body: memoryview, n: int) -> NDArray[Any]:
    dtype, style = _DTYPES[kind // 4], kind % 4
    if style == _CONSTANT:
        return np.repeat(np.frombuffer(body, dtype), n)
    shuffled = zlib.decompress(body) if style == _COMPRESSED else body
    raw = np.frombuffer(shuffled, np.uint8).reshape(dtype.itemsize, n)
    return np.frombuffer(raw.T.tobytes(), dtype)
