"""Judges a run of the past again, as after a rule has improved, and tells what is different now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from sqlalchemy.orm import Session

from trainsanity.rules import RunHistory
from trainsanity_server.errors import ConflictError
from trainsanity_server.services.alerts import Alerts, Found
from trainsanity_server.services.judge import facts_of, take
from trainsanity_server.services.replay import Window, windows
from trainsanity_server.services.rulebook import Opinion, Rulebook, Verdicts, changed_verdicts
from trainsanity_server.services.runs import checked_id, found
from trainsanity_server.storage import alerts as alert_rows
from trainsanity_server.storage import judging
from trainsanity_server.storage import runs as run_rows
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.ids import alert_id, new_id
from trainsanity_server.storage.models import AlertRow, RunRow
from trainsanity_server.storage.packets import ENDED
from trainsanity_server.storage.points import PointStore

LEASE_SECONDS = 600.0  # longer than reading any run takes

States = Mapping[str, str]  # of alerts: "rule: subject" -> state


class HeldError(ConflictError):
    """A server has the run in hand; some seconds later it has not."""


@dataclass(frozen=True)
class Change:
    """Something that is different now; empty where it was or is not there."""

    what: str
    before: str
    after: str


@dataclass(frozen=True)
class Difference:
    """What judging again has changed."""

    run_id: str
    verdicts: list[Change]
    alerts: list[Change]

    def __bool__(self) -> bool:
        return bool(self.verdicts or self.alerts)


@dataclass
class _Sentence:
    """What the rules say of the whole run."""

    found: dict[str, Found] = field(default_factory=dict)
    verdicts: Verdicts = field(default_factory=dict)
    spoke: set[str] = field(default_factory=set)

    def add(self, run_id: str, opinion: Opinion, book: Rulebook) -> None:
        now = {alert_id(run_id, f.rule.id, f.finding.subject): f for f in opinion.found}
        for key in [k for k, f in self.found.items() if k not in now]:
            rule = self.found[key].rule
            if rule.id in opinion.spoke and book.heals(rule.id):
                del self.found[key]
        for key, each in now.items():
            self.found[key] = _merged(self.found[key], each) if key in self.found else each
        self.verdicts |= changed_verdicts(self.verdicts, opinion, book)
        self.spoke |= opinion.spoke


class Rejudge:
    """Looks at everything a run has left, from its first step to its last.

    Args:
        alerts: tells no channel: nobody is called for what is long past.
    """

    def __init__(
        self,
        database: Database,
        points: PointStore,
        alerts: Alerts,
        clock: Callable[[], float],
        rulebook: Rulebook,
    ) -> None:
        self._database = database
        self._points = points
        self._alerts = alerts
        self._clock = clock
        self._book = rulebook
        self._owner = new_id()

    def again(self, run_id: str) -> Difference:
        """Judges a run anew and stores the result.

        Raises:
            NotFoundError: there is no such run.
            ConflictError: it has not ended.
            HeldError: a server has it in hand.
        """
        run = self._claimed(checked_id(run_id))
        try:
            sentence = self._sentence(run)
            return self._database.write(lambda session: self._store(session, run, sentence))
        finally:
            self._database.write(lambda session: judging.release(session, self._owner))

    def _claimed(self, run_id: str) -> RunRow:
        with self._database.read() as session:
            run = found(run_rows.get(session, run_id), run_id)
        if run.state not in ENDED or run.judged_seq < run.next_seq:
            raise ConflictError(
                f"run {run_id} is {run.state} and is still being judged; judge it again when it "
                "has ended and is settled"
            )
        now = self._clock()
        until = now + LEASE_SECONDS
        if not self._database.write(
            lambda session: judging.claim(session, run_id, self._owner, now, until)
        ):
            wait = max(run.lease_until - now, 0.0)
            raise HeldError(
                f"a server has run {run_id} in hand for up to {wait:.0f} s more; try again then"
            )
        return run

    def _sentence(self, run: RunRow) -> _Sentence:
        sentence, history = _Sentence(), RunHistory()
        pending: Window | None = None
        for window in windows(self._database, self._points, run.id):
            if pending is not None:
                self._hear(sentence, history, run, pending, is_last=False)
            pending = window
        self._hear(sentence, history, run, pending or Window(0, (), ()), is_last=True)
        return sentence

    def _hear(
        self,
        sentence: _Sentence,
        history: RunHistory,
        run: RunRow,
        window: Window,
        *,
        is_last: bool,
    ) -> None:
        take(history, window.blocks, window.audits)
        history.facts = facts_of(run, now=self._clock(), is_all=is_last)
        sentence.add(run.id, self._book.ask(history.view()), self._book)
        history.mark_judged()

    def _store(self, session: Session, run: RunRow, sentence: _Sentence) -> Difference:
        row = found(run_rows.locked(session, run.id), run.id)
        states, verdicts = _states(session, run.id), _verdicts(session, run.id)
        news = [f for key, f in sentence.found.items() if not _is_settled(session, key, f)]

        def healed(alert: AlertRow) -> bool:
            return alert.rule in sentence.spoke and alert.id not in sentence.found

        self._alerts.record(session, row, news, healed=healed)
        alert_rows.put_verdicts(session, run.id, sentence.verdicts)
        session.flush()
        after = {slug: verdict for slug, (verdict, _) in sentence.verdicts.items()}
        return Difference(
            run.id,
            _changes(verdicts, {**verdicts, **after}),
            _changes(states, _states(session, run.id)),
        )


def _is_settled(session: Session, key: str, found: Found) -> bool:
    """Whether somebody has called this very finding resolved: that holds."""
    row = alert_rows.get(session, key)
    return row is not None and row.state == "resolved" and row.title == found.finding.title


def _merged(earlier: Found, later: Found) -> Found:
    return replace(later, finding=later.finding.after(earlier.finding))


def _states(session: Session, run_id: str) -> States:
    return {f"{r.rule}: {r.subject}": r.state for r in alert_rows.of_run(session, run_id)}


def _verdicts(session: Session, run_id: str) -> dict[str, str]:
    return {row.rule: row.verdict for row in alert_rows.verdicts(session, run_id)}


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[Change]:
    return [
        Change(key, before.get(key, ""), after.get(key, ""))
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]
