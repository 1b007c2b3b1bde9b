"""How rules compare two witnesses: rounding, persistence, and numbers in words.

A contradiction is called one only where rounding cannot explain it. The bounds here are worst cases
of floating-point arithmetic, not taste; their source is N. J. Higham, *Accuracy and Stability of
Numerical Algorithms*, 2nd ed. (2002), chapters 2 to 4, and Higham and Mary, *A new approach to
probabilistic rounding error analysis*, SIAM J. Sci. Comput. 41 (2019), for sums inside one batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainsanity.rules.absent import STEPS, carries_no, comes_with
from trainsanity.rules.history import Floats, Rows, RunView, Steps
from trainsanity.rules.rule import Finding, NotTestable, Severity, Witness
from trainsanity.wire import Audit

Flags = NDArray[np.bool_]

# Largest relative error of one rounding: 2^-p for p significant bits (Higham, table 2.1).
UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}

# Roundings inside one batch. A sum of N terms errs by at most λ·√N roundings (Higham and Mary:
# λ = 4 fails for one sum in 3000); N = 2^16 positions in a batch.
BATCH_ROUNDINGS = 1024

# In half precision backends sum in float32 and round the result: what was measured of the mean of
# up to 16,384 values is below 2 units on all of them.
HALF = frozenset({"float16", "bfloat16"})
HALF_BATCH_ROUNDINGS = 2

# Means of quantities of order one, such as a cross-entropy near zero: log(p) near p = 1 errs by a
# rounding of 1, not of the result; sixteen of them, in units of the unit roundoff.
ABSOLUTE_ROUNDINGS = 16

# Rows in a row that will do for a longer patience, where probes have turns and the rows span as
# many steps; our own judgement.
SPREAD_ROWS = 20


# Rounding


def unit_roundoff(dtype: str = "float32") -> float:
    """Relative error of one rounding; float32 where the name is unknown."""
    return UNIT_ROUNDOFF.get(dtype.removeprefix("mixed_"), UNIT_ROUNDOFF["float32"])


def accumulated_rounding(operations: ArrayLike, dtype: str = "float32") -> Floats:
    """Largest relative error of a chain of roundings: n·u / (1 − n·u), Higham, lemma 3.1.

    Args:
        operations: n, 0 or more; shape (any).

    Returns:
        Unitless, same shape; infinite where n·u reaches 1 and nothing can be said any more.
    """
    error = np.asarray(operations, np.float64) * unit_roundoff(dtype)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error < 1.0, error / (1.0 - error), np.inf)


def mean_tolerance(
    *values: ArrayLike, batches: ArrayLike = 1, dtype: str = "float32", witnesses: int = 2
) -> Floats:
    """How far two honest means over the same batches can lie apart by rounding alone.

    Keras' `Mean` keeps a total and a count in one float each and adds to both at every batch, so
    the relative error grows with the number of batches: 2·n additions, the sums inside the batches,
    a division and a store. A constant value makes every rounding err to the same side, so the worst
    case is real.

    Args:
        values: the means compared, and the values averaged where they can cancel; broadcast
            together. The largest absolute value is the scale.
        batches: n, batches averaged.
        witnesses: how many of the two were made by such a chain: 1 where the other is exact.

    Returns:
        Largest honest gap, in the unit of the values.
    """
    scale = np.max(
        np.broadcast_arrays(*[np.abs(np.asarray(v, np.float64)) for v in values]), axis=0
    )
    inside, absolute = BATCH_ROUNDINGS, ABSOLUTE_ROUNDINGS
    if dtype in HALF:  # a cross-entropy errs by a rounding of its probability, which is near one
        inside, absolute = HALF_BATCH_ROUNDINGS, 1
    chain = accumulated_rounding(2.0 * np.asarray(batches) + inside + 2, dtype)
    floor = absolute * unit_roundoff(dtype)
    with np.errstate(invalid="ignore"):  # an infinite scale leaves nothing to compare
        tolerance: Floats = witnesses * (scale * chain + floor)
    return tolerance


def relative_gap(a: ArrayLike, b: ArrayLike) -> Floats:
    """|a − b| / max(|a|, |b|), 0 to 2; 0 where both are 0, NaN where one is not finite."""
    left, right = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    scale = np.maximum(np.abs(left), np.abs(right))
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(left - right)
        return np.where(np.isfinite(scale), gap / np.where(scale > 0, scale, 1.0), np.nan)


# Persistence


def finite_rows(rows: Rows) -> Rows:
    """The rows in which every column is finite."""
    keep = np.ones(len(rows), bool)
    for column in rows.columns.values():
        keep &= np.isfinite(column)
    columns = {name: column[keep] for name, column in rows.columns.items()}
    return Rows(rows.steps[keep], columns, int(keep[: rows.first_new].sum()))


def streaks(flags: Flags) -> NDArray[np.int64]:
    """Length of the unbroken row of Trues that ends at each element; shape (n,)."""
    at = np.arange(len(flags))
    last_false = np.maximum.accumulate(np.where(flags, -1, at)) if len(flags) else at
    return np.asarray(at - last_false, np.int64)


def trailing_mean(values: Floats, window: int) -> Floats:
    """Mean over the last `window` elements at each element; NaN before there are that many."""
    result = np.full(len(values), np.nan)
    if window < 1:
        raise ValueError(f"window must be at least 1. Received: window={window}")
    if len(values) >= window:
        frames = np.lib.stride_tricks.sliding_window_view(values, window)
        result[window - 1 :] = frames.mean(axis=1)
    return result


@dataclass(frozen=True)
class Parting:
    """Two witnesses that part, in the rows looked at.

    Attributes:
        shown, true: newest values at which they part: what was shown or declared, and what is true.
        tolerance: largest honest gap there, in the same unit.
        first_step: begin of the unbroken streak; may lie in rows shown to the rule before.
        last_step: newest step at which they part.
        count: rows at which they part, among the new ones.
    """

    shown: float
    true: float
    tolerance: float
    first_step: int
    last_step: int
    count: int

    @property
    def gap(self) -> float:
        return abs(self.shown - self.true)

    @property
    def times(self) -> float:
        """How many tolerances the gap is; infinite for a tolerance of 0."""
        return self.gap / self.tolerance if self.tolerance > 0 else math.inf

    def certainty(self, reason: str) -> str:
        """The tolerance and by how much it was exceeded, in words.

        Args:
            reason: what the tolerance allows for, e.g. "float32 rounding over 120 batches".
        """
        if self.tolerance <= 0:
            return f"The gap is {number(self.gap)}; none is allowed: {reason}."
        return (
            f"The gap is {number(self.gap)}, {times_in_words(self.times)} the "
            f"{number(self.tolerance, digits=2)} allowed for {reason}."
        )


def parting(
    rows: Rows,
    shown: Floats,
    true: Floats,
    tolerance: ArrayLike,
    *,
    patience: int = 1,
    where: Flags | None = None,
) -> Parting | None:
    """Where two witnesses part for at least `patience` rows in a row, the last of them new.

    Rows with a number that is not finite are left out: they say nothing about agreement, and
    `nonfinite-propagation` is about them. The answer does not depend on how the rows were cut into
    packets.

    Args:
        rows: whose steps and news they are; n rows.
        shown, true: shape (n,).
        tolerance: largest honest gap; broadcast to (n,).
        patience: of more than `SPREAD_ROWS`, so many rows will do that span as many steps.
        where: rows to look at; all if None.
    """
    allowed = np.broadcast_to(np.asarray(tolerance, np.float64), shown.shape)
    usable = np.isfinite(shown) & np.isfinite(true) & ~np.isnan(allowed)
    if where is not None:
        usable &= where
    at = np.flatnonzero(usable)
    parted = np.abs(shown[at] - true[at]) > allowed[at]
    long = streaks(parted)
    is_new = at >= rows.first_new
    begins = at[np.arange(len(at)) - np.maximum(long, 1) + 1]
    spanned = np.where(long >= SPREAD_ROWS, rows.steps[at] - rows.steps[begins] + 1, long)
    hits = np.flatnonzero((spanned >= patience) & is_new)
    if not len(hits):
        return None
    newest = at[hits[-1]]
    begin = begins[hits[0]]
    return Parting(
        shown=float(shown[newest]),
        true=float(true[newest]),
        tolerance=float(allowed[newest]),
        first_step=int(rows.steps[begin]),
        last_step=int(rows.steps[newest]),
        count=int((parted & is_new).sum()),
    )


def batches_in_epoch(run: RunView, steps: Steps) -> NDArray[np.int64]:
    """How many batches of its epoch have gone in at each step, this one included; shape of `steps`.

    An upper bound: where an epoch's end is not known (yet), batches are counted from the last end
    known.
    """
    ends = [0]
    if run.has_audit("epoch"):
        ends += [
            last for a in run.audits("epoch") if (last := whole(a.facts, "last_step")) is not None
        ]
    known = np.unique(np.asarray(ends, np.int64))
    begin = known[np.maximum(np.searchsorted(known, steps, side="left") - 1, 0)]
    return np.asarray(np.maximum(steps - begin, 1), np.int64)


# Findings


def finding(
    part: Parting,
    *,
    subject: str,
    title: str,
    message: str,
    suggestion: str,
    names: tuple[str, str],
    because: str = "",
    certainty: str = "",
    unit: str = "1",
    also: tuple[Witness, ...] = (),
    severity: Severity | None = None,
) -> Finding:
    """A finding about two witnesses that part.

    Args:
        names: of the two witnesses, the one shown first.
        because: what the tolerance allows for; goes into the certainty.
        certainty: instead of the sentence made from `because`, e.g. for a threshold.
        also: further witnesses.
    """
    return Finding(
        subject=subject,
        title=title,
        message=message,
        witnesses=(Witness(names[0], part.shown, unit), Witness(names[1], part.true, unit), *also),
        suggestion=suggestion,
        first_step=part.first_step,
        last_step=part.last_step,
        count=part.count,
        severity=severity,
        certainty=certainty or part.certainty(because),
    )


def finding_of(
    audit: Audit,
    subject: str,
    title: str,
    message: str,
    witnesses: tuple[Witness, ...],
    suggestion: str,
    *,
    certainty: str,
    severity: Severity | None = None,
) -> Finding:
    """A finding about what one audit says."""
    return Finding(
        subject=subject,
        title=title,
        message=message,
        witnesses=witnesses,
        suggestion=suggestion,
        first_step=audit.step,
        last_step=audit.step,
        severity=severity,
        certainty=certainty,
    )


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """One finding per subject, as several audits may find the same: the worst, of these the newest.

    It carries the steps and the count of all.
    """
    by_subject: dict[str, Finding] = {}
    for found in findings:
        earlier = by_subject.setdefault(found.subject, found)
        if earlier is found:
            continue
        chosen = found if _badness(found) <= _badness(earlier) else earlier
        by_subject[found.subject] = replace(
            chosen,
            first_step=min(earlier.first_step, found.first_step),
            last_step=max(earlier.last_step, found.last_step),
            count=earlier.count + found.count,
            replaces=tuple(dict.fromkeys((*earlier.replaces, *found.replaces))),
        )
    return list(by_subject.values())


def _badness(found: Finding) -> int:
    """0 for the worst: a finding without a severity has its rule's, and the others are milder."""
    return 0 if found.severity is None else 1 + found.severity.rank


