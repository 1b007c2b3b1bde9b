"""Variables that a forward pass reads, and the ones that the model knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from trainsanity.difference import is_float
from trainsanity.forward import call_model, untouched
from trainsanity.probes.probe import Probe
from trainsanity.recording import Call, recorded


class VariablesRead(Probe):
    """Makes the audit `variables_read`."""

    name = "variables_read"
    cost = 0.2

    def on_sample(self) -> None:
        model = self.run.model
        calls: list[Call] = []
        stack: list[Call] = []
        read: dict[int, tuple[Any, Call | None]] = {}
        with (
            untouched(model),
            recorded(model, calls, stack),
            noted_reads(read, stack),
            self.run.backend.watched_reads(read),
        ):
            call_model(model, self.run.sample[0], training=False)
        # All that the model carries: also seeds, metric and optimizer state.
        known = {id(v) for v in model.variables}
        # On TensorFlow a Keras variable holds one of TensorFlow's own: the same read.
        inside = {id(getattr(v, "_value", None)) for v in model.variables}
        inside |= {id(getattr(v, "_value", None)) for v, _ in read.values()}
        read = {k: found for k, found in read.items() if k not in inside}
        floating = {k: v for k, v in read.items() if is_float(v[0])}
        untracked = [_row(v, call) for k, (v, call) in floating.items() if k not in known]
        self.run.audit(
            "variables_read",
            {
                "read": len(floating),
                "tracked": sum(k in known for k in floating),
                "untracked": untracked,
            },
        )


@contextmanager
def noted_reads(read: dict[int, tuple[Any, Call | None]], stack: list[Call]) -> Iterator[None]:
    """Within, every Keras variable whose value is asked for is noted, with the call that asked."""
    owner = next(c for c in keras.Variable.__mro__ if "value" in c.__dict__)
    original = owner.__dict__["value"]

    def value(self: Any) -> Any:
        read.setdefault(id(self), (self, stack[-1] if stack else None))
        return original.fget(self)

    owner.value = property(value, original.fset)
    try:
        yield
    finally:
        owner.value = original


def _row(variable: Any, call: Call | None) -> dict[str, Any]:
    is_keras = isinstance(variable, keras.Variable)
    module = type(variable).__module__.partition(".")[0]
    kind = {"tensorflow": "tf.Variable", "torch": "torch.nn.Parameter"}.get(module, module)
    return {
        "name": getattr(variable, "path", None) or getattr(variable, "name", None) or "variable",
        "elements": int(np.prod(tuple(variable.shape))),
        "trainable": bool(getattr(variable, "trainable", getattr(variable, "requires_grad", True))),
        "kind": "keras.Variable" if is_keras else kind,
        "layer": call.name if call else None,
        "gradient_norm": None,
        "site": call.site if call else None,
    }
