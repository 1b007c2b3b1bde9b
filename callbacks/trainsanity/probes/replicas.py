"""Two copies of the model, trained for a few steps from one seed on the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from trainsanity import optimizers
from trainsanity.difference import difference, elements_of, hash_of
from trainsanity.errors import CannotAudit
from trainsanity.forward import generators_as_now, names_untouched, refused, untouched
from trainsanity.probes.probe import Probe

STEPS = 3
MOST_PARAMETERS = 20_000_000

Arrays = list[np.ndarray[Any, Any]]


class Replicas(Probe):
    """Makes the audit `replicas` where `Expect(deterministic=True)` was given."""

    name = "replicas"
    cost = 2.0

    def on_released(self) -> None:
        if self.run.settings.expect.deterministic:
            self.run.audit(self.name, self._facts())

    def _facts(self) -> dict[str, Any]:
        model = self.run.model
        self._refuse()
        start = [np.array(self.run.backend.read(w)) for w in model.weights]
        with untouched(model), names_untouched(), _global_seeds_put_back():
            a, b = (self._trained(start) for _ in range(2))
        differ = [i for i, (u, v) in enumerate(zip(a, b, strict=True)) if not _same(u, v)]
        worst = max(differ, key=lambda i: difference(a[i], b[i])["largest"], default=None)
        return {
            "steps": STEPS,
            "hashes": [hash_of(*a), hash_of(*b)],
            "difference": None if worst is None else difference(a[worst], b[worst], noise=0.0),
            "first_variable": model.weights[differ[0]].path if differ else None,
        }

    def _refuse(self) -> None:
        run = self.run
        if run.sample is None or run.optimizer is None:
            raise CannotAudit("there is no sample of the data, or no optimizer")
        parameters = elements_of(run.model.weights)
        if parameters > MOST_PARAMETERS:
            raise CannotAudit(f"the model has {parameters:,} parameters")

    def _trained(self, start: Arrays) -> Arrays:
        """The weights of a new copy after a few steps, all generators being as they are now."""
        x, y, weight = self.run.sample
        with generators_as_now(), _own_seed_generator():
            copy = self._copy()
            with refused("training a copy of the model on the captured rows raises"):
                copy.set_weights(start)
                for _ in range(STEPS):
                    copy.train_on_batch(x, y, sample_weight=weight)
        return [np.array(self.run.backend.read(w)) for w in copy.weights]

    def _copy(self) -> Any:
        model, optimizer = self.run.model, self.run.optimizer
        # Lambdas in it are the user's own, so there is nothing to be protected from.
        safe = keras.src.saving.serialization_lib.SafeModeScope(False)
        with safe, refused("the model cannot be copied from its configuration"):
            is_graph = isinstance(model, (keras.Sequential, keras.src.models.Functional))
            copy = (
                keras.models.clone_model(model)
                if is_graph
                else type(model).from_config(model.get_config())
            )
            if not copy.built:
                copy(self.run.sample[0])
        other = optimizers.fresh(optimizer)
        if other is None:
            raise CannotAudit("the optimizer cannot be made anew from its configuration")
        copy.compile(
            optimizer=other,
            loss=getattr(model, "loss", None),
            jit_compile=model.jit_compile,
            run_eagerly=model.run_eagerly,
        )
        return copy


@contextmanager
def _global_seeds_put_back() -> Iterator[None]:
    """Within, Keras' generator for random operations without a seed may be replaced."""
    from keras.src.backend.common import global_state
    from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR

    before = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    try:
        yield
    finally:
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, before)


@contextmanager
def _own_seed_generator() -> Iterator[None]:
    """Within, random operations without a seed draw from a new generator, always the same."""
    from keras.src.backend.common import global_state
    from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR

    generator = keras.random.SeedGenerator(0, name="trainsanity_seeds")
    global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, generator)
    yield


def _same(a: Any, b: Any) -> bool:
    return bool(a.tobytes() == b.tobytes())
