"""Losses and metrics of every form, and what counts in them: weights, reductions, masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from tests.fits.cells.by_hand import Line, cut, rows, to_date
from tests.fits.cells.cell import Cell, Evidence, Scene
from tests.fits.cells.models import by_name, compiled, heads, heads_of, labels
from tests.fits.cells.running import QUICKLY
from tests.fits.cells.steps import fitted

BACKEND = keras.backend.backend()
GIVEN = np.linspace(0.2, 1.8, 10).astype("float32")
SIZE = 5


@dataclass
class Still:
    """A line that is never trained, on ten rows in two batches: everything about it is known.

    Attributes:
        loss: given to `compile`; `by_row` is the same for errors (rows,) in numpy.
        weight: sample weights or None.
    """

    loss: Any
    by_row: Callable[[Any], Any]
    weight: Any = None
    options: Mapping[str, Any] | None = None

    def errors(self) -> list[Any]:
        """Labels minus outputs of each batch."""
        line = Line.of()
        return [(y - line(x))[:, 0] for x, y in cut(SIZE, rows(), rows(10, 1, seed=6))]

    def weights(self) -> list[Any]:
        given = np.ones(10) if self.weight is None else self.weight.astype(np.float64)
        return [w for (w,) in cut(SIZE, given)]

    def scene(self, evidence: Callable[[], Evidence]) -> Scene:
        model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
        model.set_weights(Line.of().weights())
        model.compile(keras.optimizers.SGD(0.0), self.loss, **QUICKLY, **(self.options or {}))
        x, y = rows(), rows(10, 1, seed=6)
        return fitted(model, evidence, x, y, sample_weight=self.weight, batch_size=SIZE, epochs=1)

    def losses(self, reduce: Callable[[Any, Any], float]) -> list[float]:
        return [
            reduce(self.by_row(e), w) for e, w in zip(self.errors(), self.weights(), strict=True)
        ]


def running(values: Sequence[float]) -> Any:
    """Means since the epoch began, over equal batches."""
    return to_date([[(v, 1.0) for v in values]])


def of_batch(values: Any, weights: Any) -> float:
    return float((values * weights).mean())


def of_weights(values: Any, weights: Any) -> float:
    return float((values * weights).sum() / weights.sum())


def in_sum(values: Any, weights: Any) -> float:
    return float((values * weights).sum())


# Losses


def cubes(y_true: Any, y_pred: Any) -> Any:
    return ops.mean(ops.abs(y_true - y_pred) ** 3, axis=-1)


def cubed(errors: Any) -> Any:
    return np.abs(errors) ** 3


class Cubes(keras.losses.Loss):
    """The same as a class."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return cubes(y_true, y_pred)


def a_loss(loss: Any, reduce: Callable[[Any, Any], float] = of_batch, weight: Any = GIVEN) -> Scene:
    still = Still(loss, cubed, weight)

    def evidence() -> Evidence:
        values = still.losses(reduce)
        alike = replace_weights(still).losses(reduce)
        signals = {
            "loss/batch": values,
            "loss/differentiated": values,
            "loss/reported": running(values),
            "loss/recomputed": running(values),
            "loss/elements": [SIZE, SIZE],
        }
        if weight is not None:
            signals["loss/batch_unweighted"] = alike
            signals["loss/weighted"] = running(values)
            signals["loss/all"] = running(alike)
        return Evidence(signals)

    return still.scene(evidence)


def replace_weights(still: Still) -> Still:
    """The same without weights."""
    return Still(still.loss, still.by_row)


def mean_cube(y_true: Any, y_pred: Any) -> Any:
    return ops.mean(cubes(y_true, y_pred))


def loss_of_one_number() -> Scene:
    """Without weights a mean is a mean."""
    still = Still(lambda y_true, y_pred: mean_cube(y_true, y_pred), cubed)

    def evidence() -> Evidence:
        values = still.losses(of_batch)
        signals = {
            "loss/batch": values,
            "loss/differentiated": values,
            "loss/recomputed": running(values),
            "loss/reported": running(values),
            "loss/elements": [1, 1],
        }
        return Evidence(signals)

    return still.scene(evidence)


