"""One healthy training, drawn from a seed."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from random_fits import training
from random_fits.problems import Array, any_problem
from trainsanity import SanityCallback
from trainsanity.spooled import Judgement, SpooledRun


@dataclass(frozen=True)
class Outcome:
    """What was trained, and what the rules say about it.

    Attributes:
        is_sick: without the callback, too, training fails or weights end as NaN or never move: no
            healthy training.
    """

    seed: int
    words: str
    judgement: Judgement
    run: SpooledRun
    is_sick: bool

    @property
    def alarms(self) -> list[str]:
        """One line for each alert at `warning` or above: what was found last about a subject."""
        found = self.judgement.at_least("warning")
        return list({(rule.id, f.subject): _line(rule, f) for rule, f in found}.values())

    @property
    def advice(self) -> list[str]:
        told = {rule.id for rule, _ in self.judgement.at_least("warning")}
        every = self.judgement.at_least("advice")
        return [_line(rule, finding) for rule, finding in every if rule.id not in told]


def _line(rule: Any, finding: Any) -> str:
    severity = (finding.severity or rule.severity).value
    return f"{severity} {rule.id} [{finding.subject}] {finding.message}"


@dataclass(frozen=True)
class Drawn:
    """A compiled model and the arguments of its `fit`."""

    words: str
    model: keras.Model
    arguments: dict[str, Any]
    callbacks: list[Any]

    def fit(self, *further: Any) -> bool:
        """Trains; returns whether the weights end finite, and others than after the first step."""
        early = _FirstWeights()
        callbacks = [*self.callbacks, early, *further]
        self.model.fit(**self.arguments, callbacks=callbacks, verbose=0)
        weights = _trained_weights(self.model)
        return all(map(_is_finite, weights)) and not early.are(weights)


class _FirstWeights(keras.callbacks.Callback):
    """Keeps what the weights are after the first step, where there are more."""

    def __init__(self) -> None:
        super().__init__()
        self._first: list[Array] = []
        self._steps = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._steps += 1
        if self._steps == 1:
            self._first = _trained_weights(self.model)

    def are(self, weights: list[Array]) -> bool:
        same = all(np.array_equal(a, b) for a, b in zip(self._first, weights, strict=True))
        return self._steps > 1 and same


def _trained_weights(model: keras.Model) -> list[Array]:
    """As float64; on the host."""
    return [np.array(keras.ops.convert_to_numpy(w), "float64") for w in model.trainable_weights]


def _is_finite(weights: Array) -> bool:
    return bool(np.isfinite(weights).all())


def random_fit(seed: int) -> Outcome:
    """Builds, trains and judges the model that this seed stands for.

    Whether the training is healthy is asked of the weights, not of the rules: where they end as
    NaN, or never move, or training raises, the same model is trained once more without the
    callback.
    """
    with drawn(seed) as training_run, tempfile.TemporaryDirectory() as folder:
        callback = SanityCallback("offline", spool_dir=folder, keep_spool=True, verbose=False)
        is_healthy, error = _trained(training_run, callback)
        run = SpooledRun.read(callback.settings.spool_dir / f"{callback.run_id}.spool")
        words = training_run.words
    is_sick = not is_healthy and not _is_well(seed)
    if error is not None and not is_sick:
        raise error
    return Outcome(seed, words, run.judge(), run, is_sick)


def _is_well(seed: int) -> bool:
    """Without the callback."""
    with drawn(seed) as training_run:
        return _trained(training_run)[0]


def _trained(training_run: Drawn, *callbacks: Any) -> tuple[bool, Exception | None]:
    """Whether training ends well, and what it raises: Keras has optimizers that fail by
    themselves.
    """
    try:
        return training_run.fit(*callbacks), None
    except Exception as error:
        return False, error


@contextlib.contextmanager
def drawn(seed: int) -> Iterator[Drawn]:
    """What this seed stands for, under its dtype policy."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    policy = training.any_policy(rng)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield _drawn(rng, policy, Path(folder))
    finally:
        keras.config.set_dtype_policy(before)


def _drawn(rng: np.random.Generator, policy: str, folder: Path) -> Drawn:
    last = "float32" if policy.startswith("mixed") and rng.random() < 0.8 else None
    problem = any_problem(rng, last)
    optimizer, told = training.any_optimizer(rng, problem)
    feed = training.any_feed(rng, problem)
    weighted = "weighted" in feed.words
    options = training.any_compilation(rng, problem, optimizer)
    metrics = {"weighted_metrics" if weighted else "metrics": problem.metrics}
    problem.model.compile(optimizer, loss=problem.loss, **metrics, **options)
    validated = feed.arguments["validation_data"] is not None
    others = training.any_callbacks(rng, problem, optimizer, folder, validated=validated)
    words = [problem.words, told, feed.words, policy, *map(_setting, options.items())]
    words += [type(other).__name__ for other in others]
    return Drawn("; ".join(words), problem.model, feed.arguments, others)


def _setting(item: tuple[str, Any]) -> str:
    return f"{item[0]}={item[1]}"
