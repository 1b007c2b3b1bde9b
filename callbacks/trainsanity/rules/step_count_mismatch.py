from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainsanity.rules.comparison import measured, merged, text, whole
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.wire import Audit


@dataclass(frozen=True)
class StepCountMismatch(Rule):
    """Steps that were declared, counted and applied do not add up.

    Compares: the batches of an epoch as declared (`steps_per_epoch` or the size of the data),
    as counted inside the compiled step, as told to callbacks, and the optimizer's own counter.

    Why: epochs of another length than planned shift every schedule and every comparison;
    batches without an update are work for nothing.

    Try: repeat a finite data set (`.repeat()`) where `steps_per_epoch` is given; declare the
    size of a generator.

    Source: TensorFlow issues 27353, 32286, 33216, 33503; in Keras 3.15 a finite data set of 10
    batches and `steps_per_epoch=8` gives epochs of 8, 2, 8, 2 batches.
    """

    id = "step-count-mismatch"
    severity = Severity.WARNING
    needs = ("audit:epoch",)

    # Epochs of one length after which a size that was never declared can be advised.
    same_epochs: int = 2

    @staticmethod
    def fires_on() -> RunHistory:
        """A finite data set, two batches into its second epoch."""
        return history(audits=[("epoch", 10, _EPOCH | {"batches": 2})])

    @staticmethod
    def quiet_on() -> RunHistory:
        """Two of eight batches skipped by float16 loss scaling, and two batches an update."""
        facts = {"iterations_after": 3, "loss_scale_skips": 2, "gradient_accumulation": 2}
        return history(
            audits=[
                ("compile", 0, {"custom_train_step": False}),
                ("epoch", 8, _EPOCH | facts),
            ]
        )

    def check(self, run: RunView) -> list[Finding]:
        if not (run.has_audit("epoch") or run.has_audit("evaluate")):
            raise NotTestable("no epoch and no test pass has ended yet")
        found: list[Finding] = []
        for name in ("epoch", "evaluate"):
            for audit in measured(run, name) if run.has_audit(name) else []:
                found += self._check(run, audit, name)
        found += self._undeclared(run)
        return merged(found)

    def _check(self, run: RunView, audit: Audit, name: str) -> Iterator[Finding]:
        facts = audit.facts
        batches = whole(facts, "batches")
        # A run may stop in the middle of an epoch because somebody asked for it.
        if batches is None or facts.get("stopped"):
            return
        subject = "epoch" if name == "epoch" else "evaluate"
        yield from _against_declared(audit, batches, subject)
        yield from _against_told(audit, batches, subject)
        if name == "epoch" and _one_update_a_batch(run):
            yield from _against_counter(audit, batches)

    def _undeclared(self, run: RunView) -> Iterator[Finding]:
        """Advice where Keras cannot know the length of an epoch and every epoch has the same."""
        epochs = run.audits("epoch") if run.has_audit("epoch") else []
        counts = [whole(a.facts, "batches") for a in epochs if not a.facts.get("stopped")]
        known = any(
            whole(a.facts, key) is not None
            for a in epochs
            for key in ("declared_steps", "progress_total")
        )
        is_new = any(a in run.new_audits("epoch") for a in epochs[self.same_epochs - 1 :])
        if known or len(counts) < self.same_epochs or len(set(counts)) != 1 or not is_new:
            return
        if counts[0] is None:
            return
        kind = text(run.audit("fit").facts, "data") if run.has_audit("fit") else None
        yield Finding(
            subject="length of the data",
            title=f"Every epoch has {counts[0]:,} steps, which Keras is not told",
            message=(
                f"{len(counts)} epochs had {counts[0]:,} steps each, but the data "
                f"({kind or 'a generator'}) declares no length, so progress bars show no total and "
                "nothing notices an epoch that ends too early."
            ),
            witnesses=(
                Witness("declared steps", "unknown"),
                Witness("counted steps", float(counts[0] or 0), "steps"),
            ),
            suggestion="Pass steps_per_epoch, or assert_cardinality on a tf.data.Dataset.",
            first_step=epochs[0].step,
            last_step=epochs[-1].step,
            severity=Severity.ADVICE,
            certainty=f"The same count in {len(counts)} of {len(counts)} epochs.",
        )


def _against_declared(audit: Audit, batches: int, subject: str) -> Iterator[Finding]:
    declared = whole(audit.facts, "declared_steps")
    if declared is None or declared == batches:
        return
    rounded = _rounded_up(audit.facts, declared) == batches
    if rounded:
        cause = "Keras rounds up to whole executions of steps_per_execution batches."
    elif batches < declared:
        cause = "The data ended early; what is left over may make up a shorter next epoch."
    else:
        cause = "The data gave more batches than it declared."
    yield Finding(
        subject=subject,
        title=f"{subject.capitalize()} of {batches:,} steps where {declared:,} were declared",
        message=(
            f"{_which(audit, subject).capitalize()} had {batches:,} batches, counted inside the "
            f"step; {declared:,} were declared. {cause}"
        ),
        witnesses=(
            Witness("declared steps", declared, "steps"),
            Witness("counted steps", batches, "steps"),
        ),
        suggestion=(
            "Choose steps_per_epoch as a multiple of steps_per_execution."
            if rounded
            else "Call .repeat() on the data set, or leave steps_per_epoch out."
        ),
        first_step=whole(audit.facts, "first_step") or audit.step,
        last_step=audit.step,
        severity=Severity.ADVICE if rounded else None,
        certainty="Both are counts, so any difference counts.",
    )