def weighted_loss_of_one_number() -> Scene:
    """With weights it cannot be weighed again: Keras multiplies it with their mean."""
    still = Still(mean_cube, cubed, GIVEN)

    def evidence() -> Evidence:
        means = zip(replace_weights(still).losses(of_batch), still.weights(), strict=True)
        values = [mean * float(w.mean()) for mean, w in means]
        signals = {"loss/differentiated": values, "loss/reported": running(values)}
        reasons = {"loss/recomputed": "is reduced by itself"}
        absent = ("loss/recomputed", "loss/batch", "loss/batch_unweighted", "loss/all")
        said = ("sample-weight-effect",)  # no sample counts more than another
        return Evidence(signals, absent=absent, reasons=reasons, said=said)

    return still.scene(evidence)


def loss_without_reduction() -> Scene:
    still = Still(Cubes(reduction=None), cubed, GIVEN)

    def evidence() -> Evidence:
        signals = {
            "loss/differentiated": still.losses(in_sum),
            "loss/reported": running(still.losses(of_batch)),
        }
        reasons = {"loss/recomputed": "has no reduction"}
        return Evidence(signals, absent=("loss/recomputed", "loss/batch"), reasons=reasons)

    return still.scene(evidence)


def class_weights() -> Scene:
    """Softmax by hand over three classes."""
    line, x = Line.of(outputs=3), rows()
    y = np.array([0, 1, 2, 0, 1, 1, 2, 2, 0, 0])
    declared = {0: 0.5, 1: 2.0, 2: 4.0}
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3)])
    model.set_weights(line.weights())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        keras.optimizers.SGD(0.0),
        loss,
        metrics=["accuracy"],
        weighted_metrics=["acc"],
        **QUICKLY,
    )

    def evidence() -> Evidence:
        logits = line(x)
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        losses, right = -logs[np.arange(10), y], (logits.argmax(axis=1) == y).astype(float)
        weight = np.array([declared[c] for c in y])
        batches = cut(SIZE, losses, right, weight)
        values = [of_batch(v, w) for v, _, w in batches]
        means = [float(w.mean()) for _, _, w in batches]
        accuracy = running([r.mean() for _, r, _ in batches])
        weighted = to_date([[(float((r * w).sum()), float(w.sum())) for _, r, w in batches]])
        signals = {
            "loss/batch": values,
            "loss/recomputed": running(values),
            "loss/batch_unweighted": [float(v.mean()) for v, _, _ in batches],
            "sample_weight/mean": means,
            "sample_weight/declared_mean": means,
            "accuracy/reported": accuracy,
            "accuracy/recomputed": accuracy,
            "accuracy/weighted": weighted,
            "acc/reported": weighted,
            "acc/recomputed": weighted,
            "acc/all": accuracy,
            "labels/min": [0, 0],
            "labels/max": [2, 2],
        }
        return Evidence(signals)

    return fitted(model, evidence, x, y, class_weight=declared, batch_size=SIZE, epochs=1)


def two_losses_for_one_output() -> Scene:
    """Keras 3.15.1 computes both and trains on the first one only."""
    line, x, y = Line.of(rate=0.0), rows(12), rows(12, 1, seed=6)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    model.set_weights(line.weights())
    model.compile(keras.optimizers.SGD(0.0), ["mse", "mae"], **QUICKLY)

    def evidence() -> Evidence:
        errors = [line(bx) - by for bx, by in cut(3, x, y)]
        first = [float(np.square(e).mean()) for e in errors]
        both = [v + float(np.abs(e).mean()) for v, e in zip(first, errors, strict=True)]
        signals = {
            "loss/differentiated": first,
            "loss/reported": running(first),
            "loss/batch": both,
            "loss/recomputed": running(both),
        }
        said = ("loss-decomposition-mismatch", "metric-recompute-mismatch")
        return Evidence(signals, said=said)

    return fitted(model, evidence, x, y, batch_size=3, epochs=1)


# Metrics


def quarters(y_true: Any, y_pred: Any) -> Any:
    return ops.mean(ops.abs(y_true - y_pred), axis=-1) / 4


