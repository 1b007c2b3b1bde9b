"""The life of an alert: open, acknowledged, muted, resolved; every change of state is stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from trainsanity.rules import Finding, Rule, Severity, Witness
from trainsanity_server.errors import ConflictError, MalformedError
from trainsanity_server.live import Event, LiveHub
from trainsanity_server.services.runs import Alert, alert_of, checked_id, found_alert
from trainsanity_server.storage import alerts as rows
from trainsanity_server.storage import outbox
from trainsanity_server.storage import runs as run_rows
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.ids import alert_id
from trainsanity_server.storage.models import AlertRow, AlertTransitionRow, RunRow

# What a person may do: from which states, and what state follows.
ACTIONS = {
    "acknowledge": ({"open"}, "acknowledged"),
    "mute": ({"open", "acknowledged", "muted"}, "muted"),
    "unmute": ({"muted"}, "open"),
    "resolve": ({"open", "acknowledged", "muted"}, "resolved"),
}
MAX_REASON = 1000  # characters
MAX_MUTE_SECONDS = 366 * 86400.0
MAX_WITNESSES = 32


@dataclass(frozen=True)
class Found:
    """What a rule found in what it looked at last."""

    rule: Rule
    finding: Finding

    @property
    def severity(self) -> Severity:
        """The rule's own, or milder."""
        own = type(self.rule).severity
        given = self.finding.severity or own
        return given if given.rank >= own.rank else own


