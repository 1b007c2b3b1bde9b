"""Kinds of model: how layers are put together, and what goes in and comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import layers
from tests.fits.cells.by_hand import Line, cut, rows, to_date, trained
from tests.fits.cells.cell import Cell, Evidence, Scene
from tests.fits.cells.running import QUICKLY, compile_as, weighted_rows
from tests.fits.cells.steps import fitted

# One output: each of these models computes the same line.


def functional() -> keras.Model:
    inputs = keras.Input((3,))
    return keras.Model(inputs, layers.Dense(1)(inputs))


class Subclassed(keras.Model):
    """A model with a `call` of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.line = layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.line(x)


def subclassed() -> keras.Model:
    model = Subclassed()
    model(np.zeros((1, 3), "float32"))
    return model


def nested() -> keras.Model:
    inputs = keras.Input((3,))
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    outer = keras.Model(inputs, inner(inputs))
    return keras.Sequential([keras.Input((3,)), layers.Rescaling(1.0), outer])


class Adding(layers.Layer):
    """Adds a loss of its own: the mean square of what passes."""

    def call(self, x: Any) -> Any:
        self.add_loss(0.5 * keras.ops.mean(keras.ops.square(x)))
        return x


def adding() -> keras.Model:
    return keras.Sequential([keras.Input((3,)), Adding(), layers.Dense(1)])


def one_line(make: Callable[[], keras.Model], size: int = 5) -> Scene:
    line, (x, y, weight) = Line.of(), weighted_rows()
    model = make()
    model.set_weights(line.weights())
    compile_as(line, model, **QUICKLY)

    def evidence() -> Evidence:
        signals = trained(line, [cut(size, x, y, weight)] * 2)
        if any(isinstance(layer, Adding) for layer in model.layers):
            signals = with_added(signals, [0.5 * np.square(b).mean() for (b,) in cut(size, x)] * 2)
        return Evidence(signals)

    return fitted(model, evidence, x, y, sample_weight=weight, batch_size=size)


def with_added(signals: Mapping[str, Any], added: list[float]) -> dict[str, Any]:
    """The same training with an added loss that moves no weight; epochs of two equal batches."""
    means = to_date([[(v, 1.0) for v in added[:2]], [(v, 1.0) for v in added[2:]]])
    changed = {
        f"loss/{witness}": np.asarray(signals[f"loss/{witness}"]) + more
        for witness, more in {
            "reported": means,
            "recomputed": means,
            "batch": added,
            "batch_unweighted": added,
        }.items()
    }
    kept = {name: v for name, v in signals.items() if name not in ("loss/weighted", "loss/all")}
    return {**kept, **changed, "loss/added": np.array(added)}


# Several inputs


def shared_layer() -> Scene:
    """One layer for two inputs: what it gives is added."""
    line = Line.of()
    left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
    dense = layers.Dense(1)
    dense.build((None, 3))
    dense.set_weights(line.weights())
    model = keras.Model({"left": left, "right": right}, layers.Add()([dense(left), dense(right)]))
    compile_as(line, model, **QUICKLY)
    a, b, y = rows(), rows(seed=7), rows(10, 1, seed=6)

    def evidence() -> Evidence:
        # x @ k + bias for both: a line over the sum of inputs, whose bias counts twice.
        both = Line(np.vstack([line.kernel, line.bias[None] * 0]), 2 * line.bias, line.rate)
        both.kernel[-1] = 0
        joined = Twice(both.kernel[:-1], both.bias, both.rate)
        return Evidence(trained(joined, [[(*batch, None) for batch in cut(5, a + b, y)]] * 2))

    return fitted(model, evidence, {"left": a, "right": b}, y, batch_size=5)


class Twice(Line):
    """A line whose bias is the sum of two equal ones."""

    def learn(self, x: Any, y: Any, weight: Any = None) -> Any:
        before = self.bias
        errors = super().learn(x, y, weight)
        self.bias = before + 4 * (self.bias - before)
        return errors


# Several outputs: each is a line of its own, whose learning rate its loss weight scales.

