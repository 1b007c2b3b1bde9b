"""The evidence of one run as rules see it: new samples, whole-run totals, audits.

A `RunHistory` is fed with blocks and audits, in any packing. It keeps the newest rows, running
totals and an overview of bounded size for every signal, so it stays small for runs of any length.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainsanity.rules.absent import carries_no
from trainsanity.rules.rule import NotTestable
from trainsanity.wire import Audit, Block

KEPT_ROWS = 4096  # rows kept behind what has been judged, per group of signals
OVERVIEW_BUCKETS = 512  # at most, per signal
KEPT_AUDITS = 256  # of one name

Floats = NDArray[np.float64]
Steps = NDArray[np.int64]


@dataclass(frozen=True)
class RunFacts:
    """What is known of the run as a whole.

    Times are seconds since the epoch; `silent_after` is a duration in seconds. `now` is the judge's
    clock, so that rules read no clock of their own.
    """

    id: str = ""
    project: str = "default"
    name: str = ""
    kind: str = "fit"  # or "evaluate"
    state: str = "running"
    backend: str = ""
    keras_version: str = ""
    expect: Mapping[str, Any] = field(default_factory=dict)
    started_at: float = 0.0
    last_seen_at: float = 0.0
    ended_at: float | None = None
    silent_after: float = 60.0
    step: int = 0
    now: float = 0.0

    @property
    def ended(self) -> bool:
        return self.state in ("finished", "failed")


@dataclass(frozen=True)
class Totals:
    """Aggregates of one signal over the whole run.

    `min`, `max` and `sum` are over finite values; NaN where there are none.
    """

    count: int
    finite: int
    nan: int
    inf: int
    min: float
    max: float
    sum: float
    first: float
    last: float
    first_step: int
    last_step: int

    @property
    def mean(self) -> float:
        return self.sum / self.finite if self.finite else float("nan")


@dataclass(frozen=True)
class Overview:
    """The whole run of one signal in at most OVERVIEW_BUCKETS buckets.

    All arrays have shape (buckets,). `min`, `max` and `mean` are over finite values; NaN where a
    bucket has none.
    """

    first_step: Steps
    last_step: Steps
    min: Floats
    max: Floats
    mean: Floats
    first: Floats
    last: Floats
    count: NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Samples of several signals at the same steps.

    `steps` has shape (n,); `rows[name]` has shape (n,), float64. Rows before `first_new` have been
    shown to the rule before: they are context for windows that reach back.
    """

    steps: Steps
    columns: Mapping[str, Floats]
    first_new: int

    def __getitem__(self, name: str) -> Floats:
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def new(self) -> Rows:
        n = self.first_new
        return Rows(self.steps[n:], {k: v[n:] for k, v in self.columns.items()}, 0)