class Quarters(keras.metrics.MeanMetricWrapper):
    """The same as a class."""

    def __init__(self) -> None:
        super().__init__(quarters, name="quarters_class")


class Worst(keras.metrics.Metric):
    """The largest error, which is no mean over rows."""

    def __init__(self) -> None:
        super().__init__(name="worst")
        self.largest = self.add_variable((), "zeros", name="largest")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        worst = ops.max(ops.abs(y_true - y_pred))
        self.largest.assign(ops.maximum(self.largest, worst))

    def result(self) -> Any:
        return ops.convert_to_tensor(self.largest)


def mean_quarter(y_true: Any, y_pred: Any) -> Any:
    return ops.mean(quarters(y_true, y_pred))


def metrics_of_every_form() -> Scene:
    metrics = [
        quarters,
        lambda y_true, y_pred: quarters(y_true, y_pred) * 4,
        Quarters(),
        Worst(),
        mean_quarter,
        keras.metrics.MeanSquaredError(name="squares"),
    ]
    options = {"metrics": metrics, "weighted_metrics": [quarters, "mae"]}
    still = Still(Cubes(), cubed, GIVEN, options)

    def evidence() -> Evidence:
        errors = still.errors()
        plain = {
            "quarters": [np.abs(e).mean() / 4 for e in errors],
            "lambda": [np.abs(e).mean() for e in errors],
            "quarters_class": [np.abs(e).mean() / 4 for e in errors],
            "squares": [np.square(e).mean() for e in errors],
        }
        found: dict[str, Any] = {}
        for key, values in plain.items():
            for witness in ("reported", "recomputed", "all"):
                found[f"{key}/{witness}"] = running(values)
            found[f"{key}/batch"] = values
        pairs = zip(errors, still.weights(), strict=True)
        sums = [(float((np.abs(e) * w).sum()), float(w.sum())) for e, w in pairs]
        for witness in ("reported", "recomputed"):
            found[f"mae/{witness}"] = to_date([sums])
            found[f"weighted_quarters/{witness}"] = to_date([sums]) / 4
        found["quarters/weighted"] = to_date([sums]) / 4
        found["worst/reported"] = np.maximum.accumulate([np.abs(e).max() for e in errors])
        found["mean_quarter/reported"] = running(plain["quarters"])
        reasons = {
            "worst": "Worst is no mean over positions",
            "mean_quarter": "the function reduces its values itself",
        }
        return Evidence(
            found, absent=("worst/recomputed", "mean_quarter/recomputed"), reasons=reasons
        )

    return still.scene(evidence)


def metric_named_loss() -> Scene:
    """Keras shows the metric where the loss should be: two objects want one key."""
    metric = keras.metrics.MeanAbsoluteError(name="loss")
    still = Still(Cubes(), cubed, None, {"metrics": [metric]})

    def evidence() -> Evidence:
        absolute = [float(np.abs(e).mean()) for e in still.errors()]
        values = still.losses(of_batch)
        signals = {"loss/reported": running(absolute), "loss/differentiated": values}
        return Evidence(signals, said=("log-key-integrity",))

    return still.scene(evidence)


# The same name for metrics of two outputs


def names_that_collide() -> Scene:
    """Output `near` with a metric `far_mae`, and output `near_far` with a metric `mae`."""
    lines, y = heads(), labels()
    lines["near_far"], y["near_far"] = lines.pop("far"), y.pop("far")
    inputs, outputs = heads_of(lines)
    one = keras.metrics.MeanAbsoluteError(name="far_mae")
    weights = {"near": 1.0, "near_far": 0.3}
    model = compiled(
        keras.Model(inputs, outputs),
        loss={"near": "mse", "near_far": "mse"},
        loss_weights=weights,
        metrics={"near": [one], "near_far": ["mae"]},
    )
    shown = {"near": "near_", "near_far": "near_far_"}

    def evidence() -> Evidence:
        found = by_name(lines, y, weights=weights, shown=shown)
        swapped = {"near_mae": "near_far_mae", "near_far_mae": "near_far_mae_1"}
        for witness in ("reported", "recomputed"):
            values = {key: found.pop(f"{key}/{witness}") for key in swapped}
            found.update({f"{new}/{witness}": values[old] for old, new in swapped.items()})
        return Evidence(found)

    return fitted(model, evidence, rows(), y, batch_size=5)


