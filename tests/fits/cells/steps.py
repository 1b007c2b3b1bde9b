"""Steps of the user's own: another `compute_loss`, another `train_step`, several optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops
from tests.fits.cells.by_hand import Line, cut, measured, rows, to_date
from tests.fits.cells.cell import Cell, Evidence, Scene
from tests.fits.cells.running import compile_as

BACKEND = keras.backend.backend()


def plain_rows(count: int = 10) -> tuple[Any, Any]:
    """Inputs and labels."""
    return rows(count), rows(count, 1, seed=6)


def fitted(model: Any, evidence: Callable[[], Evidence], *data: Any, **options: Any) -> Scene:
    """Two epochs of three batches, the last one short."""
    options = {"batch_size": 4, "epochs": 2, "shuffle": False, "verbose": 0, **options}

    def train(callbacks: list[Any]) -> Any:
        return model.fit(*data, **options, callbacks=callbacks).history

    return Scene([model], train, lambda: [evidence()])


# compute_loss


class AbsoluteErrors(keras.Sequential):
    """Trains on twice the mean absolute error, whatever is compiled."""

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        return 2 * ops.mean(ops.abs(y - y_pred))


def own_compute_loss() -> Scene:
    line, (x, y) = Line.of(rate=0.0), plain_rows()
    model = AbsoluteErrors([keras.Input((3,)), keras.layers.Dense(1)])
    model.set_weights(line.weights())
    model.compile(keras.optimizers.SGD(0.01), metrics=["mae"])
    kernel, bias = line.kernel, line.bias

    def evidence() -> Evidence:
        losses, sizes = [], []
        a, b = kernel, bias
        for _ in range(2):
            for bx, by in cut(4, x, y):
                errors = bx.astype(np.float64) @ a + b - by
                losses.append(2 * np.abs(errors).mean())
                sizes.append(len(bx))
                slope = 2 * np.sign(errors) / len(bx)
                a, b = a - 0.01 * bx.T @ slope, b - 0.01 * slope.sum(axis=0)
        pairs = [(v * n, float(n)) for v, n in zip(losses, sizes, strict=True)]
        shown = to_date([pairs[:3], pairs[3:]])
        signals = {
            "loss/reported": shown,
            "loss/differentiated": losses,
            "mae/reported": shown / 2,
            "mae/recomputed": shown / 2,
            "batch/size": sizes,
        }
        absent = ("loss/recomputed", "loss/batch", "loss/elements")
        return Evidence(signals, absent=absent, reasons={"loss/recomputed": "compute_loss"})

    return fitted(model, evidence, x, y)


# train_step with one optimizer


class OwnStep(keras.Sequential):
    """Shows the loss of its batch alone, beside a mean absolute error since the epoch began."""

    def train_step(self, *given: Any) -> Any:
        return STEPS[BACKEND](self, *given)


def step_of_tensorflow(model: Any, data: Any) -> Any:
    import tensorflow as tf

    x, y = data
    with tf.GradientTape() as tape:
        outputs = model(x, training=True)
        loss = model.compute_loss(x, y, outputs)
    model.optimizer.apply(tape.gradient(loss, model.trainable_weights), model.trainable_weights)
    return {**model.compute_metrics(x, y, outputs), "loss": loss}


def step_of_torch(model: Any, data: Any) -> Any:
    x, y = data
    model.zero_grad()
    outputs = model(x, training=True)
    loss = model.compute_loss(x, y, outputs)
    loss.backward()
    weights = list(model.trainable_weights)
    model.optimizer.apply([weight.value.grad for weight in weights], weights)
    return {**model.compute_metrics(x, y, outputs), "loss": loss}


def step_of_jax(model: Any, state: Any, data: Any) -> Any:
    """As in Keras' guide: the loss is made without the metrics' variables."""
    import jax

    trained, others, slots, counted = state
    x, y = data

    def loss_of(trained: Any, others: Any) -> Any:
        outputs, others = model.stateless_call(trained, others, x, training=True)
        return model.compute_loss(x, y, outputs), (outputs, others)

    (loss, (outputs, others)), grads = jax.value_and_grad(loss_of, has_aux=True)(trained, others)
    trained, slots = model.optimizer.stateless_apply(slots, grads, trained)
    logs, new = {}, []
    for metric in model.metrics:
        own = counted[len(new) : len(new) + len(metric.variables)]
        if metric.name == "loss":
            own = metric.stateless_update_state(own, loss)
        else:
            own = metric.stateless_update_state(own, y, outputs)
        result = metric.stateless_result(own)
        logs.update(result if isinstance(result, dict) else {metric.name: result})
        new += own
    return {**logs, "loss": loss}, (trained, others, slots, new)


STEPS = {"tensorflow": step_of_tensorflow, "torch": step_of_torch, "jax": step_of_jax}


def own_train_step() -> Scene:
    line, (x, y) = Line.of(), plain_rows()
    model = OwnStep([keras.Input((3,)), keras.layers.Dense(1)])
    model.set_weights(line.weights())
    compile_as(line, model)

    def evidence() -> Evidence:
        epochs = [[(line.learn(bx, by), None) for bx, by in cut(4, x, y)] for _ in range(2)]
        signals = measured(epochs)
        signals["loss/reported"] = signals["loss/batch"]
        return own_evidence(signals)

    return fitted(model, evidence, x, y)


REASONS = {
    "loss/differentiated": "without the metrics' variables",
    "metrics": "never calls compute_metrics",
}


def own_evidence(signals: dict[str, Any]) -> Evidence:
    """On JAX what was measured in the gradient, and in metrics that are not computed by
    `compute_metrics`, is lost on the way.
    """
    said = ("epoch-aggregation-mismatch",)
    if BACKEND != "jax":
        return Evidence(signals, said=said)
    kept = {name: v for name, v in signals.items() if name.endswith(("/reported", "batch/size"))}
    lost = ("loss/recomputed", "loss/batch", "mae/recomputed", "loss/differentiated")
    return Evidence(kept, absent=lost, reasons=REASONS)


# train_step with several optimizers


class LineGan(keras.Model):
    """A linear generator against a linear judge, on squared errors."""

    def __init__(self) -> None:
        super().__init__()
        self.judge = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        self.maker = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
        self.judge.set_weights(JUDGE)
        self.maker.set_weights(MAKER)
        self.judge_loss = keras.metrics.Mean(name="judge_loss")
        self.maker_loss = keras.metrics.Mean(name="maker_loss")
        self.built = True

    def compile(self, judge_optimizer: Any, maker_optimizer: Any) -> None:
        super().compile()
        self.judge_optimizer = judge_optimizer
        self.maker_optimizer = maker_optimizer

    @property
    def metrics(self) -> list[Any]:
        return [self.judge_loss, self.maker_loss]

    def judged(self, real: Any, noise: Any) -> Any:
        fake = self.maker(noise)
        right = ops.mean(ops.square(self.judge(real) - 1))
        return right + ops.mean(ops.square(self.judge(fake)))

    def fooled(self, noise: Any) -> Any:
        return ops.mean(ops.square(self.judge(self.maker(noise)) - 1))

    def train_step(self, data: Any) -> Any:
        real, noise = data
        judged = self.learn(self.judge_optimizer, self.judge, lambda: self.judged(real, noise))
        fooled = self.learn(self.maker_optimizer, self.maker, lambda: self.fooled(noise))
        rows = ops.shape(real)[0]
        self.judge_loss.update_state(judged, sample_weight=rows)
        self.maker_loss.update_state(fooled, sample_weight=rows)
        return {m.name: m.result() for m in self.metrics}

    def learn(self, optimizer: Any, part: Any, loss_of: Callable[[], Any]) -> Any:
        weights = list(part.trainable_weights)
        if BACKEND == "torch":
            self.zero_grad()
            loss = loss_of()
            loss.backward()
            gradients = [weight.value.grad for weight in weights]
        else:
            import tensorflow as tf

            with tf.GradientTape() as tape:
                loss = loss_of()
            gradients = tape.gradient(loss, [weight.value for weight in weights])
        optimizer.apply(gradients, weights)
        return loss


class StatelessGan(LineGan):
    """The same on JAX, where a step is a function of a state. Keras carries the state of one
    optimizer; that of the other stays as it is, which plain gradient descent does not mind.
    """

    metrics = keras.Model.metrics

    def compile(self, judge_optimizer: Any, maker_optimizer: Any) -> None:
        keras.Model.compile(self, judge_optimizer)
        self.judge_optimizer, self.maker_optimizer = judge_optimizer, maker_optimizer
        judge_optimizer.build(self.judge.trainable_variables)
        maker_optimizer.build(self.maker.trainable_variables)

    def judged_with(self, judge: Any, maker: Any, real: Any, noise: Any) -> Any:
        fake, _ = self.maker.stateless_call(maker, [], noise)
        right = ops.mean(ops.square(self.judge.stateless_call(judge, [], real)[0] - 1))
        return right + ops.mean(ops.square(self.judge.stateless_call(judge, [], fake)[0]))

    def fooled_with(self, maker: Any, judge: Any, noise: Any) -> Any:
        fake, _ = self.maker.stateless_call(maker, [], noise)
        return ops.mean(ops.square(self.judge.stateless_call(judge, [], fake)[0] - 1))

    def train_step(self, state: Any, data: Any) -> Any:
        import jax

        trained, others, slots, counted = state
        (real, noise), count = data, len(self.judge.trainable_variables)
        judge, maker = trained[:count], trained[count:]
        judged, grads = jax.value_and_grad(self.judged_with)(judge, maker, real, noise)
        judge, slots = self.judge_optimizer.stateless_apply(slots, grads, judge)
        fooled, grads = jax.value_and_grad(self.fooled_with)(maker, judge, noise)
        kept = [variable.value for variable in self.maker_optimizer.variables]
        maker, _ = self.maker_optimizer.stateless_apply(kept, grads, maker)
        losses = {"judge_loss": judged, "maker_loss": fooled}
        logs, counted = counted_in(self, counted, losses, real.shape[0])
        return logs, ([*judge, *maker], others, slots, counted)


def counted_in(model: Any, counted: Any, values: dict[str, Any], rows: Any) -> Any:
    """Logs, and the metrics' variables, after these values of means over so many rows."""
    logs, new = {}, []
    for metric in model.metrics:
        own = counted[len(new) : len(new) + len(metric.variables)]
        if metric.name in values:
            own = metric.stateless_update_state(own, values[metric.name], sample_weight=rows)
            logs[metric.name] = metric.stateless_result(own)
        new += own
    return logs, new


