"""Variables that a forward pass reads, and the ones that the model knows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
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


_OWNER = next(c for c in keras.Variable.__mro__ if "value" in c.__dict__)
_PLAIN = _OWNER.__dict__["value"]
_noting: dict[int, Callable[[Any], None]] = {}  # thread -> what it does with each variable it reads
_changing = threading.Lock()


def _noted(self: Any) -> Any:
    note = _noting.get(threading.get_ident())
    if note is not None:
        note(self)
    return _PLAIN.fget(self)


_NOTED = property(_noted, _PLAIN.fset)


@contextmanager
def noted_reads(read: dict[int, tuple[Any, Call | None]], stack: list[Call]) -> Iterator[None]:
    """Within, every Keras variable whose value is asked for in this thread is noted, with the call
    that asked. Others may train at the same time.
    """

    def note(variable: Any) -> None:
        read.setdefault(id(variable), (variable, stack[-1] if stack else None))

    thread = threading.get_ident()
    with _changing:
        _noting[thread] = note
        _OWNER.value = _NOTED
    try:
        yield
    finally:
        with _changing:
            del _noting[thread]
            if not _noting:
                _OWNER.value = _PLAIN


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
