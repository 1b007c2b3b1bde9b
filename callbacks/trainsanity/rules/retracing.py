from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trainsanity.rules.comparison import finding, not_measured, number, parting
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity, Witness

TRACES, SIGNATURES = "traces/count", "traces/signatures"


@dataclass(frozen=True)
class Retracing(Rule):
    """The training step is compiled again and again.

    Compares: how often the step was traced or compiled with how many different signatures
    (shapes and dtypes) its batches had.

    Why: a trace takes as long as thousands of steps, and each keeps memory.

    Try: pass tensors instead of Python numbers, pad batches to a few lengths, and do not reset
    model.train_function.

    Source: TensorFlow guide "Better performance with tf.function"; TensorFlow issue 32420.
    """

    id = "retracing"
    severity = Severity.WARNING
    needs = (TRACES, SIGNATURES)

    # Traces beyond one for each signature: creating variables, weak types, a change of sharding.
    spare: int = 3
    shapes: int = 10  # signatures from which padding is advised
    shapes_share: float = 0.05  # of all steps that brought a new signature

    @staticmethod
    def fires_on() -> RunHistory:
        """One signature, a trace for every step."""
        return history(traces__count=range(1, 21), traces__signatures=[1] * 20)

    @staticmethod
    def quiet_on() -> RunHistory:
        """Two traces to begin with, one more for the short last batch."""
        return history(traces__count=[2] * 19 + [3], traces__signatures=[1] * 19 + [2])

    def check(self, run: RunView) -> Iterator[Finding]:
        if not run.has(TRACES, SIGNATURES):
            raise not_measured(run, TRACES, SIGNATURES)
        rows = run.rows(TRACES, SIGNATURES)
        traces, signatures = rows[TRACES], rows[SIGNATURES]
        too_many = parting(rows, signatures, traces, float(self.spare), where=traces > signatures)
        if too_many is not None:
            yield finding(
                too_many,
                subject="training step",
                title=(
                    f"The step was traced {number(too_many.true)} times for "
                    f"{_signatures(too_many.shown)}"
                ),
                message=(
                    f"The training step was traced {number(too_many.true)} times up to step "
                    f"{too_many.last_step:,}, but its batches had only "
                    f"{_signatures(too_many.shown)}. Something throws the compiled step "
                    "away, or gives it a Python value that changes."
                ),
                suggestion="Do not compile or reset train_function in the loop; pass tensors.",
                names=(SIGNATURES, TRACES),
                because="the first traces",
            )
            return
        if len(rows.new):
            yield from self._many_shapes(run, len(rows.new))

    def _many_shapes(self, run: RunView, new: int) -> Iterator[Finding]:
        traces, signatures = run.totals(TRACES), run.totals(SIGNATURES)
        steps = signatures.last_step - signatures.first_step + 1
        if signatures.last < self.shapes or signatures.last < self.shapes_share * steps:
            return
        if traces.last < self.shapes:
            return  # shapes differ, but one trace serves them all
        yield Finding(
            subject="shapes of batches",
            title=f"{number(signatures.last)} shapes of batches, each compiled anew",
            message=(
                f"In {steps:,} steps the batches had {number(signatures.last)} different shapes, "
                f"and the step was traced {number(traces.last)} times."
            ),
            witnesses=(
                Witness(SIGNATURES, signatures.last),
                Witness(TRACES, traces.last),
            ),
            suggestion="Pad sequences to a few fixed lengths (bucketing).",
            first_step=signatures.first_step,
            last_step=signatures.last_step,
            count=new,
            severity=Severity.ADVICE,
            certainty=f"{self.shapes} are allowed, or {self.shapes_share:.0%} of all steps.",
        )


def _signatures(count: float) -> str:
    return f"{number(count)} {'signature' if count == 1 else 'signatures'}"