RATE = 0.05
WEIGHTS = {"near": 1.0, "far": 0.3}


def heads() -> dict[str, Line]:
    near = Line.of(rate=RATE * WEIGHTS["near"])
    far = Line(near.kernel[::-1] * 2, near.bias + 0.5, RATE * WEIGHTS["far"])
    return {"near": near, "far": far}


def heads_of(lines: Mapping[str, Line]) -> tuple[Any, dict[str, Any]]:
    """An input and the tensors of its outputs."""
    inputs = keras.Input((3,))
    outputs = {}
    for name, line in lines.items():
        dense = layers.Dense(1, name=name)
        outputs[name] = dense(inputs)
        dense.set_weights(line.weights())
    return inputs, outputs


def labels() -> dict[str, Any]:
    return {"near": rows(10, 1, seed=6), "far": rows(10, 1, seed=7)}


def by_name(
    lines: Mapping[str, Line],
    y: Mapping[str, Any],
    *,
    weights: Mapping[str, float],
    sample_weight: Mapping[str, Any] | None = None,
    shown: Mapping[str, str],
) -> dict[str, Any]:
    """Evidence of two epochs of two batches of five rows.

    Args:
        weights: of the losses; outputs without a loss are left out.
        shown: name of an output -> what Keras calls it in the keys of metrics.
    """
    x, found = rows(), {}
    total = np.zeros(4)
    for name, line in lines.items():
        errors, means, ranges = [], [], []
        for (bx,), (by,), (bw,) in (
            batch
            for _ in range(2)
            for batch in zip(
                cut(5, x),
                cut(5, y[name]),
                cut(5, (sample_weight or {}).get(name, np.ones(10))),
                strict=True,
            )
        ):
            outputs = line(bx)
            ranges.append(outputs.min())
            error = line.learn(bx, by, bw) if name in weights else outputs - by
            errors.append(float(np.abs(error).mean()))
            means.append(float((np.square(error)[:, 0] * bw).mean()))
        total += weights.get(name, 0.0) * np.array(means)
        for witness in ("reported", "recomputed"):
            found[f"{shown[name]}mae/{witness}"] = halves(errors)
        if name in weights and len(weights) > 1 and shown[name]:
            found[f"{shown[name]}loss/reported"] = halves(means)
        found[f"outputs:{name}/min"] = ranges
        if sample_weight and name in sample_weight:
            found[f"sample_weight:{name}/mean"] = [
                float(w.mean()) for (w,) in cut(5, sample_weight[name]) * 2
            ]
    found["loss/batch"] = found["loss/differentiated"] = total
    for witness in ("reported", "recomputed"):
        found[f"loss/{witness}"] = halves(list(total))
    return {**found, "batch/size": [5] * 4}


def halves(values: list[float]) -> Any:
    """Means since the epoch began, of two epochs of two equal batches."""
    return to_date([[(v, 1.0) for v in values[i : i + 2]] for i in (0, 2)])


def compiled(model: keras.Model, **options: Any) -> keras.Model:
    model.compile(keras.optimizers.SGD(RATE), **QUICKLY, **options)
    return model


NAMED = {name: f"{name}_" for name in WEIGHTS}


def listed() -> Scene:
    lines, y = heads(), labels()
    inputs, outputs = heads_of(lines)
    model = compiled(
        keras.Model(inputs, list(outputs.values())),
        loss=["mse", "mse"],
        loss_weights=list(WEIGHTS.values()),
        metrics=[["mae"], ["mae"]],
    )

    def evidence() -> Evidence:
        return Evidence(by_name(lines, y, weights=WEIGHTS, shown=NAMED))

    return fitted(model, evidence, rows(), [*y.values()], batch_size=5)


