"""Sends what earlier processes have left in a spool folder: `trainsanity sync`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainsanity import wire
from trainsanity.connection import Connection
from trainsanity.delivery import Delivery
from trainsanity.errors import DeliveryError, RunRefused, SpoolBusy, SpoolError
from trainsanity.spool import Spool, spools
from trainsanity.wire import Audit, Packet

RETRIES = 4  # in a row, for one packet
FIRST_PAUSE_SECONDS = 0.5  # doubling
LONGEST_PAUSE_SECONDS = 60.0  # a server that wants to be left alone for longer is asked another day


@dataclass(frozen=True)
class SyncResult:
    """What became of one spool.

    Attributes:
        outcome: "delivered" (the server has all of it), "waiting" (the server could not take all of
            it: try again), "refused" (the server says no, and would again), "busy" (its process
            lives and sends by itself), "unusable" (the file is damaged).
        sent: packets that the server took now.
        pending: packets that still wait.
        interrupted: the process had died, so the run was marked as failed.
        message: what happened, for people.
        run_url: the run's page; empty where the server did not answer.
    """

    run_id: str
    path: Path
    outcome: str
    sent: int = 0
    pending: int = 0
    interrupted: bool = False
    message: str = ""
    run_url: str = ""


def sync_directory(
    folder: Path,
    url: str,
    api_key: str | None = None,
    *,
    keep: bool = False,
    on_progress: Callable[[Path, int, int], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> list[SyncResult]:
    """Sends every spool of the folder to the server, oldest run first.

    Args:
        keep: keep the spools of runs that were delivered completely.
        on_progress: called with the path, the packets sent and the packets in all.
        sleep: waits between two attempts.

    Returns:
        One result for each spool; what goes wrong with one does not keep the others.
    """
    connection = Connection(url, api_key)
    results: list[SyncResult] = []
    try:
        for path in spools(folder):
            # A server that did not answer for the last spool gets one try for the next.
            is_away = bool(results) and results[-1].outcome == "waiting"
            each = _Sync(path, connection, on_progress, sleep, 0 if is_away else RETRIES)
            with contextlib.suppress(FileNotFoundError):  # another process has delivered it by now
                if path.stat().st_size > 0:  # else its process has just made it, or died at once
                    results.append(each.run(keep=keep))
    finally:
        connection.close()
    return results


class _Sync:
    """One spool on its way."""

    def __init__(
        self,
        path: Path,
        connection: Connection,
        on_progress: Callable[[Path, int, int], None] | None,
        sleep: Callable[[float], None],
        retries: int,
    ) -> None:
        self._path = path
        self._run_id = path.stem
        self._connection = connection
        self._on_progress = on_progress
        self._sleep = sleep
        self._retries = retries
        self._sent = 0

    def run(self, *, keep: bool) -> SyncResult:
        try:
            spool = Spool(self._path, must_exist=True)
        except FileNotFoundError:
            raise
        except SpoolBusy as error:
            return SyncResult(self._run_id, self._path, "busy", message=f"{error}")
        except (SpoolError, OSError) as error:
            return SyncResult(self._run_id, self._path, "unusable", message=str(error))
        try:
            return self._deliver(spool, keep)
        except (wire.WireError, OSError) as error:
            return SyncResult(
                self._run_id,
                self._path,
                "unusable",
                sent=self._sent,
                pending=spool.pending,
                message=f"{self._path} cannot be sent: {error}",
            )
        finally:
            spool.close()

    def _deliver(self, spool: Spool, keep: bool) -> SyncResult:
        delivery = Delivery(spool, self._connection)
        is_cut_short = _is_cut_short(spool)
        if is_cut_short:
            # Sent again, the last packet brings the answer how much the server has.
            spool.acknowledge(max(0, min(spool.acknowledged, spool.next_seq - 1)))
        trouble = self._send_all(delivery)
        if is_cut_short and not trouble and delivery.server_has <= spool.next_seq:
            _append_notice(spool)
            trouble = self._send_all(delivery)
        spool.note_acknowledged()
        result = SyncResult(
            self._run_id,
            self._path,
            _outcome(trouble),
            self._sent,
            spool.pending,
            is_cut_short,
            self._said(trouble),
            "" if trouble else delivery.run_url,
        )
        if not trouble and not keep and _has_ended(spool):
            spool.delete()
        return result

    def _said(self, trouble: DeliveryError | None) -> str:
        if isinstance(trouble, RunRefused):
            return f"{trouble}. It can never be sent: delete {self._path} when you are done with it"
        return str(trouble or "everything is delivered")

    def _send_all(self, delivery: Delivery) -> DeliveryError | None:
        failures = 0
        while delivery.spool.pending:
            before = delivery.spool.acknowledged
            try:
                delivery.send_next()
            except DeliveryError as error:
                pause = error.retry_after or FIRST_PAUSE_SECONDS * 2**failures
                failures += 1
                if error.permanent or failures > self._retries or pause > LONGEST_PAUSE_SECONDS:
                    return error
                self._sleep(pause)
                continue
            failures = 0
            self._count(delivery.spool, before)
        return None

    def _count(self, spool: Spool, before: int) -> None:
        if spool.acknowledged > before:
            self._sent += spool.acknowledged - before
        if self._on_progress:
            self._on_progress(self._path, spool.acknowledged, spool.next_seq)


def _outcome(trouble: DeliveryError | None) -> str:
    if trouble is None:
        return "delivered"
    return "refused" if trouble.permanent else "waiting"


def _is_cut_short(spool: Spool) -> bool:
    """Whether the process died before it could say how the run ended."""
    last = spool.last_packet()
    return last is not None and last.state == "running" and spool.writer.is_gone()


def _append_notice(spool: Spool) -> None:
    """Ends a run that was cut short."""
    last = spool.last_packet()
    assert last is not None, spool.path
    facts = {"pid": spool.writer.pid, "host": spool.writer.host, "noticed_at": time.time()}
    # Nothing is known of the time after the last packet, so the end is dated there.
    notice = Packet(
        spool.run_id,
        spool.next_seq,
        last.time,
        last.step,
        "failed",
        last.silent_after,
        audits=(Audit("interrupted", last.step, facts),),
    )
    spool.append(wire.encode(notice))


def _has_ended(spool: Spool) -> bool:
    last = spool.last_packet()
    return last is None or last.state != "running" or spool.writer.is_gone()