# Masks

IDS = np.array([[1, 2, 3, 0], [4, 1, 0, 0], [2, 3, 0, 0], [3, 1, 4, 2], [5, 0, 0, 0], [1, 5, 2, 0]])


def masked(reduction: str, *, weighted: bool) -> Scene:
    """A table of outputs by word, so that they are known without training."""
    table = np.linspace(-1, 1, 12).reshape(6, 2).astype("float32")
    y = (IDS * 7 % 3)[..., None].astype("float32")
    weight = np.linspace(0.5, 2, 24).reshape(6, 4).astype("float32") if weighted else None
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(6, 2, mask_zero=True),
            layers.Dense(1, use_bias=False),
        ]
    )
    model.set_weights([table, np.array([[0.7], [-0.4]], "float32")])
    loss = keras.losses.MeanSquaredError(reduction=reduction)
    options = {"metrics": ["mae"], "weighted_metrics": ["mse"] if weighted else None}
    model.compile(keras.optimizers.SGD(0.0), loss, **QUICKLY, **options)

    def evidence() -> Evidence:
        outputs = (table.astype(float) @ [0.7, -0.4])[IDS]
        w = np.ones(IDS.shape) if weight is None else weight.astype(float)
        batches = cut(3, y[..., 0] - outputs, (IDS != 0).astype(float), w)
        return masked_evidence(batches, reduction, weighted=weighted)

    return fitted(model, evidence, IDS, y, sample_weight=weight, batch_size=3, epochs=1)


def one_of_two_masked() -> Scene:
    """A tag for each word and one number for the sentence: what counts is said for both."""
    table = np.linspace(-1, 1, 12).reshape(6, 2).astype("float32")
    words, ends = (IDS * 7 % 3)[..., None].astype("float32"), rows(6, 1)
    ids = keras.Input((4,), dtype="int32")
    embedded = layers.Embedding(6, 2, mask_zero=True)(ids)
    dense = [layers.Dense(1, use_bias=False, name=name) for name in ("each", "all")]
    each = dense[0](embedded)
    whole = dense[1](layers.GlobalAveragePooling1D()(embedded))
    model = keras.Model(ids, {"each": each, "all": whole})
    model.layers[1].set_weights([table])
    for layer, kernel in zip(dense, KERNELS, strict=True):
        layer.set_weights([np.array(kernel, "float32")[:, None]])
    options = {"loss": dict.fromkeys(("each", "all"), "mse"), "loss_weights": {"each": 1, "all": 2}}
    model.compile(keras.optimizers.SGD(0.0), **options, **QUICKLY)

    def evidence() -> Evidence:
        vectors, real = table.astype(float)[IDS], (IDS != 0).astype(float)
        apart = np.square(words[..., 0] - vectors @ KERNELS[0])
        means = (vectors * real[..., None]).sum(axis=1) / real.sum(axis=1, keepdims=True)
        whole = np.square(ends[:, 0] - means @ KERNELS[1])
        batches = cut(3, apart, real, whole)
        counted = [float((a * r).sum() / r.sum() + 2 * w.mean()) for a, r, w in batches]
        signals = {
            "loss/batch": counted,
            "loss/recomputed": running(counted),
            "loss/unmasked": running(counted),
            "loss/all": running([float(a.mean() + 2 * w.mean()) for a, _, w in batches]),
        }
        return Evidence(signals, absent=("loss/by_position", "loss/weighted"))

    return fitted(model, evidence, IDS, {"each": words, "all": ends}, batch_size=3, epochs=1)


KERNELS = ([0.7, -0.4], [0.3, 0.9])