# What a run carries; facts of audits come from outside and may lack anything


def quantities_of(run: RunView, kind: str, *witnesses: str) -> list[str]:
    """Quantities `kind` and `kind:<name>` that carry all these witnesses, sorted.

    Raises:
        NotTestable: there is none; the text gives the probe's reason where it left one.
    """
    found = [
        q
        for q in run.quantities(*witnesses)
        if q == kind or q.startswith(f"{kind}:") or kind == "*"
    ]
    if not found:
        every = "<metric>" if kind == "*" else kind
        raise not_measured(run, *(f"{every}/{witness}" for witness in witnesses))
    return found


def not_measured(run: RunView, *signals: str) -> NotTestable:
    """Why a rule cannot speak: these were not measured, with the probe's reason if it left one."""
    reasons: Mapping[str, Any] = {}
    if run.has_audit("columns"):
        given = run.audit("columns").facts.get("not_testable")
        reasons = given if isinstance(given, Mapping) else {}
    for signal in signals:
        if signal in reasons:
            return NotTestable(f"{signal}: {reasons[signal]}")
    missing = [signal for signal in signals if not _carries(run, signal)] or list(signals)
    if "taps" in reasons and comes_with(*missing) in (None, STEPS):
        return NotTestable(f"{missing[0]} is measured in the step: {reasons['taps']}")
    return NotTestable(carries_no(*signals))


