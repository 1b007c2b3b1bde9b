"""Logits under a loss that expects probabilities, as people compile it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from tests.watched import watched_fit
from tests.zoo.data import classes, points

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the compiled loss is the same everywhere"
)
LOSSES = keras.losses


def own_crossentropy(y_true, y_pred, from_logits=False):
    return LOSSES.binary_crossentropy(y_true, y_pred, from_logits=from_logits)


def spoken(loss, *, end=None, kinds=3):
    """What is said of a fit whose outputs are logits, or what `end` makes of them."""
    keras.utils.set_random_seed(1)
    scores = keras.layers.Dense(kinds, kernel_initializer=keras.initializers.Orthogonal(4.0))
    model = keras.Sequential([keras.Input((4,)), scores, *([] if end is None else [end])])
    model.compile("sgd", loss)
    x, y = classes() if kinds > 1 else points()
    run = watched_fit(model, x, y if kinds > 1 else (y > 0).astype("float32"), batch_size=8)
    return {rule.id for rule, _ in run.judge().at_least("warning")}


def test_a_loss_given_by_its_name_expects_probabilities():
    assert spoken("sparse_categorical_crossentropy") == {"output-range-mismatch"}


@on_tensorflow
@pytest.mark.parametrize("loss", ["binary_crossentropy", own_crossentropy])
def test_so_does_one_given_as_a_function(loss):
    assert spoken(loss, kinds=1) == {"output-range-mismatch"}


@on_tensorflow
def test_probabilities_and_logits_that_are_declared_are_left_alone():
    by_name = "sparse_categorical_crossentropy"
    assert not spoken(by_name, end=keras.layers.Softmax())
    assert not spoken(LOSSES.SparseCategoricalCrossentropy(from_logits=True))


@on_tensorflow
def test_a_softmax_loss_behind_a_sigmoid_trains_what_does_not_come_out():
    """The other way round is in the zoo."""
    sigmoid = keras.layers.Activation("sigmoid")
    assert spoken("sparse_categorical_crossentropy", end=sigmoid) == {"output-range-mismatch"}


@on_tensorflow
@pytest.mark.parametrize("axis", [1, -1])
def test_a_softmax_goes_along_the_axis_that_the_loss_reads(axis):
    """Channels first, or over time instead of over the classes."""
    x = np.random.default_rng(0).normal(size=(24, 3, 4)).astype("float32")
    softmax = keras.layers.Softmax(axis=1)
    model = keras.Sequential([keras.Input((3, 4)), keras.layers.Dense(4), softmax])
    model.compile("sgd", LOSSES.CategoricalCrossentropy(axis=axis))
    run = watched_fit(model, x, np.eye(3)[x.argmax(axis=1)].transpose(0, 2, 1), batch_size=8)
    assert len(run.judge().of("output-range-mismatch")) == (axis == -1)


@on_tensorflow
def test_metrics_of_logits_need_thresholds_of_logits():
    """`accuracy` by its name has one of 0.5."""
    told, untold = keras.metrics.BinaryAccuracy(threshold=0.0), keras.metrics.AUC(name="auc")
    accuracy = keras.metrics.BinaryAccuracy(name="accuracy")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(
        "sgd",
        LOSSES.BinaryCrossentropy(from_logits=True),
        metrics=[told, keras.metrics.AUC(from_logits=True, name="told"), untold, accuracy, "mse"],
    )
    x, y = points()
    run = watched_fit(model, x, (y > 0).astype("float32"), batch_size=8)
    found = {finding.subject for finding in run.judge().of("output-range-mismatch")}
    assert found == {"auc", "accuracy"}
