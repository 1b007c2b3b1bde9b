"""What probes know of the run they watch, and how they hand in what they measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from trainsanity import backends, identity
from trainsanity.pace import Pace
from trainsanity.wire import Signal, as_name

if TYPE_CHECKING:
    from trainsanity.backends.backend import Backend
    from trainsanity.fit_arguments import FitArguments
    from trainsanity.probes.probe import Probe
    from trainsanity.processes import NoStream
    from trainsanity.settings import Settings
    from trainsanity.stream import RunStream


@dataclass
class Run:
    """One watched call of `fit` or `evaluate`.

    Attributes:
        model, optimizer: the user's; never written to by a probe.
        backend: what the backend that Keras runs on offers.
        kind: "fit" or "evaluate".
        step: batches run so far, as the host knows it.
        sample: a few rows `(x, y, sample_weight)` of the training data for audits, or None.
        fit: the arguments of the watched call, as far as they could be seen.
        not_testable: probe or signal -> reason; goes into the audit `columns`.
    """

    model: Any
    backend: Backend
    stream: RunStream | NoStream
    settings: Settings
    kind: str = "fit"
    optimizer: Any = None
    fit: FitArguments | None = None
    sample: Any = None
    # Calls a function of ours from the user's code: `guard(probe, function, *args, default=)`.
    guard: Callable[..., Any] | None = None
    replicas: int = 1  # copies of the model that share a batch in this process
    processes: int = 1  # that train one model together
    # Of training and of test steps: which of them all probes look at.
    pace: Pace = field(default_factory=lambda: Pace(thins=False))
    test_pace: Pace = field(default_factory=lambda: Pace(thins=False))
    sample_rows: int = 8  # as many as the model demands, where its batch size is fixed
    step: int = 0
    # JAX's state right before a step, while `before_step` runs, and right after it, while
    # `after_step` does: variables are empty then.
    state: Any = None
    # Variables of `kept` and the values that the step to come is to find in them.
    assignments: list[tuple[Any, np.ndarray[Any, Any]]] = field(default_factory=list)
    epoch: int = 0
    epoch_first_step: int = 1
    not_testable: dict[str, str] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)
    # Variables that the step writes to besides the tape; Keras carries them along with the tape.
    kept: list[Any] = field(default_factory=list)
    _declared: set[str] = field(default_factory=set)

    @property
    def is_shared(self) -> bool:
        """Whether a forward pass of this process alone is not one of the whole model: it could
        wait for others for ever, or set their statistics apart.
        """
        return self.replicas > 1 or self.processes > 1

    def read(self, variable: Any) -> np.ndarray[Any, Any]:
        """The value of a variable on the host, also in `before_step`."""
        return self.backend.read_in_step(variable, self.model, self.state)

    @property
    def is_traced(self) -> bool:
        """Whether Keras traces and compiles the step, instead of running its Python code for every
        batch.
        """
        return bool(self.backend.is_traced_step(self.model))

    @property
    def is_stateless(self) -> bool:
        """Whether a step is a pure function, as on JAX: variables travel in its state."""
        return bool(self.backend.HAS_GRADIENT_BOUNDARY)

    @property
    def compiled_by_xla(self) -> bool:
        return bool(self.model.jit_compile) and not self.model.run_eagerly

    def keep(self, variable: Any) -> Any:
        """Registers a variable that `trace_end` writes to; returns it."""
        self.kept.append(variable)
        return variable

    def emit(self, steps: np.ndarray[Any, Any], columns: Mapping[str, Any]) -> None:
        """Hands in samples: each column has shape (n,), like `steps`."""
        if not len(steps) or not columns:
            return
        # Users name metrics and layers as they like; one such name must not cost all the others.
        names = tuple(map(as_name, columns))
        for name in names:
            self._declare(name)
        values = np.stack([np.asarray(column, np.float64) for column in columns.values()])
        # The tape is float32, and so are most signals; means over an epoch are worth no more.
        self.stream.samples(names, steps, values.astype(np.float32))

    def points(self, step: int, columns: Mapping[str, float]) -> None:
        """Hands in one sample of each of several signals."""
        self.emit(
            np.array([step], np.int64),
            {name: np.array([v]) for name, v in columns.items()},
        )

    def audit(self, name: str, facts: Mapping[str, Any], step: int | None = None) -> None:
        self.stream.audit(name, self.step if step is None else step, facts)

    def refuse(self, probe: Probe, reason: str) -> None:
        """Says that a probe cannot make its audit, and why."""
        self.audit(probe.audit or probe.name, {"not_testable": reason})

    def note_failure(
        self, part: str, error: BaseException, text: str, *, lost: str | None = None
    ) -> None:
        """Says that a part of the client has failed, with its traceback as text, and what it has
        cost the training besides.
        """
        facts = {"probe": part, "error": f"{type(error).__name__}: {error}", "traceback": text}
        self.audit("probe_failed", facts | {"lost": lost})

    def _declare(self, name: str) -> None:
        if name in self._declared:
            return
        self._declared.add(name)
        self.stream.declare(Signal(name, unit_of(name)))


def header_of(model: Any, settings: Settings, kind: str) -> dict[str, Any]:
    """What a server is told of a run when it begins."""
    return {
        "project": settings.project,
        "name": settings.run_name or f"{model.name} {time.strftime('%H:%M:%S')}",
        "tags": list(settings.tags),
        "kind": kind,
        "session_id": identity.session_id(),
        "started_at": time.time(),
        "keras_version": keras.__version__,
        "backend": keras.backend.backend(),
        "config": dict(settings.config),
        "expect": settings.expect.as_facts(),
        "environment": {
            "host": identity.host(),
            "processes": backends.active().processes(model),
        },
    }


# Units by the last part or the quantity of a signal's name; everything else is a plain number.
_UNITS = {
    "time": "s",
    "memory": "MiB",
    "batch": "samples",
}


def unit_of(name: str) -> str:
    """The unit of a signal, from its name (see docs/evidence.md)."""
    quantity, _, witness = name.rpartition("/")
    if quantity.startswith("embedding:") and witness not in ("out_of_range", "not_whole"):
        return "ids"
    if name == "memory/live_variables":
        return "1"
    return _UNITS.get(quantity, "1")
