"""One healthy training, drawn from a seed."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from random_fits import training
from random_fits.problems import any_problem
from trainsanity import SanityCallback
from trainsanity.spooled import Judgement, SpooledRun


@dataclass(frozen=True)
class Outcome:
    """What was trained, and what the rules say about it."""

    seed: int
    words: str
    judgement: Judgement
    run: SpooledRun

    @property
    def alarms(self) -> list[str]:
        """One line for each finding at `warning` or above."""
        return [_line(rule, finding) for rule, finding in self.judgement.at_least("warning")]

    @property
    def advice(self) -> list[str]:
        told = {rule.id for rule, _ in self.judgement.at_least("warning")}
        every = self.judgement.at_least("advice")
        return [_line(rule, finding) for rule, finding in every if rule.id not in told]


def _line(rule: Any, finding: Any) -> str:
    severity = (finding.severity or rule.severity).value
    return f"{severity} {rule.id} [{finding.subject}] {finding.message}"


def random_fit(seed: int) -> Outcome:
    """Builds, trains and judges the model that this seed stands for."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    policy = training.any_policy(rng)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _trained(seed, rng, policy, Path(folder))
    finally:
        keras.config.set_dtype_policy(before)


def _trained(seed: int, rng: np.random.Generator, policy: str, folder: Path) -> Outcome:
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
    callback = SanityCallback("offline", spool_dir=folder, keep_spool=True, verbose=False)
    problem.model.fit(**feed.arguments, callbacks=[*others, callback], verbose=0)
    run = SpooledRun.read(callback.settings.spool_dir / f"{callback.run_id}.spool")
    words = [problem.words, told, feed.words, policy, *map(_setting, options.items())]
    words += [type(other).__name__ for other in others]
    return Outcome(seed, "; ".join(words), run.judge(), run)


def _setting(item: tuple[str, Any]) -> str:
    return f"{item[0]}={item[1]}"