class Alerts:
    """Opens, updates and closes alerts, and tells the channels in the same transaction.

    Args:
        channels: names of those that news is put into the outbox for.
        notify_from: the mildest severity that channels hear of.
        mute_seconds: how long a mute lasts where no end is given.
        on_news: called after news was put into the outbox.
    """

    def __init__(
        self,
        database: Database,
        hub: LiveHub,
        clock: Callable[[], float],
        *,
        channels: Iterable[str] = (),
        notify_from: Severity = Severity.WARNING,
        mute_seconds: float = 86400.0,
        on_news: Callable[[], None] = lambda: None,
    ) -> None:
        self._database = database
        self._hub = hub
        self._clock = clock
        self._channels = tuple(channels)
        self._notify_from = notify_from
        self._mute_seconds = mute_seconds
        self._on_news = on_news

    # what people do

    def acknowledge(self, alert: str, *, reason: str = "") -> Alert:
        """Somebody looks after it. Raises NotFoundError, ConflictError."""
        return self._act("acknowledge", alert, reason)

    def mute(self, alert: str, *, reason: str = "", until: float | None = None) -> Alert:
        """Nobody hears of it until `until` (seconds since the epoch), or for the default time.

        Raises:
            NotFoundError, ConflictError. MalformedError: `until` is past or too far away.
        """
        now = self._clock()
        until = now + self._mute_seconds if until is None else until
        if not now < until <= now + MAX_MUTE_SECONDS:
            raise MalformedError(
                "until must lie ahead, by 366 days at most: every mute has an end. "
                f"Received: {until - now:.0f} seconds from now"
            )
        return self._act("mute", alert, reason, until)

    def unmute(self, alert: str, *, reason: str = "") -> Alert:
        """Raises NotFoundError, ConflictError."""
        return self._act("unmute", alert, reason)

    def resolve(self, alert: str, *, reason: str = "") -> Alert:
        """It is over; found again, it opens again. Raises NotFoundError, ConflictError."""
        return self._act("resolve", alert, reason)

    def _act(self, action: str, alert: str, reason: str, until: float | None = None) -> Alert:
        if len(reason) > MAX_REASON:
            raise MalformedError(
                f"reason holds at most {MAX_REASON} characters. Received: {len(reason)}"
            )
        key = checked_id(alert)
        changed = self._database.write(lambda s: self._action(s, action, key, reason, until))
        self.tell(changed.run_id)
        return changed

    def _action(
        self, session: Session, action: str, key: str, reason: str, until: float | None
    ) -> Alert:
        row = found_alert(rows.get(session, key), key)
        run = _locked_run(session, row.run_id)
        session.refresh(row)
        before, after = ACTIONS[action]
        if row.state == after and action != "mute":
            return alert_of(row)
        if row.state not in before:
            raise ConflictError(
                f"an alert that is {row.state} cannot be changed by {action}. It must be "
                f"{' or '.join(sorted(before))}. Received: alert {key}",
                state=row.state,
            )
        self._change_state(session, run, row, after, reason or "no reason given")
        row.muted_until = until
        self._close(session, run, [row])
        return alert_of(row)

    # what the judge and the clock do

    def record(
        self,
        session: Session,
        run: RunRow,
        found: Sequence[Found],
        *,
        healed: Callable[[AlertRow], bool] = lambda row: False,
    ) -> bool:
        """Merges what rules found into the run's alerts, in the judge's transaction.

        Args:
            run: its row, locked.
            healed: whether an unresolved alert that was not found again is over.

        Returns:
            Whether anything changed.
        """
        by_key = {alert_id(run.id, f.rule.id, f.finding.subject): f for f in found}
        existing = {row.id: row for row in rows.of_run(session, run.id)}
        changed = []
        for key, item in by_key.items():
            row = existing.get(key)
            if row is None:
                changed.append(self._open(session, run, key, item))
            elif self._update(session, run, row, item):
                changed.append(row)
        changed += [
            row
            for item in by_key.values()
            for row in self._replace(session, run, existing, item)
            if row.id not in by_key
        ]
        for key, row in existing.items():
            if key not in by_key and row.state != "resolved" and healed(row):
                self._change_state(session, run, row, "resolved", "no longer found")
                changed.append(row)
        if changed:
            self._close(session, run, changed)
        return bool(changed)

    def end_mutes(self) -> int:
        """Opens alerts whose mute has ended; says how many."""
        runs = self._database.write(self._end_mutes)
        for run_id in set(runs):
            self.tell(run_id)
        return len(runs)

    def _end_mutes(self, session: Session) -> list[str]:
        now, opened = self._clock(), []
        for alert, run_id in rows.mutes_ended(session, now):
            run = run_rows.locked(session, run_id)
            row = rows.get(session, alert)
            # While this waited for the run, a person or another server may have been faster.
            if run is None or row is None or not _is_over(row, now):
                continue
            times = "once" if row.hidden == 1 else f"{row.hidden} times"
            reason = f"the mute ended; meanwhile it was found {times}"
            self._change_state(session, run, row, "open", reason)
            self._close(session, run, [row])
            opened.append(run_id)
        return opened

    def tell(self, run_id: str) -> None:
        """After the COMMIT: whoever watches looks again."""
        self._hub.publish(Event("alerts", run_id))
        self._on_news()

    # the parts of a change

    def _open(self, session: Session, run: RunRow, key: str, found: Found) -> AlertRow:
        now, finding = self._clock(), found.finding
        row = AlertRow(
            id=key,
            run_id=run.id,
            rule=found.rule.id,
            subject=finding.subject,
            severity=found.severity,
            state="",
            count=finding.count,
            first_step=int(finding.first_step),
            last_step=int(finding.last_step),
            opened_at=now,
            hidden=0,
            **_words(finding),
        )
        session.add(row)
        self._change_state(session, run, row, "open", "found")
        return row

    def _replace(
        self, session: Session, run: RunRow, existing: Mapping[str, AlertRow], found: Found
    ) -> Iterator[AlertRow]:
        """Ends quietly what the same rule has told of the same before it knew more."""
        for subject in found.finding.replaces:
            row = existing.get(alert_id(run.id, found.rule.id, subject))
            if row is not None and row.state != "resolved":
                reason = f"known more exactly: {found.finding.subject}"
                self._change_state(session, run, row, "resolved", reason, is_news=False)
                yield row

    def _update(self, session: Session, run: RunRow, row: AlertRow, found: Found) -> bool:
        """Takes over what is new; nothing where the rule says the same again."""
        finding, words = found.finding, _words(found.finding)
        if _says_the_same(row, finding, words):
            return False
        _count(row, finding)
        for name, value in words.items():
            setattr(row, name, value)
        is_worse = found.severity.rank < Severity(row.severity).rank
        if is_worse:
            row.severity = found.severity
        if row.state == "muted":
            row.hidden += 1
        elif row.state == "resolved":
            row.opened_at, row.resolved_at = self._clock(), None
            self._change_state(session, run, row, "open", "found again")
        elif is_worse:
            self._notify(session, run, row, "opened")
        return True

    def _change_state(
        self,
        session: Session,
        run: RunRow,
        row: AlertRow,
        state: str,
        reason: str,
        *,
        is_news: bool = True,
    ) -> None:
        now, before = self._clock(), row.state
        session.add(
            AlertTransitionRow(
                alert_id=row.id,
                number=rows.next_transition(session, row.id) if before else 0,
                run_id=run.id,
                at=now,
                from_state=before,
                to_state=state,
                reason=reason,
            )
        )
        row.state, row.state_reason, row.updated_at = state, reason, now
        row.muted_until = None
        if state == "resolved":
            row.resolved_at = now
            if is_news and before != "muted":
                self._notify(session, run, row, "resolved")
        if state == "open" and (before in ("", "resolved") or row.hidden):
            self._notify(session, run, row, "opened")
        if state != "muted":
            row.hidden = 0

    def _notify(self, session: Session, run: RunRow, row: AlertRow, kind: str) -> None:
        is_gone = run.deleted_at is not None  # news of it would lead nowhere
        if not is_gone and Severity(row.severity).rank <= self._notify_from.rank:
            outbox.add(session, self._channels, kind, row, run, self._clock())

    def _close(self, session: Session, run: RunRow, changed: Sequence[AlertRow]) -> None:
        """Numbers the changes and counts anew what is open."""
        now = self._clock()
        for row in changed:
            run.alert_cursor += 1
            row.cursor, row.updated_at = run.alert_cursor, now
        session.flush()
        counts = rows.open_counts(session, run.id)
        run.open_critical = counts.get("critical", 0)
        run.open_warning = counts.get("warning", 0)
        run.open_advice = counts.get("advice", 0)
        run.version += 1


