"""The spool: the one way from measuring to sending, also offline and after a crash.

One file for each run, `<run_id>.spool`: a magic line, a record that says who writes, then one
record for each packet; record n is packet n. A record is its length, the checksum of its bytes and
the bytes. Records are only ever appended, each by one write to the operating system, so a killed
process leaves at worst a torn last record, which is cut when the file is opened again.

Beside it lie `<run_id>.ack` (the number of the first packet that the server does not have yet) and,
only if the server refused packets, `<run_id>.rejected` (the same format).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import msgpack

from trainsanity import identity, records, wire
from trainsanity.errors import SpoolBusy, SpoolClosed, SpoolDamaged, SpoolError, log

MAGIC = b"trainsanity spool 1\n"
SUFFIX = ".spool"


@dataclass(frozen=True)
class Writer:
    """The process that writes a spool.

    Attributes:
        started: seconds since the epoch at which the process began, to know it from a later one
            with the same pid.
    """

    run_id: str
    pid: int
    started: float
    host: str

    @classmethod
    def here(cls, run_id: str) -> Writer:
        pid = os.getpid()
        return cls(run_id, pid, identity.process_started(pid) or 0.0, identity.host())

    def is_gone(self) -> bool:
        """Whether the process has certainly ended; of another host nothing is certain."""
        if self.host != identity.host():
            return False
        started = identity.process_started(self.pid)
        return started is None or abs(started - self.started) > 1.0


class Spool:
    """One run's spool, opened for appending and reading, and locked until `close`.

    One thread may append while another reads and acknowledges.
    """

    def __init__(self, path: Path, *, must_exist: bool = False) -> None:
        """Opens the spool, or makes one unless it must exist.

        Raises:
            SpoolBusy: somebody else has it open.
            SpoolError: the file is no spool.
            FileNotFoundError: it must exist and does not, or was deleted at this moment.
            OSError: the file cannot be made or read.
        """
        self.path = path
        self.run_id = path.name.removesuffix(SUFFIX)
        self._lock = threading.RLock()
        if not must_exist:
            path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            # Unbuffered: what `append` was given is with the operating system when it returns.
            opener = _open_existing if must_exist else None
            self._out: IO[bytes] = stack.enter_context(open(path, "ab", buffering=0, opener=opener))
            _lock(self._out, path)
            if not os.path.samestat(os.fstat(self._out.fileno()), os.stat(path)):
                raise FileNotFoundError(f"{path} was deleted and made anew while it was opened")
            self._in: IO[bytes] = stack.enter_context(open(path, "rb"))
            self._find_end()
            stack.pop_all()
        self._position = (0, self._first)  # number and offset of the record to be read next
        self.acknowledged = min(self._read_ack(), self.next_seq)

    # writing

    def append(self, payload: bytes) -> int:
        """Adds a packet and returns its number; it survives a killed process from here on.

        Raises:
            OSError: the disk is full or gone; the spool is as it was before.
        """
        with self._open():
            self._end += records.append(self._out, payload)
            self.next_seq += 1
            return self.next_seq - 1

    def set_aside(self, payload: bytes) -> Path:
        """Keeps a packet that the server refuses, for people to look at."""
        path = self.path.with_suffix(".rejected")
        with self._open(), open(path, "ab", buffering=0) as out:
            if out.seek(0, os.SEEK_END) == 0:
                self._write_header(out)
            records.append(out, payload)
        return path

    def set_aside_before(self) -> list[bytes]:
        """The packets that were ever set aside."""
        path = self.path.with_suffix(".rejected")
        if not path.exists():
            return []
        with open(path, "rb") as file:
            return records.read_all(file, len(MAGIC))[1:]

    def _write_header(self, out: IO[bytes]) -> None:
        out.write(MAGIC)
        records.append(out, _pack(asdict(self.writer)))

    def flush_to_disk(self) -> None:
        """Returns when the packets would survive a power cut."""
        with self._open():
            os.fsync(self._out.fileno())

    # reading

    def read(self, seq: int) -> bytes:
        """The packet with this number.

        Raises:
            IndexError: the spool holds no such packet (yet).
            SpoolDamaged: the disk gives back other bytes than were written.
        """
        with self._open():
            if not 0 <= seq < self.next_seq:
                raise IndexError(f"the spool holds packets 0 to {self.next_seq - 1}, not {seq}")
            at, offset = self._position
            if seq < at:
                at, offset = 0, self._first
            while at < seq:
                at, offset = at + 1, offset + records.size_at(self._in, offset)
            payload = records.read(self._in, offset)
            if payload is None:
                raise SpoolDamaged(f"packet {seq} in {self.path} is not as it was written")
            self._position = (seq + 1, offset + records.size_of(payload))
            return payload

    @property
    def pending(self) -> int:
        """Packets that the server does not have yet."""
        return self.next_seq - self.acknowledged

    def last_packet(self) -> wire.Packet | None:
        return wire.decode(self.read(self.next_seq - 1)) if self.next_seq else None

    # the server's answer

    def acknowledge(self, next_seq: int) -> None:
        """The server has everything before this packet; may also go back, to another server."""
        self.acknowledged = next_seq

    def note_acknowledged(self) -> None:
        """Writes down, for a later process, what the server has."""
        with self._open():
            new = self.path.with_suffix(".ack.new")
            try:
                new.write_text(json.dumps({"next_seq": self.acknowledged}), "utf-8")
                os.replace(new, self.path.with_suffix(".ack"))
            except OSError as error:
                # Harmless: packets sent twice are recognised by the server.
                log.debug("could not note the acknowledged packet of %s: %s", self.path, error)

    def _read_ack(self) -> int:
        try:
            noted = json.loads(self.path.with_suffix(".ack").read_text("utf-8"))
            return max(0, int(noted["next_seq"]))
        except (OSError, ValueError, TypeError, KeyError):
            return 0  # sent twice is recognised by the server; left out would be lost

    # the end

    def close(self) -> None:
        """Lets go of the file and its lock; whoever uses the spool later gets SpoolClosed."""
        with self._lock:
            if not self._out.closed:
                _unlock(self._out)
            self._close_files()

    def _close_files(self) -> None:
        self._out.close()
        self._in.close()

    def delete(self) -> None:
        """Removes the run's files, except packets set aside."""
        with self._open():
            if sys.platform == "win32":
                self.close()  # open files cannot be removed there
            for suffix in (SUFFIX, ".ack", ".ack.new"):
                self.path.with_suffix(suffix).unlink(missing_ok=True)
            self.close()

    def abandon(self) -> None:
        """In a forked child: closes the copies of the parent's files and leaves its lock alone."""
        self._lock = threading.RLock()  # the parent may have held the old one while it forked
        self._close_files()

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        with self._lock:
            if self._out.closed:
                raise SpoolClosed(f"the spool {self.path} has been closed")
            yield

    def _find_end(self) -> None:
        size = os.fstat(self._out.fileno()).st_size
        self.is_reopened = self._read_header(size)
        if not self.is_reopened:
            self._out.truncate(0)
            self.writer = Writer.here(self.run_id)
            self._write_header(self._out)
            size = self._out.seek(0, os.SEEK_END)
            self._first = size
        self.next_seq, self._end = 0, self._first
        while (payload := records.read(self._in, self._end)) is not None:
            self._end += records.size_of(payload)
            self.next_seq += 1
        self._cut_tail(size)

    def _read_header(self, size: int) -> bool:
        """False where the file is new, or its writer died before the first packet."""
        start = self._in.read(len(MAGIC))
        payload = records.read(self._in, len(MAGIC))
        if start == MAGIC and payload is not None:
            self.writer = Writer(**msgpack.unpackb(payload))
            self._first = len(MAGIC) + records.size_of(payload)
            return True
        if MAGIC.startswith(start) and size < len(MAGIC) + 1024:
            return False
        raise SpoolError(
            f"{self.path} is no spool of this version: move it away or delete it. "
            f"Received: a file that begins with {start!r}"
        )

    def _cut_tail(self, size: int) -> None:
        if self._end == size:
            return
        if not records.is_torn(self._in, self._end, size):
            # More than a killed process can leave behind: keep it for people.
            self._in.seek(self._end)
            with open(self.path.with_suffix(".damaged"), "ab") as kept:
                shutil.copyfileobj(self._in, kept)
        log.warning("cut %d damaged bytes from the end of %s", size - self._end, self.path)
        self._out.truncate(self._end)


def spools(folder: Path) -> list[Path]:
    """The spools of a folder, oldest run first (the names are UUIDv7)."""
    return sorted(folder.glob("*" + SUFFIX))


def _pack(value: dict[str, Any]) -> bytes:
    return bytes(msgpack.packb(value))


def _open_existing(path: str, flags: int) -> int:
    return os.open(path, flags & ~os.O_CREAT)


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        if sys.platform == "win32":
            import msvcrt

            # Locked bytes cannot be read there, so lock one that no record will ever reach.
            file.seek(2**40)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise SpoolBusy(f"{path} is being written or sent by another process") from error


def _unlock(file: IO[bytes]) -> None:
    """Here and for the copies that a process has which was forked and has not come to close them;
    elsewhere closing does.
    """
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_UN)