class _Group:
    """Signals that always arrive together: one matrix for all of them."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.index = {name: i for i, name in enumerate(names)}
        self.steps: list[Steps] = []
        self.values: list[Floats] = []  # each (signals, rows)
        self.old_rows = 0  # rows kept that have been judged
        k = len(names)
        self.count = 0
        self.finite = np.zeros(k, np.int64)
        self.nan = np.zeros(k, np.int64)
        self.inf = np.zeros(k, np.int64)
        self.min = np.full(k, np.inf)
        self.max = np.full(k, -np.inf)
        self.sum = np.zeros(k)
        self.first = np.full(k, np.nan)
        self.last = np.full(k, np.nan)
        self.first_step = 0
        self.last_step = 0
        self.bucket_rows = 1  # rows per overview bucket; doubles when the overview is full
        self._buckets: list[dict[str, NDArray[Any]]] = []
        self._open: list[tuple[Steps, Floats]] = []
        self._open_rows = 0

    def append(self, steps: Steps, values: Floats) -> None:
        if not len(steps):
            return
        if self.count == 0:
            self.first_step, self.first = int(steps[0]), values[:, 0].copy()
        self.last_step, self.last = int(steps[-1]), values[:, -1].copy()
        finite = np.isfinite(values)
        nan = np.isnan(values)
        self.count += len(steps)
        self.finite += finite.sum(axis=1)
        self.nan += nan.sum(axis=1)
        self.inf += (~finite & ~nan).sum(axis=1)
        self.min = np.minimum(self.min, np.where(finite, values, np.inf).min(axis=1))
        self.max = np.maximum(self.max, np.where(finite, values, -np.inf).max(axis=1))
        with _endless_sums():
            self.sum += np.where(finite, values, 0.0).sum(axis=1)
        self.steps.append(steps)
        self.values.append(values)
        self._open.append((steps, values))
        self._open_rows += len(steps)
        if self._open_rows >= self.bucket_rows:
            self._close_buckets()

    def _close_buckets(self) -> None:
        steps = np.concatenate([s for s, _ in self._open])
        values = np.concatenate([v for _, v in self._open], axis=1)
        whole = len(steps) // self.bucket_rows * self.bucket_rows
        if whole:
            self._buckets.append(_bucket(steps[:whole], values[:, :whole], self.bucket_rows))
        self._open = [(steps[whole:], values[:, whole:])] if whole < len(steps) else []
        self._open_rows = len(steps) - whole
        while sum(len(b["count"]) for b in self._buckets) > OVERVIEW_BUCKETS:
            self._halve()

    def _halve(self) -> None:
        merged = {
            key: np.concatenate([b[key] for b in self._buckets], axis=-1)
            for key in self._buckets[0]
        }
        even = len(merged["count"]) // 2 * 2
        rest = {key: value[..., even:] for key, value in merged.items()}
        left = {key: value[..., 0:even:2] for key, value in merged.items()}
        right = {key: value[..., 1:even:2] for key, value in merged.items()}
        with _endless_sums():
            sums = left["sum"] + right["sum"]
        pairs = {
            "first_step": left["first_step"],
            "last_step": right["last_step"],
            "min": np.minimum(left["min"], right["min"]),
            "max": np.maximum(left["max"], right["max"]),
            "sum": sums,
            "finite": left["finite"] + right["finite"],
            "first": left["first"],
            "last": right["last"],
            "count": left["count"] + right["count"],
        }
        self._buckets = [pairs] + ([rest] if rest["count"].size else [])
        self.bucket_rows *= 2

    def overview(self, name: str) -> Overview:
        parts = list(self._buckets)
        if self._open:
            steps = np.concatenate([s for s, _ in self._open])
            values = np.concatenate([v for _, v in self._open], axis=1)
            parts.append(_bucket(steps, values, len(steps)))
        i = self.index[name]

        def column(key: str) -> NDArray[Any]:
            return np.concatenate([p[key] if p[key].ndim == 1 else p[key][i] for p in parts])

        finite = column("finite")
        has = finite > 0
        return Overview(
            first_step=column("first_step"),
            last_step=column("last_step"),
            min=np.where(has, column("min"), np.nan),
            max=np.where(has, column("max"), np.nan),
            mean=np.divide(column("sum"), finite, out=np.full(len(finite), np.nan), where=has),
            first=column("first"),
            last=column("last"),
            count=column("count"),
        )

    def kept(self) -> tuple[Steps, Floats]:
        if len(self.steps) > 1:
            self.steps = [np.concatenate(self.steps)]
            self.values = [np.concatenate(self.values, axis=1)]
        if not self.steps:
            return np.empty(0, np.int64), np.empty((len(self.names), 0))
        return self.steps[0], self.values[0]

    def mark_judged(self) -> None:
        steps, values = self.kept()
        surplus = len(steps) - KEPT_ROWS
        if surplus > 0:
            self.steps, self.values = [steps[surplus:].copy()], [values[:, surplus:].copy()]
        self.old_rows = min(len(steps), KEPT_ROWS)

    def totals(self, name: str) -> Totals:
        i = self.index[name]
        has = self.finite[i] > 0
        return Totals(
            count=self.count,
            finite=int(self.finite[i]),
            nan=int(self.nan[i]),
            inf=int(self.inf[i]),
            min=float(self.min[i]) if has else float("nan"),
            max=float(self.max[i]) if has else float("nan"),
            sum=float(self.sum[i]),
            first=float(self.first[i]),
            last=float(self.last[i]),
            first_step=self.first_step,
            last_step=self.last_step,
        )


def _bucket(steps: Steps, values: Floats, rows: int) -> dict[str, NDArray[Any]]:
    n = len(steps) // rows
    by_step = steps[: n * rows].reshape(n, rows)
    by_value = values[:, : n * rows].reshape(len(values), n, rows)
    finite = np.isfinite(by_value)
    with _endless_sums():
        sums = np.where(finite, by_value, 0.0).sum(axis=2)
    return {
        "first_step": by_step[:, 0],
        "last_step": by_step[:, -1],
        "min": np.where(finite, by_value, np.inf).min(axis=2),
        "max": np.where(finite, by_value, -np.inf).max(axis=2),
        "sum": sums,
        "finite": finite.sum(axis=2),
        "first": by_value[:, :, 0],
        "last": by_value[:, :, -1],
        "count": np.full(n, rows, np.int64),
    }


def _endless_sums() -> AbstractContextManager[Any]:
    """A sum of finite numbers may be infinite, and of two such sums none: both without a word."""
    return np.errstate(over="ignore", invalid="ignore")


class RunHistory:
    """Everything a judge keeps in memory of one run."""

    def __init__(self, facts: RunFacts | None = None) -> None:
        self.facts = facts or RunFacts()
        self._groups: dict[tuple[str, ...], _Group] = {}
        self._where: dict[str, list[_Group]] = {}
        self._audits: dict[str, list[Audit]] = {}
        self._old_audits: dict[str, int] = {}
        self._found: dict[str, list[str]] = {}  # names of signals by pattern

    def append(self, block: Block) -> None:
        group = self._groups.get(block.names)
        if group is None:
            group = self._groups[block.names] = _Group(block.names)
            for name in block.names:
                self._where.setdefault(name, []).append(group)
            self._found.clear()
        group.append(block.steps, np.asarray(block.values, np.float64))

    def add_audit(self, audit: Audit) -> None:
        kept = self._audits.setdefault(audit.name, [])
        kept.append(audit)
        if len(kept) > KEPT_AUDITS:
            # The first stays: rules compare with the beginning of the run.
            del kept[1]
            self._old_audits[audit.name] = max(0, self._old_audits.get(audit.name, 0) - 1)

    def view(self) -> RunView:
        """What is known now: asked after more has come, it may still tell of what was."""
        return RunView(self)

    def names(self, pattern: str) -> list[str]:
        """Signal names that match a shell pattern, sorted."""
        if pattern not in self._found:
            self._found[pattern] = sorted(fnmatch.filter(self._where, pattern))
        return self._found[pattern]

    def mark_judged(self) -> None:
        """From now on everything received so far is context, not news."""
        for group in self._groups.values():
            group.mark_judged()
        self._old_audits = {name: len(kept) for name, kept in self._audits.items()}


class RunView:
    """What a rule may ask about a run."""

    def __init__(self, history: RunHistory) -> None:
        self._history = history
        # Many rules ask for the same.
        self._rows: dict[tuple[str, ...], Rows] = {}
        self._of: dict[str, tuple[Steps, Floats, NDArray[np.bool_]]] = {}

    @property
    def facts(self) -> RunFacts:
        return self._history.facts

    def expects(self, name: str, default: Any = None) -> Any:
        """What the user declared with `Expect(...)`, e.g. `expects("shuffle")`."""
        return self.facts.expect.get(name, default)

    # signals

    def has(self, *names: str) -> bool:
        return all(name in self._history._where for name in names)

    def names(self, pattern: str = "*") -> list[str]:
        """Signal names that match a shell pattern, sorted."""
        return [*self._history.names(pattern)]

    def quantities(self, *witnesses: str) -> list[str]:
        """Quantities that carry all these witnesses, sorted: `quantities("reported", "all")`."""
        found = {name.rpartition("/")[0] for name in self.names("*/" + witnesses[0])}
        return sorted(q for q in found if all(self.has(f"{q}/{w}") for w in witnesses))

    def rows(self, *names: str) -> Rows:
        """New samples at the steps where all the signals have one, with earlier rows as context.

        Raises:
            NotTestable: the run carries no such signal.
        """
        if names not in self._rows:
            self._rows[names] = self._find(names)
        return self._rows[names]

    def _find(self, names: tuple[str, ...]) -> Rows:
        where = self._history._where
        for name in names:
            if name not in where:
                raise NotTestable(carries_no(name, kind="signal "))
        first = where[names[0]][0]
        if all(len(where[name]) == 1 and where[name][0] is first for name in names):
            steps, values = first.kept()
            columns = {name: values[first.index[name]] for name in names}
            return Rows(steps, columns, first.old_rows)
        return self._joined(names)

    def _joined(self, names: Sequence[str]) -> Rows:
        series = [self._series(name) for name in names]
        steps = series[0][0]
        for other, _, _ in series[1:]:
            steps = np.intersect1d(steps, other, assume_unique=True)
        columns: dict[str, Floats] = {}
        is_new = np.zeros(len(steps), bool)
        for name, (own, values, new) in zip(names, series, strict=True):
            at = np.searchsorted(own, steps)
            columns[name] = values[at]
            is_new |= new[at]
        first_new = int(np.argmax(is_new)) if is_new.any() else len(steps)
        return Rows(steps, columns, first_new)

    def _series(self, name: str) -> tuple[Steps, Floats, NDArray[np.bool_]]:
        if name not in self._of:
            self._of[name] = self._one(name)
        return self._of[name]

    def _one(self, name: str) -> tuple[Steps, Floats, NDArray[np.bool_]]:
        parts = []
        for group in self._history._where[name]:
            steps, values = group.kept()
            new = np.arange(len(steps)) >= group.old_rows
            parts.append((steps, values[group.index[name]], new))
        steps = np.concatenate([p[0] for p in parts])
        steps, at = np.unique(steps, return_index=True)
        values = np.concatenate([p[1] for p in parts])[at]
        return steps, values, np.concatenate([p[2] for p in parts])[at]

    def totals(self, name: str) -> Totals:
        """Raises NotTestable where the run carries no such signal."""
        groups = self._history._where.get(name)
        if not groups:
            raise NotTestable(carries_no(name, kind="signal "))
        parts = sorted((g.totals(name) for g in groups), key=lambda t: t.first_step)
        if len(parts) == 1:
            return parts[0]
        latest = max(parts, key=lambda t: t.last_step)
        some = [p for p in parts if p.finite]
        return Totals(
            count=sum(p.count for p in parts),
            finite=sum(p.finite for p in parts),
            nan=sum(p.nan for p in parts),
            inf=sum(p.inf for p in parts),
            min=min((p.min for p in some), default=float("nan")),
            max=max((p.max for p in some), default=float("nan")),
            sum=sum(p.sum for p in parts),
            first=parts[0].first,
            last=latest.last,
            first_step=parts[0].first_step,
            last_step=latest.last_step,
        )

    def overview(self, name: str) -> Overview:
        """The whole run, thinned; raises NotTestable where the run carries no such signal."""
        groups = self._history._where.get(name)
        if not groups:
            raise NotTestable(carries_no(name, kind="signal "))
        parts = [g.overview(name) for g in groups if g.count]
        if len(parts) == 1:
            return parts[0]
        joined = {
            key: np.concatenate([getattr(p, key) for p in parts])
            for key in Overview.__dataclass_fields__
        }
        order = np.argsort(joined["first_step"], kind="stable")
        return Overview(**{key: value[order] for key, value in joined.items()})

    # audits

    def audit(self, name: str) -> Audit:
        """The newest audit of this name; raises NotTestable where there is none."""
        kept = self._history._audits.get(name)
        if not kept:
            raise NotTestable(carries_no(name, kind="audit "))
        return kept[-1]

    def audits(self, name: str) -> list[Audit]:
        """All kept audits of this name, oldest first; raises NotTestable where there is none."""
        self.audit(name)
        return list(self._history._audits[name])

    def new_audits(self, name: str) -> list[Audit]:
        """Audits of this name not seen by an earlier call.

        Raises:
            NotTestable: there never was one.
        """
        return self.audits(name)[self._history._old_audits.get(name, 0) :]

    def has_audit(self, name: str) -> bool:
        return bool(self._history._audits.get(name))


def history(
    named: Mapping[str, ArrayLike] | None = None,
    /,
    *,
    facts: RunFacts | None = None,
    audits: Iterable[tuple[str, int, Mapping[str, Any]]] = (),
    first_step: int = 1,
    **signals: ArrayLike,
) -> RunHistory:
    """A history written by hand, for examples and tests.

    Args:
        named, signals: samples from `first_step` on, one per step; `__` in a keyword stands for
            `/` (`accuracy__reported=[...]`). Other names go into the dict: `{"a:b/c": [...]}`.
        audits: (name, step, facts).
    """
    run = RunHistory(facts)
    for name, values in {**(named or {}), **signals}.items():
        array = np.asarray(values, np.float64)
        steps = np.arange(first_step, first_step + len(array), dtype=np.int64)
        run.append(Block((name.replace("__", "/"),), steps, array[None, :]))
    for name, step, content in audits:
        run.add_audit(Audit(name, step, content))
    return run