def _locked_run(session: Session, run_id: str) -> RunRow:
    run = run_rows.locked(session, run_id)
    if run is None or run.deleted_at is not None:  # alerts go with their run
        raise ConflictError(f"run {run_id} has just been deleted")
    return run


def _is_over(row: AlertRow, now: float) -> bool:
    """Whether an alert is still muted although its mute has ended."""
    return row.state == "muted" and row.muted_until is not None and row.muted_until <= now


def _words(finding: Finding) -> dict[str, Any]:
    return {
        "title": finding.title,
        "message": finding.message,
        "witnesses": [_witness(w) for w in finding.witnesses[:MAX_WITNESSES]],
        "suggestion": finding.suggestion,
        "certainty": finding.certainty,
    }


def _witness(witness: Witness) -> dict[str, Any]:
    value = witness.value if isinstance(witness.value, str) else float(witness.value)
    return {"name": witness.name, "value": value, "unit": witness.unit}


def _says_the_same(row: AlertRow, finding: Finding, words: dict[str, Any]) -> bool:
    """Rules that look at a whole run say again what they said before."""
    return (
        finding.first_step >= row.first_step
        and finding.last_step <= row.last_step
        and finding.count <= row.count
        and row.title == words["title"]
        and row.message == words["message"]
        # NaN differs from itself, its text does not
        and json.dumps(row.witnesses) == json.dumps(words["witnesses"])
    )


def _count(row: AlertRow, finding: Finding) -> None:
    row.count = finding.counted_after(row.count, row.last_step)
    row.first_step = min(row.first_step, int(finding.first_step))
    row.last_step = max(row.last_step, int(finding.last_step))
