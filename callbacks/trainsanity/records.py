"""Records in a file: the length of some bytes, their checksum, and the bytes."""

from __future__ import annotations

import os
import struct
import zlib
from typing import IO

from trainsanity import wire

HEAD = struct.Struct("<II")  # length in bytes, crc32
MOST_BYTES = wire.MAX_PACKET_BYTES  # of one record


def append(out: IO[bytes], payload: bytes) -> int:
    """Writes one record by one call to the operating system; returns its size.

    Args:
        out: an unbuffered file, opened for appending.

    Raises:
        OSError: it could not be written; the file is as it was before.
    """
    if not 0 < len(payload) <= MOST_BYTES:
        raise ValueError(f"a record holds 1 to {MOST_BYTES} bytes. Received: {len(payload)} bytes")
    whole = HEAD.pack(len(payload), zlib.crc32(payload)) + payload
    before = out.seek(0, os.SEEK_END)
    try:
        written = out.write(whole)
        if written != len(whole):
            # A full disk takes a part first and complains only at the next write.
            raise OSError(f"only {written} of {len(whole)} bytes could be written")
    except OSError:
        out.truncate(before)
        raise
    return len(whole)


def size_of(payload: bytes) -> int:
    """Bytes that it takes as a record."""
    return HEAD.size + len(payload)


def size_at(file: IO[bytes], offset: int) -> int:
    """Bytes that the record there takes, by its first bytes."""
    file.seek(offset)
    length, _ = HEAD.unpack(file.read(HEAD.size))
    return HEAD.size + int(length)


def read(file: IO[bytes], offset: int) -> bytes | None:
    """The bytes of the record there; None where it is not whole or not as it was written."""
    file.seek(offset)
    head = file.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    length, checksum = HEAD.unpack(head)
    # A power cut can leave zeros; an empty record would have a matching checksum.
    if not 0 < length <= MOST_BYTES:
        return None
    payload = file.read(length)
    return payload if len(payload) == length and zlib.crc32(payload) == checksum else None


def read_all(file: IO[bytes], offset: int) -> list[bytes]:
    found = []
    while (payload := read(file, offset)) is not None:
        found.append(payload)
        offset += size_of(payload)
    return found


def is_torn(file: IO[bytes], offset: int, end: int) -> bool:
    """Whether what lies between offset and the end of the file is the begin of one record."""
    file.seek(offset)
    head = file.read(HEAD.size)
    if len(head) < HEAD.size:
        return True
    length, _ = HEAD.unpack(head)
    return 0 < length <= MOST_BYTES and end < offset + HEAD.size + int(length)
