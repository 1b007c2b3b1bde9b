"""Asks every rule about every run, again and again while evidence comes in.

What was judged is noted in the same COMMIT as what was found, so a crash in between loses nothing:
the next judge looks at the same packets again.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from trainsanity.rules import RunFacts, RunHistory
from trainsanity.wire import Audit, Block
from trainsanity_server.live import Event, LiveHub
from trainsanity_server.metrics import Metrics
from trainsanity_server.services.alerts import Alerts
from trainsanity_server.services.replay import windows
from trainsanity_server.services.rulebook import Opinion, Rulebook, Verdicts, changed_verdicts
from trainsanity_server.services.sparkline import sparkline
from trainsanity_server.storage import alerts as alert_rows
from trainsanity_server.storage import judging
from trainsanity_server.storage import runs as run_rows
from trainsanity_server.storage.blocks import gathered
from trainsanity_server.storage.compaction import compact
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.ids import new_id
from trainsanity_server.storage.models import AlertRow, RunRow
from trainsanity_server.storage.packets import ENDED
from trainsanity_server.storage.points import PointStore, Tail
from trainsanity_server.worker import Worker

log = logging.getLogger(__name__)

PACKETS_AT_ONCE = 512  # judged together
RUNS_AT_ONCE = 64
IDLE_SECONDS = 1.0  # between two looks for what other processes left to judge
COMPACTED_PACKETS = 256  # judged packets that are packed into chunks together
COMPACTED_BYTES = 8 * 1024 * 1024  # or so many bytes of them


@dataclass
class Case:
    """A run in the judge's memory.

    Attributes:
        judged_seq: packets in the history.
        judged_at: when it was judged last, in seconds since the epoch.
        loose_bytes: of judged packets that are not in chunks yet.
    """

    history: RunHistory = field(default_factory=RunHistory)
    judged_seq: int = 0
    judged_at: float = float("-inf")
    verdicts: Verdicts = field(default_factory=dict)
    loose_bytes: int = 0


class Judge(Worker):
    """The thread that judges runs. Any number of them, in any number of processes, share the work.

    Args:
        interval_seconds: the shortest time between two judgements of a run that goes on.
        lease_seconds: how long a run stays in hand after it was judged.
        histories: runs kept in memory.
    """

    name = "judge"
    pace_seconds = 0.03

    def __init__(
        self,
        database: Database,
        points: PointStore,
        alerts: Alerts,
        hub: LiveHub,
        clock: Callable[[], float],
        *,
        rulebook: Rulebook | None = None,
        interval_seconds: float = 0.2,
        lease_seconds: float = 10.0,
        histories: int = 32,
        metrics: Metrics | None = None,
    ) -> None:
        super().__init__()
        self._database = database
        self._points = points
        self._alerts = alerts
        self._hub = hub
        self._clock = clock
        self._book = rulebook or Rulebook()
        self._interval = interval_seconds
        self._lease = lease_seconds
        self._histories = histories
        self._metrics = metrics or Metrics()
        self._cases: OrderedDict[str, Case] = OrderedDict()
        self.owner = new_id()

    def start(self) -> None:
        if self._database.is_sqlite:
            # As a rule nobody else is there: what is in hand was in the hand of a killed process.
            # Of a process that lives it costs a reading, since `advance` tells it to let go.
            self._database.write(judging.take_over)
        super().start()

    def stop(self, timeout_seconds: float = 10.0) -> None:
        super().stop(timeout_seconds)
        try:
            self._database.write(lambda s: judging.release(s, self.owner))
        except SQLAlchemyError:
            # Then others wait until the leases end.
            log.exception("the judge could not let go of its runs")

    def step(self) -> float:
        """Judges every run that has something new."""
        with self._database.read() as session:
            due = judging.due(session, self.owner, self._clock(), RUNS_AT_ONCE)
        wait = IDLE_SECONDS
        for run_id in due:
            if self.is_stopping:
                break
            wait = min(wait, self._judge_or_wait(run_id))
        return wait

    def _judge_or_wait(self, run_id: str) -> float:
        """Seconds until the run wants attention again."""
        with self._database.read() as session:
            run = run_rows.get(session, run_id)
        if run is None or not self._claim(run):
            return IDLE_SECONDS
        pause = self._pause(run)
        if pause > 0:
            return pause
        with self._metrics.judgements.time():
            more = self.judge(run)
        return 0.0 if more else IDLE_SECONDS

    def _pause(self, run: RunRow) -> float:
        """A run that goes on is judged a few times a second; one that ended at once."""
        case = self._cases.get(run.id)
        if case is None or run.state in ENDED:
            return 0.0
        return case.judged_at + self._interval - self._clock()

    def _claim(self, run: RunRow) -> bool:
        now = self._clock()
        if run.lease_owner == self.owner and run.lease_until > now + self._lease / 2:
            return True
        until = now + self._lease
        return self._database.write(lambda s: judging.claim(s, run.id, self.owner, now, until))

    def judge(self, run: RunRow) -> bool:
        """Judges what is new of a run in hand.

        Returns:
            Whether there is more to judge at once.
        """
        case = self._case(run)
        limit = min(PACKETS_AT_ONCE, run.next_seq - run.judged_seq)
        tail = self._points.tail(run.id, run.judged_seq, limit=limit)
        self._feed(case, run, tail)
        opinion = self._book.ask(case.history.view())
        changed = changed_verdicts(case.verdicts, opinion, self._book)
        has_news = self._database.write(lambda s: self._note(s, case, run, tail, opinion, changed))
        if has_news is None:
            self._cases.pop(run.id, None)  # in other hands by now
            return False
        case.history.mark_judged()
        case.judged_seq, case.judged_at = tail.next_seq, self._clock()
        case.verdicts |= changed
        case.loose_bytes += tail.bytes
        self._publish(run, has_news or bool(changed))
        self._compact(case, run)
        return tail.next_seq < run.next_seq

    def _case(self, run: RunRow) -> Case:
        """The run's history, read again from storage where it is not in memory."""
        case = self._cases.pop(run.id, None)
        if case is None or case.judged_seq != run.judged_seq:
            case = self._remember(run)
        self._cases[run.id] = case
        while len(self._cases) > self._histories:
            self._cases.popitem(last=False)
        return case

    def _remember(self, run: RunRow) -> Case:
        case = Case(judged_seq=run.judged_seq)
        for window in windows(self._database, self._points, run.id, packed_seq=run.compacted_seq):
            take(case.history, window.blocks, window.audits)
            case.history.mark_judged()
        at = run.compacted_seq
        while at < run.judged_seq:
            tail = self._points.tail(run.id, at, limit=run.judged_seq - at)
            at = tail.next_seq
            case.loose_bytes += tail.bytes
            take(case.history, tail.blocks, tail.audits)
            case.history.mark_judged()
        with self._database.read() as session:
            rows = alert_rows.verdicts(session, run.id)
            case.verdicts = {row.rule: (row.verdict, row.reason) for row in rows}
        return case

    def _feed(self, case: Case, run: RunRow, tail: Tail) -> None:
        take(case.history, tail.blocks, tail.audits)
        # Of a run that ended, rules see the end together with the last packet, not before.
        is_all = tail.next_seq == run.next_seq
        case.history.facts = facts_of(run, now=self._clock(), is_all=is_all)

    def _note(
        self,
        session: Session,
        case: Case,
        run: RunRow,
        tail: Tail,
        opinion: Opinion,
        changed: Verdicts,
    ) -> bool | None:
        """Stores what was found; whether alerts changed, or None where it is in other hands."""
        until = self._clock() + self._lease
        curve = sparkline(case.history.view())
        cursor = judging.advance(session, run, tail.next_seq, self.owner, until, curve)
        if cursor is None:
            return None
        alert_rows.put_verdicts(session, run.id, changed)
        if tail.damage:
            run_rows.note_damage(session, run.id, tail.damage)
        if not opinion.found and cursor == 0:  # as of most runs, most of the time
            return False
        row = run_rows.locked(session, run.id)
        if row is None:
            return None

        def healed(alert: AlertRow) -> bool:
            return alert.rule in opinion.spoke and self._book.heals(alert.rule)

        return self._alerts.record(session, row, opinion.found, healed=healed)

    def _publish(self, run: RunRow, has_news: bool) -> None:
        if has_news:
            self._alerts.tell(run.id)
        self._hub.publish(Event("run", run.id))

    def _compact(self, case: Case, run: RunRow) -> None:
        """A run that rests is packed at once, one that goes on now and then."""
        loose = case.judged_seq - run.compacted_seq
        is_resting = run.state != "running" and case.judged_seq == run.next_seq
        is_much = loose >= COMPACTED_PACKETS or case.loose_bytes >= COMPACTED_BYTES
        if not (is_resting or is_much):
            return
        while compact(self._database, run.id):
            pass
        case.loose_bytes = 0


def facts_of(run: RunRow, *, now: float, is_all: bool = True) -> RunFacts:
    """What rules may know of a run as a whole.

    Args:
        is_all: whether they have seen everything that is stored.
    """
    has_ended = run.state in ENDED
    return RunFacts(
        id=run.id,
        project=run.project,
        name=run.name,
        kind=run.kind,
        state=run.state if is_all or not has_ended else "running",
        backend=run.backend,
        keras_version=run.keras_version,
        expect=run.expect,
        started_at=run.started_at,
        last_seen_at=run.last_seen_at,
        ended_at=run.ended_at if is_all else None,
        silent_after=run.silent_after,
        step=run.step,
        now=now,
    )


def take(history: RunHistory, blocks: Iterable[Block], audits: Iterable[Audit]) -> None:
    """Adds evidence to a history, as few long blocks."""
    for block in gathered(blocks):
        history.append(block)
    for audit in audits:
        history.add_audit(audit)