def in_a_dict(*, weighted: Sequence[str] = ("near", "far")) -> Scene:
    """With sample weights by output, for these outputs."""
    lines, y = heads(), labels()
    every = {"near": np.linspace(0.1, 1, 10), "far": np.linspace(2, 1, 10)}
    given = {name: every[name].astype("float32") for name in weighted}
    inputs, outputs = heads_of(lines)
    model = compiled(
        keras.Model(inputs, outputs),
        loss={"far": "mse", "near": keras.losses.MeanSquaredError()},
        loss_weights={"far": WEIGHTS["far"], "near": WEIGHTS["near"]},
        metrics={"far": ["mae"], "near": "mae"},
    )

    def evidence() -> Evidence:
        found = by_name(lines, y, weights=WEIGHTS, sample_weight=given, shown=NAMED)
        return Evidence(found)

    passed = {name: given.get(name) for name in every}  # Keras wants every name
    return fitted(model, evidence, rows(), y, sample_weight=passed, batch_size=5)


def loss_for_one() -> Scene:
    lines, y = heads(), labels()
    inputs, outputs = heads_of(lines)
    model = compiled(
        keras.Model(inputs, outputs), loss={"near": "mse"}, metrics={"near": "mae", "far": "mae"}
    )

    def evidence() -> Evidence:
        found = by_name(lines, y, weights={"near": 1.0}, shown=NAMED)
        return Evidence(found)

    return fitted(model, evidence, rows(), y, batch_size=5)


class Pair(keras.Model):
    """Returns a tuple, so that nobody knows the names of its outputs."""

    def __init__(self, lines: Mapping[str, Line]) -> None:
        super().__init__()
        self.parts = [layers.Dense(1) for _ in lines]
        self(np.zeros((1, 3), "float32"))
        for part, line in zip(self.parts, lines.values(), strict=True):
            part.set_weights(line.weights())

    def call(self, x: Any) -> Any:
        return tuple(part(x) for part in self.parts)


def in_a_tuple() -> Scene:
    lines, y = heads(), labels()
    model = compiled(
        Pair(lines),
        loss=("mse", "mse"),
        loss_weights=list(WEIGHTS.values()),
        metrics=(["mae"], ["mae"]),
    )

    def evidence() -> Evidence:
        found = by_name(lines, y, weights=WEIGHTS, shown={"near": "", "far": "other_"})
        renamed = {
            name.replace("other_mae", "mae_1")
            .replace("outputs:near", "outputs:output_0")
            .replace("outputs:far", "outputs:output_1"): values
            for name, values in found.items()
            if name != "other_loss/reported"
        }
        return Evidence(renamed)

    return fitted(model, evidence, rows(), tuple(y.values()), batch_size=5)


def deeply_nested() -> Scene:
    """Outputs and labels of the structure {"all": (near, {"deep": far})}."""
    lines, y = heads(), labels()
    lines["far"].rate = RATE  # no weights of losses here
    inputs, outputs = heads_of(lines)

    def packed(near: Any, far: Any) -> Any:
        return {"all": (near, {"deep": far})}

    model = compiled(
        keras.Model(inputs, packed(*outputs.values())),
        loss="mse",
        metrics=packed(["mae"], ["mae"]),
    )

    def evidence() -> Evidence:
        found = by_name(lines, y, weights=dict.fromkeys(WEIGHTS, 1.0), shown=NAMED)
        return Evidence({name: v for name, v in found.items() if "_loss/" not in name})

    return fitted(model, evidence, rows(), packed(*y.values()), batch_size=5)


GROUP = "models"

CELLS = [
    Cell(GROUP, "functional", partial(one_line, functional)),
    Cell(GROUP, "subclassed", partial(one_line, subclassed)),
    Cell(GROUP, "nested models", partial(one_line, nested)),
    Cell(GROUP, "add_loss", partial(one_line, adding)),
    Cell(GROUP, "shared layer, dict of inputs", shared_layer),
    Cell(GROUP, "list of outputs", listed),
    Cell(GROUP, "dict of outputs, sample weights by output", in_a_dict),
    Cell(
        GROUP,
        "dict of outputs, sample weights for one",
        partial(in_a_dict, weighted=("near",)),
    ),
    Cell(
        GROUP,
        "dict of outputs, a loss for one",
        loss_for_one,
        warns="Gradients do not exist for variables",
    ),
    Cell(GROUP, "tuple of outputs without names", in_a_tuple),
    Cell(GROUP, "outputs nested deeply", deeply_nested),
]
