"""The tables.

Every key of a big table begins with `run_id`, and nothing refers to a big table by foreign key: so
they can be distributed by run. Times are seconds since the epoch.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    Uuid,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, deferred, mapped_column
from sqlalchemy.types import TypeDecorator

RUN_STATES = ("running", "finished", "failed", "silent")


class Document(TypeDecorator[Any]):
    """A JSON document as text. NaN is data, and the JSON types of databases refuse it."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


class Words(TypeDecorator[str]):
    """Text that may come from anywhere. PostgreSQL keeps no NUL, so it becomes U+FFFD."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else value.replace("\0", "\ufffd")


class Base(DeclarativeBase):
    __table__: ClassVar[Table]  # narrower than SQLAlchemy says, as `insert` takes it

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {
        int: BigInteger(),
        float: Double(),
        bytes: LargeBinary(),
        dict[str, Any]: Document(),
        list[Any]: Document(),
    }


RunId = Uuid(as_uuid=False)


class RunRow(Base):
    """A run, with what the run list shows kept ready."""

    __tablename__ = "runs"

    id: Mapped[str] = mapped_column(RunId, primary_key=True)
    project: Mapped[str] = mapped_column(Words, default="default")
    name: Mapped[str] = mapped_column(Words, default="")
    kind: Mapped[str] = mapped_column(Words, default="fit")
    session_id: Mapped[str] = mapped_column(Words, default="")
    tags: Mapped[list[Any]] = mapped_column(default=list)
    keras_version: Mapped[str] = mapped_column(Words, default="")
    backend: Mapped[str] = mapped_column(Words, default="")
    config: Mapped[dict[str, Any]] = mapped_column(default=dict)
    environment: Mapped[dict[str, Any]] = mapped_column(default=dict)
    expect: Mapped[dict[str, Any]] = mapped_column(default=dict)

    state: Mapped[str] = mapped_column(String(16), default="running")
    step: Mapped[int] = mapped_column(default=0)
    started_at: Mapped[float] = mapped_column(default=0.0)  # this and the next by the client's
    last_sent_at: Mapped[float | None]  # when the last packet was closed
    last_seen_at: Mapped[float] = mapped_column(default=0.0)  # by the server's clock
    ended_at: Mapped[float | None]
    silent_after: Mapped[float] = mapped_column(default=60.0)  # seconds the client promised
    alarm_after: Mapped[float | None]  # when it counts as silent; null once it ended

    next_seq: Mapped[int] = mapped_column(default=0)  # packets stored
    judged_seq: Mapped[int] = mapped_column(default=0)  # packets judged
    compacted_seq: Mapped[int] = mapped_column(default=0)  # packets whose points are in chunks
    points: Mapped[int] = mapped_column(default=0)
    judge_due_at: Mapped[float | None]  # null: nothing to judge
    lease_owner: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[float] = mapped_column(default=0.0)

    version: Mapped[int] = mapped_column(default=0)  # changes whenever anything people see does
    alert_cursor: Mapped[int] = mapped_column(default=0)  # counts changes of its alerts
    open_critical: Mapped[int] = mapped_column(default=0)
    open_warning: Mapped[int] = mapped_column(default=0)
    open_advice: Mapped[int] = mapped_column(default=0)
    sparkline: Mapped[dict[str, Any] | None]  # {"signal", "values"}
    damage: Mapped[str] = mapped_column(Words, default="")  # what of it cannot be read, for people
    deleted_at: Mapped[float | None]

    __table_args__ = (
        Index(None, "started_at", "id"),
        Index(None, "project", "started_at"),
        Index(None, "judge_due_at"),
        Index(None, "alarm_after"),
        Index(None, "deleted_at"),
    )


class PacketRow(Base):
    """One packet as it came, until its samples are in chunks."""

    __tablename__ = "packets"

    run_id: Mapped[str] = mapped_column(RunId, primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    digest: Mapped[bytes] = mapped_column(LargeBinary(16))
    body: Mapped[bytes] = deferred(mapped_column(LargeBinary))


class DigestsRow(Base):
    """Digests of packets that are in chunks, 16 bytes each: they recognise what is sent again."""

    __tablename__ = "digests"
    __table_args__ = {"sqlite_with_rowid": False}

    run_id: Mapped[str] = mapped_column(RunId, primary_key=True)
    first_seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    digests: Mapped[bytes] = mapped_column(LargeBinary)


class GroupRow(Base):
    """Signals that always arrive together, at strictly increasing steps."""

    __tablename__ = "groups"

    run_id: Mapped[str] = mapped_column(RunId, primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    names: Mapped[list[Any]] = mapped_column()
    rows: Mapped[int] = mapped_column(default=0)
    last_step: Mapped[int] = mapped_column(default=-1)


class ChunkRow(Base):
    """Level 0: samples of a group. Level n: the headers of 16 chunks of level n-1."""

    __tablename__ = "chunks"

    run_id: Mapped[str] = mapped_column(RunId, primary_key=True)
    group: Mapped[int] = mapped_column(
        "group_number", Integer, primary_key=True, autoincrement=False
    )
    level: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    first_step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    last_step: Mapped[int] = mapped_column()
    rows: Mapped[int] = mapped_column()
    header: Mapped[bytes] = mapped_column(LargeBinary)  # before the data: read without it
    data: Mapped[bytes | None] = deferred(mapped_column(LargeBinary))


class SignalRow(Base):
    """What the client said of a signal when it first appeared."""

    __tablename__ = "signals"
    __table_args__ = {"sqlite_with_rowid": False}

    run_id: Mapped[str] = mapped_column(RunId, primary_key=True)
    name: Mapped[str] = mapped_column(String(256), primary_key=True)
    unit: Mapped[str] = mapped_column(Words, default="")
    label: Mapped[str] = mapped_column(Words, default="")


class AuditRow(Base):
    """One structured fact, addressed by the packet that brought it."""

    __tablename__ = "audits"

    run_id: Mapped[str] = mapped_column(RunId, primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(256))
    step: Mapped[int] = mapped_column()
    facts: Mapped[dict[str, Any]] = mapped_column()


class VerdictRow(Base):
    """What a rule says of a run so far."""

    __tablename__ = "verdicts"
    __table_args__ = {"sqlite_with_rowid": False}

    run_id: Mapped[str] = mapped_column(RunId, primary_key=True)
    rule: Mapped[str] = mapped_column(String(64), primary_key=True)
    verdict: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Words, default="")


class AlertRow(Base):
    """One for each (run, rule, subject), however often it recurs."""

    __tablename__ = "alerts"

    id: Mapped[str] = mapped_column(RunId, primary_key=True)
    run_id: Mapped[str] = mapped_column(RunId)
    rule: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(Words)
    severity: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16), default="open")
    title: Mapped[str] = mapped_column(Words)
    message: Mapped[str] = mapped_column(Words)
    witnesses: Mapped[list[Any]] = mapped_column()  # [{"name", "value", "unit"}]
    suggestion: Mapped[str] = mapped_column(Words, default="")
    certainty: Mapped[str] = mapped_column(Words, default="")
    first_step: Mapped[int] = mapped_column(default=0)
    last_step: Mapped[int] = mapped_column(default=0)
    count: Mapped[int] = mapped_column(default=1)
    opened_at: Mapped[float] = mapped_column()
    updated_at: Mapped[float] = mapped_column()
    resolved_at: Mapped[float | None]
    state_reason: Mapped[str] = mapped_column(Words, default="")  # of the last change of state
    muted_until: Mapped[float | None]
    hidden: Mapped[int] = mapped_column(default=0)  # recurrences while muted
    cursor: Mapped[int] = mapped_column(default=0)  # the run's alert_cursor at its last change

    __table_args__ = (Index(None, "run_id", "cursor"), Index(None, "muted_until"))


class AlertTransitionRow(Base):
    """One change of an alert's state, kept for ever."""

    __tablename__ = "alert_transitions"

    alert_id: Mapped[str] = mapped_column(RunId, primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    run_id: Mapped[str] = mapped_column(RunId)
    at: Mapped[float] = mapped_column()
    from_state: Mapped[str] = mapped_column(String(16))  # empty when it opened first
    to_state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Words, default="")

    __table_args__ = (Index(None, "run_id"),)


