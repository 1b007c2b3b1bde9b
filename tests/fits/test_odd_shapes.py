"""Numbers and outputs of other shapes than most: probes go on."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers
from tests.watched import watched_fit


def test_a_metric_of_one_element_is_a_number() -> None:
    """F1Score gives one for each column of the outputs."""
    x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    y = (x[:, :1] > 0).astype("float32")
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1, "sigmoid")])
    f1 = keras.metrics.F1Score(threshold=0.5)
    model.compile("sgd", "binary_crossentropy", metrics=[f1])
    run = watched_fit(model, x, y, epochs=2, validation_split=0.25, batch_size=8)
    assert run.audits("probe_failed") == []
    assert len(run.audits("epoch")) == 2
    assert len(run.signal("val_f1_score/reported")[1]) == 2


def test_a_layer_may_have_other_outputs_in_training() -> None:
    """RandomCrop of Keras 3.15 crops in training alone where the images have another size."""
    images = np.random.default_rng(0).uniform(0, 255, (32, 12, 12, 1)).astype("float32")
    model = keras.Sequential([keras.Input((12, 12, 1)), layers.RandomCrop(10, 10)])
    model.add(layers.Conv2D(2, 3))
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(1))
    model.compile("sgd", "mse")
    run = watched_fit(model, images / 255, images[:, 0, 0] / 255, batch_size=8)
    assert [audit.facts["probe"] for audit in run.audits("probe_failed")] == []
    assert run.audits("mode")
    found = [(rule.id, f.subject) for rule, f in run.judge().at_least("warning")]
    assert found == [("shape-declared-vs-actual", "random_crop")]
