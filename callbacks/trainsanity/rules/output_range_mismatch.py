"""The loss expects probabilities and gets logits, or the other way round."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trainsanity.rules.comparison import (
    Parting,
    maps,
    not_measured,
    number,
    parting,
    real,
    relative_gap,
    share,
    text,
    two_numbers,
    unit_roundoff,
    whole,
)
from trainsanity.rules.history import Rows, RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.wire import Audit


@dataclass(frozen=True)
class OutputRangeMismatch(Rule):
    """What the outputs are and what the loss takes them for differ.

    Compares: the range and the sums of the outputs with what the compiled loss was told they are:
    probabilities, or logits (`from_logits=True`), with the thresholds of metrics, which are
    probabilities, and, behind a softmax, with 1; and the crossentropy that is compiled with the
    same of the bare outputs, where the model ends in the activation of the other kind.

    Why: logits taken for probabilities are clipped to 0..1, and most of the gradient is gone.
    Probabilities taken for logits go through softmax twice, which flattens them. Both train, badly.
    Keras on TensorFlow takes what is before a softmax for logits of a sigmoid, where the loss is
    binary: what is trained is then not what the model puts out. An accuracy of logits with the
    usual threshold of 0.5 counts all between 0 and 0.5 for the other class.

    Try: either a softmax or sigmoid at the end, or `from_logits=True` in the loss, not both; with
    logits, metrics with `threshold=0.0`, or `from_logits=True` where they have it.

    Source: keras/src/backend/*/nn.py, categorical_crossentropy and binary_crossentropy;
    keras/src/metrics/accuracy_metrics.py, BinaryAccuracy. Outputs may
    lie in 0..1 by chance early on, so that alone says nothing: the sums must be 1 in every batch of
    a window, or the last layer must be known to end in a probability.
    """

    id = "output-range-mismatch"
    severity = Severity.WARNING
    needs = ("outputs*/min", "outputs*/max", "audit:columns")

    outside: int = 3  # batches in a row with outputs that are no probabilities
    inside: int = 50  # batches in a row with outputs that are all probabilities
    material: float = 0.05  # of the loss: gap between the loss compiled and that of the outputs
    roundings: float = 16.0  # of a sum or a softmax, in roundoffs of the outputs times √classes

    @staticmethod
    def fires_on() -> RunHistory:
        return _example(least=-3.0, most=4.5)

    @staticmethod
    def quiet_on() -> RunHistory:
        return _example(least=0.0, most=1.0)

    def check(self, run: RunView) -> Iterable[Finding]:
        yield from self._crossed(run)
        yield from self._ranges(run)

    def _crossed(self, run: RunView) -> Iterator[Finding]:
        for audit in run.new_audits("logits") if run.has_audit("logits") else []:
            for row in maps(audit.facts, "crossed"):
                shown, own = real(row, "shown"), real(row, "of_outputs")
                if shown is None or own is None or not relative_gap(shown, own) > self.material:
                    continue
                yield _crossed_finding(audit, row, shown, own, self.material)

    def _ranges(self, run: RunView) -> Iterable[Finding]:
        if not run.has_audit("columns"):
            raise not_measured(run, "outputs/min")
        every = maps(run.audit("columns").facts, "outputs")
        outputs = [
            (_quantity(facts, alone=len(every) == 1), facts)
            for facts in every
            if isinstance(facts.get("from_logits"), bool)
        ]
        if not outputs:
            raise NotTestable("no compiled loss says whether it takes probabilities or logits")
        measured = [(q, facts) for q, facts in outputs if run.has(f"{q}/min", f"{q}/max")]
        if not measured:
            raise not_measured(run, "outputs/min", "outputs/max")
        for quantity, facts in measured:
            yield from self._of_another_axis(run, quantity, facts)
            if facts["from_logits"]:
                yield from self._taken_for_logits(run, quantity, facts)
                yield from self._logits_in_metrics(run, quantity, facts)
            else:
                yield from self._taken_for_probabilities(run, quantity, facts)

    def _taken_for_probabilities(
        self, run: RunView, quantity: str, facts: Mapping[str, Any]
    ) -> Iterator[Finding]:
        names = f"{quantity}/min", f"{quantity}/max"
        rows = run.rows(*names)
        most, slack = rows[names[1]], self._slack(facts)
        part = self._below_zero(rows, names[0], slack)
        name, limit = names[0], 0.0
        if part is None and "binary" in (text(facts, "loss") or ""):
            # Keras divides the outputs of a categorical loss by their sum, so these may exceed 1.
            one = np.ones_like(most)
            part = parting(rows, np.maximum(most, 1.0), one, slack, patience=self.outside)
            name, limit = names[1], 1.0
        if part is None:
            return
        yield _finding(
            facts,
            part,
            (Witness(name, part.shown), Witness("bound of a probability", limit)),
            title="The loss takes logits for probabilities",
            message=f"{_loss(facts)} was told to expect probabilities, 0 to 1 "
            f"(from_logits=False). Since step {part.first_step:,} the outputs reach "
            f"{number(part.shown)}. Keras clips them, and what is clipped gets no gradient.",
            suggestion="Pass from_logits=True to the loss, or end the model in softmax or sigmoid.",
        )

    def _taken_for_logits(
        self, run: RunView, quantity: str, facts: Mapping[str, Any]
    ) -> Iterator[Finding]:
        names = [f"{quantity}/min", f"{quantity}/max"]
        sums = [f"{quantity}/sum_min", f"{quantity}/sum_max"]
        has_sums = run.has(*sums)
        rows = run.rows(*names, *(sums if has_sums else ()))
        slack = self._slack(facts)
        is_share = (rows[names[0]] >= -slack) & (rows[names[1]] <= 1 + slack)
        ends = text(facts, "activation")
        if has_sums:
            is_share &= (rows[sums[0]] >= 1 - slack) & (rows[sums[1]] <= 1 + slack)
        elif ends not in ("sigmoid", "hard_sigmoid"):
            return
        part = parting(
            rows, is_share.astype(np.float64), np.zeros(len(rows)), 0.0, patience=self.inside
        )
        if part is None:
            return
        what = "lie between 0 and 1 and sum to 1" if has_sums else "lie between 0 and 1"
        healed = run.facts.backend == "tensorflow"
        yield _finding(
            facts,
            part,
            (
                Witness("from_logits declared", "True", "flag"),
                Witness(names[1], float(rows[names[1]][-1])),
                Witness(
                    (sums if has_sums else names)[0],
                    float(rows[(sums if has_sums else names)[0]][-1]),
                ),
            ),
            title="The loss takes probabilities for logits",
            message=f"{_loss(facts)} was told to expect logits (from_logits=True). Since step "
            f"{part.first_step:,} all outputs {what}: they are probabilities already"
            + (f", by the {ends} at the end." if ends else ".")
            + (
                " Keras on TensorFlow finds the logits behind a plain softmax and uses those; "
                "other backends apply softmax twice."
                if healed
                else " Softmax is applied twice."
            ),
            suggestion="Leave out from_logits=True, or the softmax or sigmoid of the last layer.",
            severity=Severity.ADVICE if healed else None,
        )

    def _of_another_axis(
        self, run: RunView, quantity: str, facts: Mapping[str, Any]
    ) -> Iterator[Finding]:
        """A softmax whose classes do not sum to 1: it goes along another axis than the loss."""
        names = f"{quantity}/sum_min", f"{quantity}/sum_max"
        is_softmax = text(facts, "activation") == "softmax" and facts.get("axis") in (None, -1)
        if not (is_softmax and "categorical" in (text(facts, "loss") or "") and run.has(*names)):
            return
        rows = run.rows(*names)
        least, most = rows[names[0]], rows[names[1]]
        furthest = np.where(np.abs(least - 1) > np.abs(most - 1), least, most)
        one = np.ones_like(furthest)
        part = parting(rows, furthest, one, self._slack(facts), patience=self.outside)
        if part is None:
            return
        yield _finding(
            facts,
            part,
            (Witness("sum over the classes", part.shown), Witness("sum of probabilities", 1.0)),
            title=f"Probabilities of the classes sum to {number(part.shown)}",
            message=f"The model ends in softmax, and {_loss(facts)[0].lower() + _loss(facts)[1:]} "
            "reads the classes along the last axis. Since step "
            f"{part.first_step:,} the outputs sum to {number(part.shown)} along it instead of 1: "
            "the softmax goes along another axis, as over time. "
            "Keras divides by the sum, so that another model is trained than the one whose "
            "outputs you get.",
            suggestion="Use softmax along the last axis (axis=-1), as the last layer.",
        )

    def _logits_in_metrics(
        self, run: RunView, quantity: str, facts: Mapping[str, Any]
    ) -> Iterator[Finding]:
        name = f"{quantity}/min"
        part = self._below_zero(run.rows(name), name, self._slack(facts))
        for metric in maps(run.audit("columns").facts, "metrics") if part else []:
            threshold = real(metric, "threshold")
            if part and threshold is not None and metric.get("output") == facts.get("name"):
                yield _metric_finding(facts, text(metric, "key") or "metric", part, threshold, name)

    def _below_zero(self, rows: Rows, name: str, slack: float) -> Parting | None:
        least = rows[name]
        zero = np.zeros_like(least)
        return parting(rows, np.minimum(least, 0.0), zero, slack, patience=self.outside)

    def _slack(self, facts: Mapping[str, Any]) -> float:
        shape = facts.get("shape")
        last = shape[-1] if isinstance(shape, (list, tuple)) and shape else None
        classes = last if isinstance(last, int) and last > 0 else 1024
        # Outputs are looked at in float32, also those of finer types.
        unit = max(unit_roundoff(text(facts, "dtype") or ""), unit_roundoff())
        return float(self.roundings * unit * np.sqrt(classes))


