"""A fit in numpy that rounds as Keras does: float32 accumulators, sums in another order, epochs.

Nothing here is wrong on purpose; tests damage the result afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainsanity.rules import RunFacts, RunHistory
from trainsanity.wire import Audit, Block

F32 = np.float32


@dataclass(frozen=True)
class Fit:
    """What is trained, and on what.

    Attributes:
        rows: of the data set; the last batch is short where `size` does not divide them.
        time: positions a row; `padded` of them are padding on average.
        weights: sample weights that have nothing to do with what is right.
        scale: of the loss; `skew` is the exponent that spreads it from sample to sample.
        constant: every sample has the same loss, which makes all roundings err to one side.
    """

    seed: int = 0
    epochs: int = 2
    rows: int = 100
    size: int = 32
    time: int = 8
    padded: float = 0.4
    weights: bool = True
    scale: float = 1.0
    skew: float = 1.0
    constant: bool = False

    def history(self) -> RunHistory:
        return _run(self)


def keras_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Running mean as `keras.metrics.Mean` keeps it: a total and a count in float32."""
    total = np.cumsum((values * weights).astype(F32), dtype=F32)
    count = np.cumsum(weights.astype(F32), dtype=F32)
    return (total / np.where(count > 0, count, F32(1))).astype(F32)


def exact_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Running mean of the batch values in double precision, as the client keeps it."""
    total = np.cumsum(values.astype(np.float64) * weights)
    return total / np.maximum(np.cumsum(weights.astype(np.float64)), 1e-30)


def _run(fit: Fit) -> RunHistory:
    random = np.random.default_rng(fit.seed)
    run = RunHistory(RunFacts(backend="tensorflow", keras_version="3.15.1"))
    accuracy = {
        "key": "accuracy",
        "kind": "SparseCategoricalAccuracy",
        "output": "",
        "weighted": False,
        "recomputed_by": "reference",
        "mean_of": "positions",
    }
    outputs = [{"name": "", "shape": [None, fit.time, 7], "dtype": "float32"}]
    run.add_audit(Audit("columns", 1, {"metrics": [accuracy], "outputs": outputs}))
    begin = 1
    for epoch in range(fit.epochs):
        columns = _epoch(fit, random)
        n = len(columns["batch/size"])
        steps = np.arange(begin, begin + n, dtype=np.int64)
        values = np.stack([np.asarray(c, F32) for c in columns.values()])
        run.append(Block(tuple(columns), steps, values))
        facts = {
            "epoch": epoch,
            "first_step": begin,
            "last_step": begin + n - 1,
            "batches": n,
            "iterations_before": begin - 1,
            "iterations_after": begin + n - 1,
            "declared_steps": n,
            "reported": {"loss": float(columns["loss/reported"][-1])},
            "steps_per_execution": 1,
            "gradient_accumulation": None,
            "loss_scale_skips": 0,
            "progress_total": n,
            "stopped": False,
        }
        run.add_audit(Audit("epoch", begin + n - 1, facts))
        begin += n
    return run


def _epoch(fit: Fit, random: np.random.Generator) -> dict[str, np.ndarray]:
    n = -(-fit.rows // fit.size)
    sizes = np.full(n, fit.size)
    sizes[-1] = fit.rows - fit.size * (n - 1)
    batches = [_batch(fit, random, int(size)) for size in sizes]
    columns = {name: np.array([b[name] for b in batches]) for name in batches[0]}
    hits, real = columns.pop("_hits"), columns.pop("_real")
    weighted_hits, weight = columns.pop("_weighted_hits"), columns.pop("_weight")
    size = sizes.astype(F32)
    loss = columns["loss/differentiated"]
    accuracy = hits / np.maximum(real, 1)
    return columns | {
        "batch/size": size,
        "loss/reported": keras_mean(loss, size),
        "loss/recomputed": exact_mean(columns["loss/batch"], size),
        "accuracy/reported": keras_mean(accuracy, real),
        "accuracy/recomputed": exact_mean(accuracy, real),
        "accuracy/unmasked": exact_mean(accuracy, real),
        "accuracy/batch": accuracy,
        "accuracy/weighted": exact_mean(weighted_hits / np.maximum(weight, 1e-30), weight),
    }


def _batch(fit: Fit, random: np.random.Generator, size: int) -> dict[str, float]:
    ids = random.integers(1, 50, (size, fit.time))
    length = np.maximum(random.binomial(fit.time, 1 - fit.padded, size), 1)
    is_real = np.arange(fit.time) < length[:, None]
    ids = np.where(is_real, ids, 0)
    hit = (random.random((size, fit.time)) < 0.7) & is_real
    weight = random.random(size) if fit.weights else np.ones(size)
    loss = fit.scale * random.exponential(size=(size, fit.time)) ** fit.skew
    if fit.constant:
        loss = np.full((size, fit.time), 0.1 * fit.scale)
    each = (np.where(is_real, loss, 0) * weight[:, None]).astype(F32)
    real = F32(is_real.sum())
    # The same terms in two orders, as a fused kernel and a plain one add them.
    one = F32(np.cumsum(each.ravel(), dtype=F32)[-1]) / real
    other = F32(np.cumsum(each.T[::-1].ravel(), dtype=F32)[-1]) / real
    plain = F32(np.where(is_real, loss, 0).astype(F32).sum(dtype=F32)) / real
    coverage = F32(is_real.mean())
    columns = {
        "loss/differentiated": one,
        "loss/batch": other,
        "loss/added": F32(0),
        "loss/elements": F32(size * fit.time),
        "loss/expected_elements": F32(size * fit.time * 7),
        "mask/input_coverage": coverage,
        "mask/loss_coverage": coverage,
        "mask/metric_coverage": coverage,
        "mask/padding_credit": F32(0),
        "mask/real_uncounted": F32(0),
        "mask/target_padding": F32(0.1),
        "mask/target_padding_most": F32(1),
        "mask/target_next_input": F32(1 / 50),
        "embedding:words/id_max": F32(ids.max()),
        "embedding:words/id_min": F32(ids.min()),
        "embedding:words/input_dim": F32(50),
        "embedding:words/out_of_range": F32(0),
        "labels/max": F32(6),
        "labels/min": F32(0),
        "labels/classes": F32(7),
        "inputs/nonfinite": F32(0),
        "outputs/nonfinite": F32(0),
        "loss/nonfinite": F32(0),
        "gradient/nonfinite": F32(0),
        "weights/nonfinite": F32(0),
        "_hits": F32(hit.sum()),
        "_real": real,
        "_weighted_hits": F32((hit * weight[:, None]).sum()),
        "_weight": F32((is_real * weight[:, None]).sum()),
    }
    if fit.weights:
        columns |= {
            "loss/batch_unweighted": plain,
            "sample_weight/mean": F32(weight.astype(F32).mean(dtype=F32)),
            "sample_weight/min": F32(weight.min()),
            "sample_weight/max": F32(weight.max()),
            "sample_weight/given_mean": F32(weight.mean()),
            "sample_weight/given_min": F32(weight.min()),
            "sample_weight/given_max": F32(weight.max()),
        }
    return columns