class ChannelRow(Base):
    """A way by which alerts reach people, as the server knows it now."""

    __tablename__ = "channels"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    state: Mapped[str] = mapped_column(String(16), default="on")  # "on" or "off"
    off_reason: Mapped[str] = mapped_column(Words, default="")
    address_digest: Mapped[str] = mapped_column(String(64), default="")
    next_send_at: Mapped[float] = mapped_column(default=0.0)
    last_answer: Mapped[str] = mapped_column(Words, default="")
    last_answer_at: Mapped[float | None]


class OutboxRow(Base):
    """One piece of news for one channel, written in the transaction that changed the alert."""

    __tablename__ = "outbox"

    id: Mapped[str] = mapped_column(RunId, primary_key=True)
    channel: Mapped[str] = mapped_column(String(64))
    alert_id: Mapped[str] = mapped_column(RunId)
    run_id: Mapped[str] = mapped_column(RunId)
    kind: Mapped[str] = mapped_column(String(16))  # "opened" or "resolved"
    created_at: Mapped[float] = mapped_column()
    next_attempt_at: Mapped[float] = mapped_column()
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    state: Mapped[str] = mapped_column(String(16), default="waiting")  # "waiting", "sent", "dead"
    last_answer: Mapped[str] = mapped_column(Words, default="")
    news: Mapped[dict[str, Any]] = mapped_column(default=dict)  # the alert at that moment

    __table_args__ = (Index(None, "state", "next_attempt_at"), Index(None, "run_id"))