def _against_told(audit: Audit, batches: int, subject: str) -> Iterator[Finding]:
    told, declared = whole(audit.facts, "progress_total"), whole(audit.facts, "declared_steps")
    if told is None or told in (batches, declared):
        return
    yield Finding(
        subject=f"progress of {subject}",
        title=f"Progress counts to {told:,}, the {subject} has {batches:,} steps",
        message=(
            f"Callbacks and the progress bar were told {told:,} steps; {_which(audit, subject)} "
            f"had {batches:,}. The total was taken from something else than the data."
        ),
        witnesses=(
            Witness("steps told to callbacks", told, "steps"),
            Witness("counted steps", batches, "steps"),
        ),
        suggestion="Do not write to callback.params, and declare the length of the data.",
        first_step=whole(audit.facts, "first_step") or audit.step,
        last_step=audit.step,
        certainty="Both are counts, so any difference counts.",
    )


def _against_counter(audit: Audit, batches: int) -> Iterator[Finding]:
    facts = audit.facts
    before, after = whole(facts, "iterations_before"), whole(facts, "iterations_after")
    if before is None or after is None:
        return
    lowest, highest = _updates(facts, batches)
    updates = after - before
    if lowest <= updates <= highest:
        return
    # In TensorFlow's graph the counter runs beside the data: it counts the step in which the
    # iterator of unknown length turns out to be empty. Weights do not move, schedules do.
    ended = updates == highest + 1 and whole(facts, "declared_steps") is None
    cause = (
        "TensorFlow counts the step in which data of unknown length turn out to have ended, so "
        "schedules run ahead by one step an epoch."
        if ended
        else "Somebody else trains this model too, such as a callback that calls train_on_batch."
        if updates > highest
        else "Batches went through without an update, or the counter was set back."
    )
    expected = f"{highest:,}" if lowest == highest else f"{lowest:,} to {highest:,}"
    yield Finding(
        subject="optimizer.iterations",
        title=f"{batches:,} batches, but {updates:,} optimizer updates",
        message=(
            f"{_which(audit, 'epoch').capitalize()} had {batches:,} batches, which makes "
            f"{expected} updates; optimizer.iterations went from {before:,} to {after:,}. {cause}"
        ),
        witnesses=(
            Witness("updates by the batches counted", highest, "updates"),
            Witness("optimizer.iterations", updates, "updates"),
        ),
        suggestion=(
            "Declare the length of the data, with steps_per_epoch or assert_cardinality."
            if ended
            else "Look for a second place that trains or that assigns to optimizer.iterations."
        ),
        first_step=whole(facts, "first_step") or audit.step,
        last_step=audit.step,
        severity=Severity.ADVICE if ended else None,
        certainty=(
            "Gradient accumulation and steps skipped by loss scaling are taken into account; "
            "both are counts."
        ),
    )


def _updates(facts: Mapping[str, Any], batches: int) -> tuple[int, int]:
    """Fewest and most that the counter may grow by over so many batches."""
    every = whole(facts, "gradient_accumulation") or 1
    skips = whole(facts, "loss_scale_skips")
    fewest = 0 if skips is None else (batches - skips) // every
    # Where gradients are accumulated, Keras counts batches and shows updates: both are honest.
    return fewest, batches - (skips or 0)


def _rounded_up(facts: Mapping[str, Any], declared: int) -> int:
    at_once = max(1, whole(facts, "steps_per_execution") or 1)
    return -(-declared // at_once) * at_once


def _one_update_a_batch(run: RunView) -> bool:
    """Whether Keras' own train_step with one optimizer runs, and has something to train."""
    if not run.has_audit("compile"):
        return False
    facts = run.audit("compile").facts
    own = facts.get("custom_train_step") is False and (whole(facts, "optimizers") or 1) == 1
    model = run.audit("model").facts if run.has_audit("model") else {}
    return own and whole(model, "trainable_parameters") != 0


def _which(audit: Audit, subject: str) -> str:
    epoch = whole(audit.facts, "epoch")
    if subject == "epoch" and epoch is not None:
        return f"epoch {epoch + 1} (steps up to {audit.step:,})"
    return f"the {subject} that ended at step {audit.step:,}"


_EPOCH = {
    "epoch": 0,
    "first_step": 1,
    "batches": 8,
    "declared_steps": 8,
    "iterations_before": 0,
    "iterations_after": 8,
    "gradient_accumulation": None,
    "loss_scale_skips": 0,
    "steps_per_execution": 1,
    "stopped": False,
}