def _carries(run: RunView, signal: str) -> bool:
    quantity, _, witness = signal.rpartition("/")
    return bool(run.quantities(witness)) if quantity == "<metric>" else run.has(signal)


def why_thinned(run: RunView, signal: str) -> str | None:
    """Why a signal was not measured at every batch; None where it was."""
    for audit in run.audits("thinned") if run.has_audit("thinned") else []:
        if signal in (text(audit.facts, "signal") or "").split(", "):
            return f"{signal} was not measured at every batch: {text(audit.facts, 'reason')}"
    return None


def name_of(quantity: str) -> str:
    """The part behind the colon of `mask:out1` or `embedding:words`; empty where there is none."""
    return quantity.partition(":")[2]


def measured(run: RunView, name: str) -> list[Audit]:
    """New audits of this name that could be made.

    Raises:
        NotTestable: there is none, or none could ever be made; the text is the probe's reason.
    """
    every = run.audits(name)
    if all(text(audit.facts, "not_testable") for audit in every):
        raise NotTestable(text(every[-1].facts, "not_testable") or "")
    return [a for a in run.new_audits(name) if not text(a.facts, "not_testable")]


def whole(facts: Mapping[str, Any], key: str) -> int | None:
    """An integer of an audit; None where it is missing, null or something else."""
    value = facts.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def real(facts: Mapping[str, Any], key: str) -> float | None:
    """A number of an audit, NaN and infinities too; None where it is missing or something else."""
    value = facts.get(key)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and value is not None else None


