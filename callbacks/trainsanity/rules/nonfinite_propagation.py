"""NaN or infinity in the outputs, loss, gradients or weights while the numbers shown look fine."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainsanity.rules.comparison import (
    Flags,
    maps,
    merged,
    not_measured,
    number,
    parting,
    streaks,
    text,
    whole,
)
from trainsanity.rules.history import Floats, Rows, RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity, Witness

# In the order in which a step makes them.
STAGES = ("inputs", "outputs", "loss", "gradient", "weights")

UNSEEN = (
    "Outputs and loss of this run are not measured: train a few steps without `jit_compile` to see "
    "what comes first. Start again from a checkpoint before that step."
)

OR_BEFORE = (
    "Or the update before that step broke the weights: clip gradients or lower the learning rate. "
    "The first steps of a run are looked at in full: train again from a checkpoint shortly before."
)


@dataclass(frozen=True)
class NonfinitePropagation(Rule):
    """NaN or infinity runs through the training, or vanishes on its way.

    Compares: NaN and infinite elements in inputs, outputs, loss, gradients and weights of each step
    with each other and with the numbers that Keras shows; layer by layer what enters with what
    leaves.

    Why: a weight that is NaN never heals, so every step after it is wasted, while a metric such as
    accuracy stays a plausible number. A NaN that a layer swallows hides its cause.

    Try: look at the first place named: a division by zero, log(0), a learning rate too high, NaN in
    the data. `keras.config`'s or the backend's NaN check finds the operation.

    Source: same condition as keras.callbacks.TerminateOnNaN; TensorFlow issues 42885 and 44556.
    Counts are exact. With loss scaling, infinite gradients are planned and their step is skipped,
    so gradients are not looked at; one bad batch that leaves the weights finite was skipped.
    """

    id = "nonfinite-propagation"
    severity = Severity.CRITICAL
    needs = ("loss/nonfinite", "outputs/nonfinite", "weights/nonfinite")

    patience: int = 2  # steps in a row, where the weights are finite
    swallowed: int = 3  # batches in a row with NaN in the inputs and none in the outputs

    @staticmethod
    def fires_on() -> RunHistory:
        return _example(bad=12.0)

    @staticmethod
    def quiet_on() -> RunHistory:
        return _example(bad=0.0)

    def check(self, run: RunView) -> Iterable[Finding]:
        stages = [s for s in STAGES if run.has(f"{s}/nonfinite")]
        if not {"outputs", "loss", "weights"} & set(stages):
            # The audit of the first rows may arrive before any step has run.
            swallowing = merged(_swallowing_layers(run))
            if not swallowing:
                raise not_measured(run, "loss/nonfinite")
            yield from swallowing
            return
        if _is_loss_scaled(run) and "gradient" in stages:
            stages.remove("gradient")
        seen = _seen(run, stages)
        found = self._spreading(run, seen) or self._swallowed_inputs(run, stages)
        if found is not None:
            yield found
        yield from merged(_swallowing_layers(run))

    def _spreading(self, run: RunView, seen: _Seen) -> Finding | None:
        rows, bad = seen.rows, seen.bad
        inside: dict[str, Flags] = {
            stage: flags for stage, flags in bad.items() if stage != "inputs"
        }
        ill = np.logical_or.reduce(list(inside.values()))
        long = streaks(ill)
        is_new = np.arange(len(rows)) >= rows.first_new
        for_good = long >= self.patience
        if "weights" in inside:
            for_good |= inside["weights"]
        hits = np.flatnonzero(for_good & is_new)
        if not len(hits):
            return None
        begin, newest = hits[0] - long[hits[0]] + 1, hits[-1]
        where = next(stage for stage in bad if bad[stage][begin])
        shown = _finite_number(run, int(rows.steps[newest]))
        amount = float(seen.amounts[where][begin])
        doubt = seen.doubt(where, int(begin))
        is_later = where in ("gradient", "weights")
        finite_loss = is_later and "loss" in bad and not bad["loss"][begin]
        return Finding(
            subject="training",
            title=f"NaN or infinity in the {_noun(where)} since step {int(rows.steps[begin]):,}",
            message=" ".join(
                sentence
                for sentence in (
                    f"At step {int(rows.steps[begin]):,} the {_noun(where)} hold NaN or infinity "
                    f"({_elements(amount)}).",
                    _spread_to(rows, bad, newest),
                    doubt,
                    "The loss of that step is finite." if finite_loss else "",
                    f"Keras still shows {shown[0]} {number(shown[1])}." if shown else "",
                )
                if sentence
            ),
            witnesses=(
                Witness(f"{where}/nonfinite", amount, "elements"),
                Witness(f"{shown[0]}/reported", shown[1])
                if shown
                else Witness("NaN or infinity that a healthy step has", 0, "elements"),
            ),
            suggestion=_suggestion(where, bad, doubt),
            first_step=int(rows.steps[begin]),
            last_step=int(rows.steps[newest]),
            count=int((ill & is_new).sum()),
            severity=None if shown or finite_loss else Severity.WARNING,
            certainty="Elements are counted, so nothing is allowed.",
        )

    def _swallowed_inputs(self, run: RunView, stages: Collection[str]) -> Finding | None:
        if not {"inputs", "outputs"} <= set(stages):
            return None
        rows = run.rows("inputs/nonfinite", "outputs/nonfinite")
        entered, left = rows["inputs/nonfinite"], rows["outputs/nonfinite"]
        part = parting(rows, entered, left, 0.0, patience=self.swallowed, where=left == 0)
        if part is None:
            return None
        return Finding(
            subject="inputs",
            title="NaN in the inputs, none in the outputs",
            message=f"Since step {part.first_step:,} batches hold NaN or infinity, "
            f"{number(part.shown)} elements in the newest, and the outputs hold none: something "
            "on the way turns them into numbers.",
            witnesses=(
                Witness("inputs/nonfinite", part.shown, "elements"),
                Witness("outputs/nonfinite", part.true, "elements"),
            ),
            suggestion="If a layer fills missing values on purpose, all is well. If not, find the "
            "layer (comparisons and relu-like functions turn NaN into 0) and clean the data.",
            first_step=part.first_step,
            last_step=part.last_step,
            count=part.count,
            severity=Severity.ADVICE,
            certainty="Elements are counted, so nothing is allowed.",
        )


@dataclass(frozen=True)
class _Seen:
    """Steps at which the loss was looked at, or all that was.

    Attributes:
        amounts: stage -> elements at each step; NaN where it was not looked at.
    """

    rows: Rows
    amounts: Mapping[str, Floats]

    @property
    def bad(self) -> dict[str, Flags]:
        return {stage: amounts > 0 for stage, amounts in self.amounts.items()}

    def doubt(self, where: str, begin: int) -> str:
        """What may have come before the first place named, and was not looked at; else empty."""
        before = STAGES[: STAGES.index(where)]
        names = [_noun(s) for s in before if self._is_unseen(s, begin)]
        if where in ("outputs", "loss") and begin > 0 and self._is_unseen("weights", begin - 1):
            names.append("weights after the step before")
        if not names:
            return ""
        return f"Not looked at, so it may have begun there: the {' and the '.join(names)}."

    def _is_unseen(self, stage: str, at: int) -> bool:
        return stage in self.amounts and bool(np.isnan(self.amounts[stage][at]))


def _seen(run: RunView, stages: Sequence[str]) -> _Seen:
    """All stages at the steps of the loss; without it, at those of all."""
    names = {stage: f"{stage}/nonfinite" for stage in stages}
    if "loss" not in stages:
        rows = run.rows(*names.values())
        return _Seen(rows, {stage: rows[name] for stage, name in names.items()})
    rows = run.rows(names["loss"])
    amounts: dict[str, Floats] = {}
    for stage, name in names.items():
        own = run.rows(names["loss"], name)
        amounts[stage] = np.full(len(rows), np.nan)
        amounts[stage][np.searchsorted(rows.steps, own.steps)] = own[name]
    return _Seen(rows, amounts)


def _swallowing_layers(run: RunView) -> Iterator[Finding]:
    if not run.has_audit("nonfinite_flow"):
        return
    for audit in run.new_audits("nonfinite_flow"):
        born = False
        for layer in maps(audit.facts, "layers"):
            entering, leaving = whole(layer, "entering") or 0, whole(layer, "leaving") or 0
            if entering and not leaving:
                yield _swallowing(layer, entering, born, audit.step)
            born = born or (leaving > 0 and not entering)


def _swallowing(layer: Mapping[str, Any], entering: int, born: bool, step: int) -> Finding:
    name = text(layer, "name") or "?"
    site = f", {text(layer, 'site')}" if text(layer, "site") else ""
    origin = "made inside the model" if born else "that came with the data"
    return Finding(
        subject=name,
        title=f"{name} turns NaN into numbers",
        message=f"{number(entering)} NaN or infinite elements, {origin}, enter `{name}` "
        f"({text(layer, 'class') or 'layer'}{site}) and none leaves it. From there on nothing "
        "looks wrong.",
        witnesses=(
            Witness(f"entering {name}", entering, "elements"),
            Witness(f"leaving {name}", 0, "elements"),
        ),
        suggestion="Find the layer before it that makes them. Write activations so that NaN stays "
        "NaN: `ops.relu` does, `where(x > 0, x, 0)` does not.",
        first_step=step,
        last_step=step,
        severity=Severity.WARNING if born else Severity.ADVICE,
        certainty="Elements are counted, so nothing is allowed.",
    )


def _is_loss_scaled(run: RunView) -> bool:
    if not run.has_audit("compile"):
        return False
    optimizer = run.audit("compile").facts.get("optimizer")
    return isinstance(optimizer, Mapping) and "LossScale" in (text(optimizer, "class") or "")


def _finite_number(run: RunView, step: int) -> tuple[str, float] | None:
    """A number that Keras shows at this step as if nothing had happened."""
    for name in run.names("*/reported"):
        rows = run.rows(name)
        at = np.flatnonzero(rows.steps == step)
        if len(at) and np.isfinite(rows[name][at[0]]) and not name.startswith("val_"):
            return name.removesuffix("/reported"), float(rows[name][at[0]])
    return None


def _elements(amount: float) -> str:
    return "1 element" if amount == 1 else f"{number(amount)} elements"


def _noun(stage: str) -> str:
    return {"gradient": "gradients"}.get(stage, stage)


def _spread_to(rows: Rows, bad: Mapping[str, Flags], newest: int) -> str:
    ill = [_noun(stage) for stage in bad if bad[stage][newest]]
    if not ill:
        return ""
    return f"At step {int(rows.steps[newest]):,} some are in the {', '.join(ill)}."


def _suggestion(where: str, bad: Mapping[str, Flags], doubt: str) -> str:
    if "loss" not in bad and where != "inputs":
        return UNSEEN
    return f"{_advice(where)} {OR_BEFORE}" if doubt else _advice(where)


def _advice(stage: str) -> str:
    if stage == "inputs":
        return "Clean the data: that batch holds NaN or infinity. Start again from a checkpoint."
    if stage == "outputs":
        return (
            "A layer makes NaN in the forward pass: look for a division, log or exp without a "
            "guard, or lower the learning rate. Start again from a checkpoint before that step."
        )
    if stage == "loss":
        return "The outputs are finite, the loss is not: guard log(0) and 0/0 in the loss."
    return (
        "The loss is finite, its gradient is not: sqrt and norm have none at 0, `where` passes NaN "
        "from the branch not taken. Clip gradients, and start again from a checkpoint."
    )


def _example(*, bad: float) -> RunHistory:
    return history(
        outputs__nonfinite=[0.0, 0.0, 0.0, bad],
        loss__nonfinite=[0.0, 0.0, 0.0, float(bad > 0)],
        gradient__nonfinite=[0.0, 0.0, bad, bad],
        weights__nonfinite=[0.0, 0.0, bad, bad],
        accuracy__reported=[0.4, 0.5, 0.5, 0.4],
    )
