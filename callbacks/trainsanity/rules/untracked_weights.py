from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainsanity.rules.comparison import maps, measured, merged, number, real, text, whole
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity, Witness
from trainsanity.wire import Audit


@dataclass(frozen=True)
class UntrackedWeights(Rule):
    """The model computes with trainable weights that it does not know.

    Compares: the variables read in one forward call with `model.weights`.

    Why: such a weight is not trained, not saved and not counted. After a reload it has another
    value, and the model another accuracy.

    Try: create layers and weights in __init__ or build of a layer and keep them as attributes;
    never inside a Lambda or a function.

    Source: TensorFlow issues 40638, 34732 (layers inside a Lambda), 43230 (a raw tf.Variable);
    live in Keras 3.15, without a warning.
    """

    id = "untracked-weights"
    severity = Severity.WARNING
    needs = ("audit:variables_read",)

    @staticmethod
    def fires_on() -> RunHistory:
        """An embedding inside a Lambda."""
        return history(audits=[("variables_read", 1, _FACTS)])

    @staticmethod
    def quiet_on() -> RunHistory:
        """A constant table, created with trainable=False."""
        rows = [_FACTS["untracked"][0] | {"trainable": False}]
        return history(audits=[("variables_read", 1, _FACTS | {"untracked": rows})])

    def check(self, run: RunView) -> list[Finding]:
        return merged(
            _finding(audit, row)
            for audit in measured(run, "variables_read")
            for row in maps(audit.facts, "untracked")
            if row.get("trainable") is True
        )


def _finding(audit: Audit, row: Mapping[str, Any]) -> Finding:
    name, layer = text(row, "name") or "?", text(row, "layer") or "the model"
    site = f" at {text(row, 'site')}" if text(row, "site") else ""
    elements = whole(row, "elements") or 0
    gradient = real(row, "gradient_norm")
    learns = gradient is not None and gradient > 0
    depends = (
        f"The loss depends on it (gradient {number(gradient or 0.0)}), yet no optimizer moves it."
        if learns
        else "Whether the loss depends on it is not known."
        if gradient is None
        else "The loss does not depend on it."
    )
    return Finding(
        subject=f"{layer}: {name}",
        title=f"{_capital(layer)} uses {name}, which is not among its weights",
        message=(
            f"{_capital(layer)}{site} reads the trainable {text(row, 'kind') or 'variable'} "
            f"{name}, {elements:,} {'number' if elements == 1 else 'numbers'}, which is not among "
            f"model.weights: it is neither trained nor saved. {depends}"
        ),
        witnesses=(
            Witness("variables in model.weights", whole(audit.facts, "tracked") or 0, "variables"),
            Witness("variables read", whole(audit.facts, "read") or 0, "variables"),
        ),
        suggestion=(
            "Create it with add_weight, or as a layer that is an attribute; if it is a constant, "
            "create it with trainable=False."
        ),
        first_step=audit.step,
        last_step=audit.step,
        severity=None if learns or gradient is None else Severity.ADVICE,
        certainty="Variables are compared by identity.",
    )


def _capital(layer: str) -> str:
    """Names of layers stay as the user wrote them."""
    return "The model" if layer == "the model" else layer


_FACTS: dict[str, Any] = {
    "read": 3,
    "tracked": 2,
    "untracked": [
        {
            "name": "embedding/embeddings",
            "elements": 640,
            "trainable": True,
            "kind": "keras.Variable",
            "layer": "lambda",
            "gradient_norm": 0.3,
            "site": "model.py:17",
        }
    ],
}
