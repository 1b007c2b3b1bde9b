"""Variables that a forward pass reads, and the ones that the model knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from trainsanity import optimizers
from trainsanity.difference import is_float, numpy_of
from trainsanity.forward import call_model, untouched
from trainsanity.probes.probe import Probe
from trainsanity.reads import noted_reads
from trainsanity.recording import Call, recorded

WHOLE = 1_000_000  # elements of a variable of the loss up to which it is looked at


class VariablesRead(Probe):
    """Makes the audit `variables_read`; and, when training has ended, another one of what the loss
    reads: only then is it known that nobody has moved it.
    """

    name = "variables_read"
    cost = 0.2

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._of_loss: list[_OfLoss] = []

    def on_sample(self) -> None:
        model = self.run.model
        calls: list[Call] = []
        stack: list[Call] = []
        read: dict[int, tuple[Any, Call | None]] = {}
        with (
            untouched(model),
            recorded(model, calls, stack),
            noted_reads(read, lambda: stack[-1] if stack else None),
            self.run.backend.watched_reads(read),
        ):
            call_model(model, self.run.sample[0], training=False)
        found, known = _floating(read), self._known()
        untracked = [_row(v, call) for key, (v, call) in found.items() if key not in known]
        self._hand_in(found, known, untracked)

    def after_step(self, step: int) -> None:
        """The loss has been traced: the first values of what it reads."""
        read = self.run.shared.get("loss_reads")
        if not read:  # as at every step but the first
            return
        found, known = _floating(read), self._known()
        self._of_loss = [
            _OfLoss(v, layer, _value(v), step)
            for key, (v, layer) in found.items()
            if key not in known and _is_trainable(v) and np.prod(tuple(v.shape)) <= WHOLE
        ]
        self.run.shared["loss_reads"] = {}

    def on_end(self) -> None:
        if not self._of_loss:
            return
        known = self._known()
        rows = [
            found.row(self.run.step) for found in self._of_loss if id(found.variable) not in known
        ]
        self._hand_in({}, known, rows)

    def _known(self) -> set[int]:
        """All that the model carries, also seeds, metric and optimizer state, and what its
        optimizers train besides.
        """
        held = optimizers.of_model(self.run.model).values()
        trained = [v for o in held for v in optimizers.working(o)._trainable_variables]
        variables = [*self.run.model.variables, *trained]
        # On TensorFlow a Keras variable holds one of TensorFlow's own, or several: the same read.
        keras_own = [v for v in variables if hasattr(v, "_value")]
        inside = [c for v in keras_own for c in (v._value, *self.run.backend.copies_of(v))]
        return {id(v) for v in (*variables, *inside)}

    def _hand_in(
        self, read: Mapping[int, Any], known: set[int], untracked: list[dict[str, Any]]
    ) -> None:
        self.run.audit(
            "variables_read",
            {
                "read": len(read),
                "tracked": sum(key in known for key in read),
                "untracked": untracked,
            },
        )


@dataclass
class _OfLoss:
    """A variable that the loss reads and the model does not know."""

    variable: Any
    layer: str | None  # in whose call it was read
    first: np.ndarray[Any, Any]
    step: int

    def row(self, step: int) -> dict[str, Any]:
        moved = float(np.max(np.abs(_value(self.variable) - self.first), initial=0.0))
        row = _row(self.variable, None) | {"layer": self.layer}
        # Keras puts the name of what made a variable in front of its own.
        is_new = row["name"].startswith("compile_loss/")
        seen = {"of_loss": True, "moved": moved, "steps": step - self.step}
        return row | seen | {"made_in_loss": is_new}


def _value(variable: Any) -> np.ndarray[Any, Any]:
    return np.array(numpy_of(variable), np.float64)


def _floating(read: Mapping[int, tuple[Any, Any]]) -> dict[int, tuple[Any, Any]]:
    """Without those of TensorFlow that are inside of a Keras variable: the same read."""
    inside = {id(getattr(v, "_value", None)) for v, _ in read.values()}
    return {k: found for k, found in read.items() if k not in inside and is_float(found[0])}


def _is_trainable(variable: Any) -> bool:
    return bool(getattr(variable, "trainable", getattr(variable, "requires_grad", True)))


def _row(variable: Any, call: Call | None) -> dict[str, Any]:
    is_keras = isinstance(variable, keras.Variable)
    module = type(variable).__module__.partition(".")[0]
    kind = {"tensorflow": "tf.Variable", "torch": "torch.nn.Parameter"}.get(module, module)
    return {
        "name": getattr(variable, "path", None) or getattr(variable, "name", None) or "variable",
        "elements": int(np.prod(tuple(variable.shape))),
        "trainable": _is_trainable(variable),
        "kind": "keras.Variable" if is_keras else kind,
        "layer": call.name if call else None,
        "gradient_norm": None,
        "site": call.site if call else None,
    }
