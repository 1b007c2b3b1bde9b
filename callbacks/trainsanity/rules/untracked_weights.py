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

    Compares: the variables read in one forward call, and in the loss, with `model.weights`. Those
    of the loss count where they have not moved when training ends: some are steered by a callback.
    Layers that were there before the loss called them are advice: a trained network may judge.

    Why: such a weight is not trained, not saved and not counted. After a reload it has another
    value, and the model another accuracy.

    Try: create layers and weights in __init__ or build of a layer and keep them as attributes;
    never inside a Lambda or a function. A weight of the loss belongs to a layer that
    calls add_loss, or to a model with a compute_loss of its own.

    Source: TensorFlow issues 40638, 34732 (layers inside a Lambda), 43230 (a raw tf.Variable);
    live in Keras 3.15, without a warning.
    """

    id = "untracked-weights"
    severity = Severity.WARNING
    needs = ("audit:variables_read",)

    # For which a variable of the loss has stood still, at least.
    steps: int = 10

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
            if row.get("trainable") is True and (not row.get("of_loss") or self._stays(row))
        )

    def _stays(self, row: Mapping[str, Any]) -> bool:
        """Whether a variable of the loss stood still until training ended."""
        return (whole(row, "steps") or 0) >= self.steps and real(row, "moved") == 0.0


def _finding(audit: Audit, row: Mapping[str, Any]) -> Finding:
    return _of_loss(audit, row) if row.get("of_loss") else _of_model(audit, row)


def _of_loss(audit: Audit, row: Mapping[str, Any]) -> Finding:
    name, layer, steps = text(row, "name") or "?", text(row, "layer"), whole(row, "steps") or 0
    inside = f", in the layer {layer}," if layer else ""
    return Finding(
        subject=f"the loss: {name}",
        title=f"The loss uses {name}, which no optimizer trains",
        message=(
            f"The loss reads{inside} the trainable {text(row, 'kind') or 'variable'} {name}, which "
            f"is not among model.weights: it is neither trained nor saved. It has moved by 0 in "
            f"{steps:,} steps."
        ),
        witnesses=(
            Witness("trainable flag", "True"),
            Witness(f"movement of {name}", 0.0),
        ),
        suggestion=(
            "Make it a weight of a layer that calls add_loss, or of a model with its own "
            "compute_loss; if it is a constant, create it with trainable=False."
        ),
        first_step=audit.step,
        last_step=audit.step,
        severity=Severity.ADVICE if layer and not row.get("made_in_loss") else None,
        certainty="Variables are compared by identity, their values exactly.",
    )


def _of_model(audit: Audit, row: Mapping[str, Any]) -> Finding:
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
