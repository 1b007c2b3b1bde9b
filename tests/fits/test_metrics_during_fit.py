"""The list of the model's metrics is during `fit` as it is without us."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from tests.watched import watched_fit

from trainsanity.tape import Tape


class Zeroed(keras.metrics.Metric):
    """Counts batches; reset by what Keras does by default: zeros for all variables."""

    def __init__(self, name: str = "batches") -> None:
        super().__init__(name=name)
        self.seen = self.add_variable((), "zeros", name="seen")

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        self.seen.assign(self.seen + 1.0)

    def result(self) -> Any:
        return keras.ops.convert_to_tensor(self.seen)


class Counting(keras.Model):
    """Holds a metric of its own, beside those of `compile` or in place of them."""

    def __init__(self, *args: Any, alone: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batches = Zeroed()
        self.alone = alone

    @property
    def metrics(self) -> list[Any]:
        return [self._loss_tracker, self.batches] if self.alone else super().metrics

    def compute_metrics(self, *args: Any, **kwargs: Any) -> Any:
        self.batches.update_state()
        return super().compute_metrics(*args, **kwargs)


class Shown(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        found = {m.name: m for m in self.model.metrics}
        numbers = {name: float(found[name].result()) for name in ("loss", "batches")}
        self.seen.append((self.model.metrics_names, numbers, sorted(logs)))


def fitted(*callbacks: Any, alone: bool, watched: bool) -> tuple[Any, Any]:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((3,))
    model = Counting(inputs, keras.layers.Dense(1)(inputs), alone=alone)
    model.compile("sgd", "mse", metrics=["mae"])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)).astype("float32"), np.zeros((20, 1), "float32")
    options: dict[str, Any] = {"batch_size": 4, "epochs": 2, "shuffle": False, "verbose": 0}
    if watched:
        return model, watched_fit(model, x, y, callbacks=[*callbacks], **options)
    model.fit(x, y, callbacks=[*callbacks], **options)
    return model, None


def test_a_callback_goes_through_the_metrics_as_without_us() -> None:
    plain, shown = Shown(), Shown()
    fitted(plain, alone=False, watched=False)
    model, run = fitted(shown, alone=False, watched=True)
    assert shown.seen == plain.seen
    assert [numbers["batches"] for _, numbers, _ in shown.seen] == [5.0, 5.0]
    steps, _ = run.signal("loss/recomputed")
    assert steps.tolist() == [*range(1, 11)]
    for metric in model.metrics:
        assert not any(isinstance(inner, Tape) for inner in getattr(metric, "_metrics", []))
        assert "reset_state" not in vars(metric)


def test_a_list_of_metrics_of_the_users_carries_the_evidence_too() -> None:
    plain, shown = Shown(), Shown()
    fitted(plain, alone=True, watched=False)
    _, run = fitted(shown, alone=True, watched=True)
    assert shown.seen == plain.seen
    steps, _ = run.signal("loss/recomputed")
    assert steps.tolist() == [*range(1, 11)]