def masked_evidence(batches: list[Any], reduction: str, *, weighted: bool) -> Evidence:
    def divided(values: Any, real: Any, w: Any) -> float:
        total = float((values * real * w).sum())
        counts = real if reduction == "sum_over_batch_size" else real * w
        return total if reduction == "sum" else total / float(counts.sum())

    values = [divided(e**2, real, w) for e, real, w in batches]
    alone = [divided(e**2, real, 0 * w + 1) for e, real, w in batches]
    everywhere = [divided(e**2, 0 * real + 1, 0 * w + 1) for e, real, w in batches]
    coverage = [float(real.mean()) for _, real, _ in batches]
    counted = real_mean(batches, weighted=False, masked=True)
    # Keras 3.15.1 on JAX counts padding in training metrics.
    seen = real_mean(batches, weighted=False, masked=BACKEND != "jax")
    found = {
        "loss/batch": values,
        "loss/differentiated": values,
        "loss/reported": running(values),
        "loss/recomputed": running(values),
        "loss/unmasked": running(alone),
        "loss/all": running(everywhere),
        "mask/input_coverage": coverage,
        "mask/loss_coverage": coverage,
        "mask/metric_coverage": [1.0, 1.0] if BACKEND == "jax" else coverage,
        "mae/reported": seen,
        "mae/recomputed": seen,
        "mae/unmasked": counted,
        "mae/all": real_mean(batches, weighted=False, masked=False),
    }
    if weighted:
        found["loss/batch_unweighted"] = alone
        found["mse/unmasked"] = real_mean(batches, weighted=False, masked=True, power=2)
        for witness in ("reported", "recomputed"):
            found[f"mse/{witness}"] = real_mean(
                reaching_metrics(batches, reduction),
                weighted=True,
                masked=BACKEND != "jax",
                power=2,
            )
    return Evidence(found, said=("mask-coverage-mismatch",) if BACKEND == "jax" else ())


def reaching_metrics(batches: list[Any], reduction: str) -> list[Any]:
    """On torch the loss of Keras 3.15.1 multiplies the weights with the mask in place."""
    if BACKEND != "torch" or reduction != "sum_over_batch_size":
        return batches
    return [(e, real, w * real * real.size / real.sum()) for e, real, w in batches]


def real_mean(batches: list[Any], *, weighted: bool, masked: bool, power: int = 1) -> Any:
    """Keras averages a row's positions before it adds rows, with weights as with values."""
    sums = []
    for errors, real, weight in batches:
        counted = (real if masked else 1 + 0 * real) * (weight if weighted else 1)
        sums.append((float((np.abs(errors) ** power * counted).sum()), float(counted.sum())))
    return to_date([sums])


GROUP = "losses and metrics"

CELLS = [
    Cell(GROUP, "loss as a function", partial(a_loss, cubes)),
    Cell(GROUP, "loss as a class", partial(a_loss, Cubes(), weight=None)),
    Cell(GROUP, "reduction by sum", partial(a_loss, Cubes(reduction="sum"), in_sum)),
    Cell(
        GROUP,
        "reduction mean_with_sample_weight",
        partial(a_loss, Cubes(reduction="mean_with_sample_weight"), of_weights),
    ),
    Cell(GROUP, "loss without reduction", loss_without_reduction, ("tensorflow",)),
    Cell(GROUP, "two losses for one output", two_losses_for_one_output),
    Cell(GROUP, "lambda that returns one number", loss_of_one_number),
    Cell(GROUP, "one number, with sample weights", weighted_loss_of_one_number),
    Cell(GROUP, "class_weight, weighted metrics", class_weights),
    Cell(GROUP, "metrics as functions, lambdas and classes", metrics_of_every_form),
    Cell(GROUP, "metric named loss", metric_named_loss),
    Cell(GROUP, "metrics of two outputs under one name", names_that_collide),
    Cell(GROUP, "mask", partial(masked, "sum_over_batch_size", weighted=False)),
    Cell(GROUP, "two outputs, a mask for one", one_of_two_masked),
    Cell(GROUP, "mask and weights", partial(masked, "sum_over_batch_size", weighted=True)),
    Cell(
        GROUP,
        "mask and weights, mean_with_sample_weight",
        partial(masked, "mean_with_sample_weight", weighted=True),
    ),
]