JUDGE = [np.array([[0.5], [-0.4]], "float32"), np.array([0.1], "float32")]
MAKER = [np.array([[0.3, 0.8]], "float32"), np.array([0.2, -0.1], "float32")]
RATES = (0.05, 0.02)


def gan_by_hand(epochs: list[list[Any]]) -> dict[str, Any]:
    """Losses of judge and maker, batch by batch."""
    judge, maker = Line(*JUDGE, RATES[0]), Line(*MAKER, RATES[1])
    losses: dict[str, list[list[tuple[float, float]]]] = {"judge": [], "maker": []}
    for batches in epochs:
        losses["judge"].append([])
        losses["maker"].append([])
        for real, noise in batches:
            rows = float(len(real))
            fake = maker(noise)
            errors = np.concatenate([judge(real) - 1, judge(fake)])
            losses["judge"][-1].append((np.square(errors).sum(), rows))
            both = np.concatenate([real, fake])
            judge.kernel = judge.kernel - judge.rate * 2 / rows * both.T @ errors
            judge.bias = judge.bias - judge.rate * 2 / rows * errors.sum(axis=0)
            missed = judge(fake) - 1
            losses["maker"][-1].append((np.square(missed).sum(), rows))
            slope = 2 / rows * missed @ judge.kernel.T
            maker.kernel = maker.kernel - maker.rate * noise.T @ slope
            maker.bias = maker.bias - maker.rate * slope.sum(axis=0)
    return {f"{name}_loss/reported": to_date(values) for name, values in losses.items()}


