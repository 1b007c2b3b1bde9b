"""Ids beyond an embedding's table, or labels beyond the classes of the output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from trainsanity.rules.comparison import (
    Parting,
    name_of,
    number,
    parting,
    share,
    unit_roundoff,
)
from trainsanity.rules.history import Floats, RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness


@dataclass(frozen=True)
class IndexRange(Rule):
    """Ids or labels lie outside the table they are looked up in.

    Compares: the largest and smallest id of each batch with the rows of the embedding that reads
    it; ids of a floating-point dtype with the whole numbers that Keras makes of them; and the
    largest and smallest label with the classes of the output.

    Why: on plain CPU TensorFlow such an id raises an error. On a GPU, under `jit_compile=True` and
    on JAX nothing is said: words share a row, read zeros or NaN, and the model learns them anyhow.

    Try: `input_dim` = largest id + 1, so vocabulary size + 1 where ids begin at 1 and 0 is padding.

    Source: keras/src/layers/core/embedding.py, `tf.gather`, `jax.numpy.take`. Both are whole
    numbers, exact in float32 up to 2^24. Negative ids are read from the end of the table, which may
    be meant: a warning.
    """

    id = "index-range"
    severity = Severity.CRITICAL
    needs = ("embedding:*/id_max", "embedding:*/id_min", "embedding:*/input_dim")

    @staticmethod
    def fires_on() -> RunHistory:
        return _example(largest=112.0)

    @staticmethod
    def quiet_on() -> RunHistory:
        return _example(largest=99.0)

    def check(self, run: RunView) -> Iterable[Finding]:
        embeddings = [q for q in run.quantities("id_max", "id_min", "input_dim") if ":" in q]
        labels = [q for q in run.quantities("max", "min", "classes") if q.startswith("labels")]
        if not embeddings and not labels:
            raise NotTestable("the model has no embedding, and its labels are no class numbers")
        for quantity in embeddings:
            yield from _ids(run, quantity)
            yield from _cut_off(run, quantity)
        for quantity in labels:
            yield from _labels(run, quantity)


def _ids(run: RunView, quantity: str) -> Iterator[Finding]:
    names = [f"{quantity}/{word}" for word in ("id_max", "id_min", "input_dim")]
    rows = run.rows(*names)
    most, least, size = (rows[name] for name in names)
    above = parting(rows, np.maximum(most, size - 1), size - 1, _inexact(size))
    # Keras reads id -1 as the last row, so ids down to -size find one.
    below = parting(rows, np.minimum(least, -size), -size, _inexact(size))
    negative = parting(rows, np.minimum(least, 0.0), np.zeros_like(least), 0.0)
    layer = name_of(quantity)
    if above is not None:
        yield _beyond(run, layer, names, above, float(size[-1]))
    elif below is not None:
        yield _beyond(run, layer, [names[1], names[0], names[2]], below, float(size[-1]))
    elif negative is not None:
        yield _negative(layer, names[1], negative, float(size[-1]))


def _cut_off(run: RunView, quantity: str) -> Iterator[Finding]:
    """Ids that are no whole numbers, of which Keras drops what follows the point."""
    name = f"{quantity}/not_whole"
    if not run.has(name):
        return
    rows = run.rows(name)
    part = parting(rows, rows[name], np.zeros_like(rows[name]), 0.0)
    if part is None:
        return
    layer = name_of(quantity)
    yield Finding(
        subject=f"{layer}: whole numbers",
        title=f"{share(part.shown)} of the ids of embedding {layer} are no whole numbers",
        message=f"Since step {part.first_step:,} the embedding `{layer}` is given numbers with "
        f"digits behind the point, in this batch {share(part.shown)} of all. Keras cuts them off: "
        "0.95 reads row 0, so that different inputs read the same row.",
        witnesses=(Witness(name, part.shown), Witness("ids that may be cut off", 0.0)),
        suggestion="Look for a scaling or normalization of the ids on their way to the model; an "
        "embedding takes whole numbers, best of an integer dtype.",
        first_step=part.first_step,
        last_step=part.last_step,
        count=part.count,
        severity=Severity.WARNING,
        certainty="Whole numbers are exact in float32 up to 2^24; none above has such digits.",
    )


def _beyond(run: RunView, layer: str, names: list[str], part: Parting, size: float) -> Finding:
    outside = f"embedding:{layer}/out_of_range"
    affected = run.totals(outside).last if run.has(outside) else None
    of_batch = (
        f" In the newest batch {share(affected)} of the ids are beyond it." if affected else ""
    )
    rows = number(size)
    return Finding(
        subject=layer,
        title=f"Ids beyond the table of embedding {layer}",
        message=f"The embedding `{layer}` has {rows} rows, for ids 0 to {number(size - 1)}. Since "
        f"step {part.first_step:,} ids up to {number(part.shown)} are looked up.{of_batch} "
        f"{_read_instead(run, size)}",
        witnesses=(
            Witness(names[0], part.shown, "ids"),
            Witness(names[2], size, "ids"),
            *([Witness(outside, affected)] if affected is not None else []),
        ),
        suggestion=f"Set input_dim of `{layer}` to the largest id + 1, at least "
        f"{number(abs(part.shown) + 1)}, or cut the vocabulary to {rows} words. Weights trained so "
        f"far: rows 0 to {number(size - 2)} can be copied into the larger table; row "
        f"{number(size - 1)} may have learnt from all words beyond it, so start it and the new "
        "rows afresh.",
        first_step=part.first_step,
        last_step=part.last_step,
        count=part.count,
        certainty="Both are whole numbers, so nothing is allowed between them.",
    )


def _negative(layer: str, name: str, part: Parting, size: float) -> Finding:
    return Finding(
        subject=layer,
        title=f"Negative ids in embedding {layer}",
        message=f"Since step {part.first_step:,} the embedding `{layer}` looks up ids down to "
        f"{number(part.shown)}. Keras counts them from the end of the table: "
        f"{number(part.shown)} reads row {number(size + part.shown)}, the row of another word.",
        witnesses=(Witness(name, part.shown, "ids"), Witness("smallest id of the table", 0, "ids")),
        suggestion="Map missing words to an id of their own (0 or 1) before they reach the model.",
        first_step=part.first_step,
        last_step=part.last_step,
        count=part.count,
        severity=Severity.WARNING,
        certainty="Both are whole numbers, so nothing is allowed between them.",
    )


def _labels(run: RunView, quantity: str) -> Iterator[Finding]:
    names = [f"{quantity}/{word}" for word in ("max", "min", "classes")]
    rows = run.rows(*names)
    most, least, classes = (rows[name] for name in names)
    several = classes >= 2  # one column is no list of classes
    above = parting(rows, np.maximum(most, classes - 1), classes - 1, 0.0, where=several)
    below = parting(rows, np.minimum(least, 0.0), np.zeros_like(least), 0.0, where=several)
    part = above or below
    if part is None:
        return
    output = name_of(quantity)
    of = f" of {output}" if output else ""
    yield Finding(
        subject=f"labels{of}",
        title=f"Labels{of} beyond the classes of the output",
        message=f"The output{of} has {number(float(classes[-1]))} classes, 0 to "
        f"{number(float(classes[-1]) - 1)}. Since step {part.first_step:,} there are labels of "
        f"{number(part.shown)}: for them the loss is NaN, 0, or that of another class, depending "
        "on the device.",
        witnesses=(
            Witness(names[0] if above else names[1], part.shown, "class"),
            Witness(names[2], float(classes[-1]), "classes"),
        ),
        suggestion="Count labels from 0, give the last layer one unit for each class, and name "
        "labels that mean 'none' with ignore_class= of the loss.",
        first_step=part.first_step,
        last_step=part.last_step,
        count=part.count,
        severity=None if above else Severity.WARNING,
        certainty="Both are whole numbers, so nothing is allowed between them.",
    )


def _read_instead(run: RunView, size: float) -> str:
    """What such an id finds, as far as backend and compilation tell."""
    facts = run.audit("compile").facts if run.has_audit("compile") else {}
    last = number(size - 1)
    if run.facts.backend == "jax":
        return "JAX gives NaN for them."
    if run.facts.backend == "tensorflow" and facts.get("jit_compile") is True:
        return f"Compiled by XLA, all of them read the last row, {last}: they share one word."
    if run.facts.backend == "tensorflow":
        return f"On a GPU they read zeros, compiled by XLA the last row, {last}."
    return f"Depending on the device they read zeros, NaN or the last row, {last}."


def _inexact(size: Floats) -> Floats:
    """Beyond 2^24 float32 no longer holds every whole number; below, nothing is allowed."""
    return np.where(size < 2.0**24, 0.0, 2 * unit_roundoff("float32") * size)


def _example(*, largest: float) -> RunHistory:
    return history(
        {
            "embedding:words/id_max": [98.0, largest, largest],
            "embedding:words/id_min": [0.0, 0.0, 0.0],
            "embedding:words/input_dim": [100.0, 100.0, 100.0],
            "embedding:words/out_of_range": [0.0, *[0.07 if largest > 99 else 0.0] * 2],
        }
    )