def _metric_finding(
    facts: Mapping[str, Any], key: str, part: Parting, threshold: float, name: str
) -> Finding:
    meant = Witness("probability of a logit at the threshold", float(1 / (1 + np.exp(-threshold))))
    is_binary = "binary" in (text(facts, "loss") or "")
    found = _finding(
        facts,
        part,
        (
            Witness(f"threshold of {key}", threshold),
            Witness(name, part.shown),
            *([meant] if is_binary else []),
        ),
        title=f"{key} takes logits for probabilities",
        message=f"{key} compares the outputs with {number(threshold)}, as if they were "
        f"probabilities. {_loss(facts)} was told that they are logits (from_logits=True), and "
        f"since step {part.first_step:,} they reach {number(part.shown)}. "
        + (
            f"A logit of {number(threshold)} is a probability of {number(float(meant.value))}: "
            if is_binary
            else ""
        )
        + f"what {key} shows is not what its name says.",
        suggestion="With logits use BinaryAccuracy(threshold=0.0), Precision(thresholds=0.0) or "
        "AUC(from_logits=True); or end the model in the activation that belongs to the loss and "
        "leave out from_logits=True.",
    )
    return replace(found, subject=key)


def _crossed_finding(
    audit: Audit, row: Mapping[str, Any], shown: float, own: float, material: float
) -> Finding:
    loss, activation = text(row, "loss") or "The loss", text(row, "activation") or "?"
    fitting = "sigmoid" if activation == "softmax" else "softmax"
    a, b = two_numbers(shown, own)
    return Finding(
        subject=text(row, "name") or "loss",
        title=f"{loss} is {a}, of the outputs it is {b}",
        message=(
            f"{text(row, 'layer') or 'The model'} ends in {activation}, and {loss} belongs to "
            f"{fitting}. On {whole(row, 'losses') or 0:,} samples the compiled loss is {a}; of the "
            f"numbers that the model puts out it is {b}. Keras takes what is before the "
            f"{activation} for logits of a {fitting}, so that another model is trained than the "
            "one whose outputs you get."
        ),
        witnesses=(
            Witness("loss as compiled", shown),
            Witness("loss of the outputs themselves", own),
        ),
        suggestion=(
            f"End the model in {fitting}, or use the crossentropy that belongs to {activation}."
        ),
        first_step=audit.step,
        last_step=audit.step,
        certainty=(
            f"The two differ by {share(float(relative_gap(shown, own)))}; {share(material)} are "
            "allowed."
        ),
    )


def _finding(
    facts: Mapping[str, Any],
    part: Parting,
    witnesses: tuple[Witness, ...],
    *,
    title: str,
    message: str,
    suggestion: str,
    severity: Severity | None = None,
) -> Finding:
    name = text(facts, "name")
    return Finding(
        subject=f"output {name}" if name else "output",
        title=title,
        message=message,
        witnesses=witnesses,
        suggestion=suggestion,
        first_step=part.first_step,
        last_step=part.last_step,
        count=part.count,
        severity=severity,
        certainty=f"Seen in {number(part.count)} batches; only rounding of the outputs is allowed.",
    )


def _quantity(facts: Mapping[str, Any], *, alone: bool) -> str:
    name = text(facts, "name")
    return "outputs" if alone or not name else f"outputs:{name}"


def _loss(facts: Mapping[str, Any]) -> str:
    return f"The loss {text(facts, 'loss')}" if text(facts, "loss") else "The loss"


def _example(*, least: float, most: float) -> RunHistory:
    output = {"name": "", "loss": "binary_crossentropy", "from_logits": False, "shape": [None, 1]}
    return history(
        audits=[("columns", 1, {"outputs": [output]})],
        outputs__min=[least] * 5,
        outputs__max=[most] * 5,
    )