def text(facts: Mapping[str, Any], key: str) -> str | None:
    """A text of an audit; None where it is missing, empty or something else."""
    value = facts.get(key)
    return value if isinstance(value, str) and value else None


def maps(facts: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """A list of maps of an audit; empty where it is missing."""
    value = facts.get(key)
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []


# Numbers for people


def number(value: float, digits: int = 3) -> str:
    """A number with so many significant digits: `0.56`, `12,345`, `1.2e-07`, `NaN`."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinity" if value > 0 else "-infinity"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1e15:
        return f"{value:.{digits - 1}e}"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def times_in_words(factor: float) -> str:
    """`1.6 times`, `230 times`: by how much a tolerance was exceeded, as exactly as it matters."""
    if factor >= 1e6:
        return "more than a million times"
    return f"{number(float(f'{factor:.1e}'), digits=2)} times"


def two_numbers(a: float, b: float, digits: int = 3) -> tuple[str, str]:
    """Both numbers with as many digits as it takes to tell them apart, at least `digits`."""
    for more in range(digits, 17):
        left, right = number(a, more), number(b, more)
        if left != right or a == b:
            return left, right
    return repr(a), repr(b)


def share(value: float) -> str:
    """A share as a percentage: `34 %`, `0.12 %`; never 0 % or 100 % where it is not."""
    if not math.isfinite(value) or value in (0.0, 1.0):
        return f"{number(100.0 * value)} %" if math.isfinite(value) else number(value)
    for digits in range(2, 17):
        if float(shown := f"{100.0 * value:.{digits}g}") not in (0.0, 100.0):
            return f"{shown} %"
    return f"{100.0 * value!r} %"


def steps_in_words(first: int, last: int) -> str:
    """`at step 3`, or `from step 3 to step 90`."""
    return f"at step {first:,}" if first == last else f"from step {first:,} to step {last:,}"