def gan() -> Scene:
    real, noise = rows(10, 2), rows(10, 1, seed=6)
    model = StatelessGan() if BACKEND == "jax" else LineGan()
    model.compile(*(keras.optimizers.SGD(rate) for rate in RATES))

    def evidence() -> Evidence:
        batches = cut(4, real, noise)
        signals = {**gan_by_hand([batches] * 2), "batch/size": [4, 4, 2] * 2}
        absent = ("loss/reported", "loss/recomputed", "loss/differentiated")
        reasons = {"loss/recomputed": "never calls compute_loss"}
        return Evidence(signals, absent=absent, reasons=reasons, batches=(3, 3))

    return fitted(model, evidence, real, noise)


# a sum of losses of the user's own


class Coded(keras.Model):
    """A variational autoencoder of one number, nearly without noise."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = keras.layers.Dense(1, kernel_initializer="ones")
        self.spread = keras.layers.Dense(
            1, kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(SPREAD)
        )
        self.decoder = keras.layers.Dense(2, kernel_initializer="ones")
        self.seeds = keras.random.SeedGenerator(3)
        if BACKEND != "jax":
            self.total = keras.metrics.Mean(name="loss")
        self.divergence = keras.metrics.Mean(name="divergence")

    @property
    def metrics(self) -> list[Any]:
        return [self.total, self.divergence]

    def call(self, x: Any) -> Any:
        return self.losses_of(x)[0]

    def losses_of(self, x: Any) -> Any:
        mean, spread = self.mean(x), self.spread(x)
        noise = keras.random.normal(ops.shape(mean), seed=self.seeds)
        again = self.decoder(mean + ops.exp(0.5 * spread) * noise)
        rebuilt = ops.mean(ops.sum(ops.square(x - again), axis=1))
        divergence = -0.5 * ops.mean(1 + spread - ops.square(mean) - ops.exp(spread))
        return again, rebuilt, divergence

    def train_step(self, data: Any) -> Any:
        x = data[0] if isinstance(data, (tuple, list)) else data
        weights = list(self.trainable_weights)
        if BACKEND == "torch":
            self.zero_grad()
            _, rebuilt, divergence = self.losses_of(x)
            (rebuilt + divergence).backward()
            gradients = [weight.value.grad for weight in weights]
        else:
            import tensorflow as tf

            with tf.GradientTape() as tape:
                _, rebuilt, divergence = self.losses_of(x)
                loss = rebuilt + divergence
            gradients = tape.gradient(loss, [weight.value for weight in weights])
        self.optimizer.apply(gradients, weights)
        self.total.update_state(rebuilt + divergence)
        self.divergence.update_state(divergence)
        return {m.name: m.result() for m in self.metrics}


class StatelessCoded(Coded):
    """The same on JAX, with the mean that Keras keeps under the name of the loss."""

    metrics = keras.Model.metrics

    def call(self, x: Any) -> Any:
        return self.losses_of(x)

    def train_step(self, state: Any, data: Any) -> Any:
        import jax

        trained, others, slots, counted = state
        x = data[0] if isinstance(data, (tuple, list)) else data

        def loss_of(trained: Any) -> Any:
            (_, rebuilt, divergence), new = self.stateless_call(trained, others, x)
            return rebuilt + divergence, (divergence, new)

        (loss, (divergence, new)), grads = jax.value_and_grad(loss_of, has_aux=True)(trained)
        trained, slots = self.optimizer.stateless_apply(slots, grads, trained)
        logs, counted = counted_in(self, counted, {"loss": loss, "divergence": divergence}, 1)
        return logs, (trained, new, slots, counted)


SPREAD = -40.0


def vae() -> Scene:
    x = rows(10, 2)
    model = StatelessCoded() if BACKEND == "jax" else Coded()
    model(x[:1])
    model.compile(keras.optimizers.SGD(0.0))

    def evidence() -> Evidence:
        totals, divergences = [], []
        for (batch,) in cut(4, x.astype(np.float64)):
            code = batch.sum(axis=1, keepdims=True)
            divergences.append(-0.5 * np.mean(1 + SPREAD - code**2 - np.exp(SPREAD)))
            totals.append(np.square(batch - code).sum(axis=1).mean() + divergences[-1])
        means = {
            "loss/reported": to_date([[(v, 1.0) for v in totals]] * 2),
            "divergence/reported": to_date([[(v, 1.0) for v in divergences]] * 2),
        }
        signals = {**means, "batch/size": [4, 4, 2] * 2}
        absent = ("loss/recomputed", "loss/differentiated")
        reasons = {"loss/recomputed": "never calls compute_loss"}
        return Evidence(signals, absent=absent, reasons=reasons)

    return fitted(model, evidence, x)


class OwnMetrics(keras.Sequential):
    """Keeps the list of metrics to itself."""

    @property
    def metrics(self) -> list[Any]:
        return [self._loss_tracker, *self._compile_metrics.metrics]


def own_list_of_metrics() -> Scene:
    line, (x, y) = Line.of(), plain_rows()
    model = OwnMetrics([keras.Input((3,)), keras.layers.Dense(1)])
    model.set_weights(line.weights())
    compile_as(line, model)

    def evidence() -> Evidence:
        epochs = [[(line.learn(bx, by), None) for bx, by in cut(4, x, y)] for _ in range(2)]
        return Evidence(measured(epochs), batches=(3, 3))

    return fitted(model, evidence, x, y)


GROUP = "steps"

CELLS = [
    Cell(GROUP, "own compute_loss", own_compute_loss),
    Cell(GROUP, "own train_step that shows the batch's loss", own_train_step),
    Cell(GROUP, "own list of metrics", own_list_of_metrics),
    Cell(GROUP, "two optimizers (GAN)", gan),
    Cell(GROUP, "losses made in train_step (VAE)", vae),
]
