"""The automatic gradient against the slope of the loss itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from trainsanity.difference import array_of, elements_of, numpy_of
from trainsanity.errors import CannotAudit
from trainsanity.forward import refused, untouched
from trainsanity.probes.probe import Probe
from trainsanity.sample_loss import loss_of_sample, refuse_unknown_loss

# Sizes of the step, relative to the norm of the weights moved. In float32 larger ones bend, and
# smaller ones drown in rounding.
STEPS = (1e-2, 3e-3, 1e-3)
MOST_PARAMETERS = 2_000_000
MOST_LAYERS = 6  # each takes seven passes


class GradientCheck(Probe):
    """Makes the audit `gradient_check`: one direction for each layer, in inference mode."""

    name = "gradient_check"
    cost = 0.8

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._waits = False

    def on_sample(self) -> None:
        # On TensorFlow the first step builds the loss.
        loss = getattr(self.run.model, "_compile_loss", None)
        self._waits = loss is not None and not loss.built
        if not self._waits:
            self._hand_in()

    def on_epoch_sample(self, epoch: int) -> None:
        if self._waits:
            self._waits = False
            self._hand_in()

    def on_end(self) -> None:
        if self._waits:
            raise CannotAudit("the loss is built in the first step, and none has run")

    def _hand_in(self) -> None:
        run = self.run
        self._refuse()
        model = run.model
        variables = list(model.trainable_variables)
        with untouched(model), _weights_kept(variables), refused("the loss of the sample raises"):
            options: dict[str, Any] = {"compiled": not model.run_eagerly}
            of_sample = functools.partial(loss_of_sample, run)
            loss, gradients = run.backend.gradient(of_sample, variables, **options)
            line = _Line(variables, run.backend.of_values(of_sample, variables, **options))
            value = float(array_of(loss))
            checks = [
                self._check(line, layer, group, value)
                for layer, group in _groups(model, variables, gradients)
            ]
        run.audit(self.name, {"checks": checks})

    def _refuse(self) -> None:
        run = self.run
        refuse_unknown_loss(run)
        if "float16" in str(run.model.compute_dtype):
            raise CannotAudit("half precision has too few digits for finite differences")
        size = elements_of(run.model.trainable_variables)
        if not 0 < size <= MOST_PARAMETERS:
            raise CannotAudit(f"the model has {size:,} trainable parameters")

    def _check(
        self, line: _Line, layer: Any, group: list[tuple[Any, Any]], loss: float
    ) -> dict[str, Any]:
        variables = [variable for variable, _ in group]
        slopes = [
            np.zeros(tuple(v.shape)) if g is None else np.asarray(array_of(g), np.float64)
            for v, g in group
        ]
        direction = _direction(slopes)
        size = max(_norm([line.start[id(v)] for v in variables]), 1e-3)
        steps = [step * size for step in STEPS]
        numeric = []
        for step in steps:
            sides = [line.loss_at(variables, direction, way * step) for way in (1, -1)]
            numeric.append((sides[0] - sides[1]) / (2 * step))
        automatic = sum(float((g * d).sum()) for g, d in zip(slopes, direction, strict=True))
        rounding = float(np.finfo(np.float32).eps) * max(abs(loss), 1e-6)
        return {
            "subject": layer.name,
            "automatic": automatic,
            "numeric": numeric,
            "steps": steps,
            "roundings": [rounding / step for step in steps],
            "dtype": "float32",
            "gradient_norm": _norm(slopes),
            "nonfinite": int(sum((~np.isfinite(g)).sum() for g in slopes)),
            "loss": loss,
        }


class _Line:
    """The loss as a function of all weights, along lines from where they are."""

    def __init__(self, variables: list[Any], loss: Callable[[list[Any]], Any]) -> None:
        self._variables = variables
        self._loss = loss
        self.start = {id(v): np.asarray(array_of(v), np.float64) for v in variables}

    def loss_at(self, variables: list[Any], direction: list[Any], step: float) -> float:
        """With some of them moved."""
        ways = {id(v): way for v, way in zip(variables, direction, strict=True)}
        values = [self.start[id(v)] + step * ways.get(id(v), 0.0) for v in self._variables]
        return float(array_of(self._loss([value.astype("float32") for value in values])))


def _groups(
    model: Any, variables: list[Any], gradients: list[Any]
) -> Iterator[tuple[Any, list[tuple[Any, Any]]]]:
    """Layers that own trained weights, the first and last of them, with variable and gradient."""
    by_id = {id(v): g for v, g in zip(variables, gradients, strict=True)}
    owners = []
    for layer in model._flatten_layers():
        own = [v for v in layer._trainable_variables if id(v) in by_id]
        if own:
            owners.append((layer, [(v, by_id[id(v)]) for v in own]))
    half = MOST_LAYERS // 2
    yield from owners if len(owners) <= MOST_LAYERS else owners[:half] + owners[-half:]


def _direction(slopes: list[Any]) -> list[Any]:
    """A unit vector between the gradient's own direction and a fixed random one.

    Along the gradient alone a gradient of the wrong direction, yet the right length, would pass.
    """
    generator = np.random.Generator(np.random.PCG64(0))
    random = [generator.standard_normal(g.shape) for g in slopes]
    size, other = _norm(slopes), _norm(random)
    usable = np.isfinite(size) and size > 0
    mixed = [r / other + (g / size if usable else 0) for g, r in zip(slopes, random, strict=True)]
    whole = _norm(mixed)
    if whole == 0:  # a single weight, and both ways go against each other
        mixed, whole = random, other
    return [m / whole for m in mixed]


def _norm(arrays: list[Any]) -> float:
    return float(np.sqrt(sum(float(np.square(a).sum()) for a in arrays)))


@contextmanager
def _weights_kept(variables: list[Any]) -> Iterator[None]:
    """Within, weights may be moved; at the end each holds the very bits it held before."""
    before = [np.array(numpy_of(v)) for v in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
