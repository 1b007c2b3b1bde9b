from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainsanity.rules.comparison import finding, number, parting, steps_in_words
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity

# kind of clipping: (argument of the optimizer, what is bounded)
KINDS = {
    "value": ("clipvalue", "largest absolute gradient element"),
    "norm": ("clipnorm", "largest gradient norm of one variable"),
    "global_norm": ("global_clipnorm", "norm of all gradients together"),
}


@dataclass(frozen=True)
class ClipBoundExceeded(Rule):
    """Gradients are larger than the clipping that was asked for allows.

    Compares: the bound the optimizer was given (`clipvalue`, `clipnorm` or `global_clipnorm`)
    and the size of the gradients after clipping, as they enter the update.

    Why: clipping is there for the one bad batch that ruins a run; where it does nothing,
    nothing tells you until that batch comes.

    Try: give a bound above 0; where clipping is overridden, return what it computes.

    Source: TensorFlow issue 33929; live in Keras 3.15, which skips bounds of 0 or less
    silently, and on TensorFlow takes the norm of sparse gradients before it adds up their rows
    (that is advice).
    """

    id = "clip-bound-exceeded"
    severity = Severity.CRITICAL
    needs = ("clip:*/declared", "clip:*/applied")

    # Relative. Rescaling rounds each element by at most 2^-8 (bfloat16), and so the norm by at most
    # 0.4 %; the float32 sum of squares adds less than 0.1 %. Twice that.
    rounding: float = 0.01

    @staticmethod
    def fires_on() -> RunHistory:
        """clipvalue=0.5, gradients of 3."""
        return history({"clip:value/declared": [0.5] * 4, "clip:value/applied": [0.4, 3, 3.1, 2]})

    @staticmethod
    def quiet_on() -> RunHistory:
        """Clipped to the bound, half a percent above it by bfloat16 rounding."""
        return history(
            {"clip:norm/declared": [1.0] * 4, "clip:norm/applied": [0.4, 1.0, 1.005, 1.0]}
        )

    def check(self, run: RunView) -> Iterator[Finding]:
        kinds = [k for k in KINDS if run.has(f"clip:{k}/declared", f"clip:{k}/applied")]
        if not kinds:
            raise NotTestable("the optimizer was given no clipping, or it could not be tapped")
        for kind in kinds:
            yield from self._check(run, kind)

    def _check(self, run: RunView, kind: str) -> Iterator[Finding]:
        names = (f"clip:{kind}/declared", f"clip:{kind}/applied")
        rows = run.rows(*names)
        bound, size = rows[names[0]], rows[names[1]]
        allowed = np.maximum(bound, 0.0)
        part = parting(rows, bound, size, allowed * self.rounding, where=size > bound)
        if part is None:
            return
        argument, what = KINDS[kind]
        ignored = part.shown <= 0
        by_rows = run.has(f"clip:{kind}/by_rows") and not ignored
        cause, cure = _cause(argument, ignored=ignored, by_rows=by_rows)
        yield finding(
            part,
            subject=f"optimizer.{argument}",
            title=f"{argument}={number(part.shown)}, yet gradients reach {number(part.true)}",
            message=(
                f"The optimizer was given {argument}={number(part.shown)}. After clipping, the "
                f"{what} was {number(part.true)}, "
                f"{steps_in_words(part.first_step, part.last_step)}. {cause}"
            ),
            suggestion=cure,
            names=names,
            because="rounding while rescaling",
            severity=_severity(ignored=ignored, by_rows=by_rows),
        )


def _cause(argument: str, *, ignored: bool, by_rows: bool) -> tuple[str, str]:
    """The likely cause, and what to change."""
    if ignored:
        return (
            f"Keras skips {argument} where it is 0 or less, so nothing was clipped.",
            f"Give {argument} a value above 0, or None for no clipping.",
        )
    if by_rows:
        return (
            "Keras on TensorFlow clips an embedding's gradient before it adds up the parts that "
            "belong to one id, and so bounds the parts instead of the gradient.",
            f"Take {argument} for a rough bound where embeddings are trained, or a smaller one; or "
            "subclass the optimizer: in _clip_gradients, call super()._clip_gradients("
            "[g if g is None else tf.convert_to_tensor(g) for g in grads]).",
        )
    return (
        "The optimizer does not apply its clipping; look for an own _clip_gradients.",
        "Return the clipped gradients, or clip them yourself in train_step.",
    )


def _severity(*, ignored: bool, by_rows: bool) -> Severity | None:
    if by_rows:
        return Severity.ADVICE  # nothing that the user has done
    # Somebody may write 0 for "off"; that the bound does nothing is then what they want.
    return Severity.WARNING if ignored else None
