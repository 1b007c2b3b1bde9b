"""An installed package that uses what it has deprecated itself, and warns the user of it."""

import importlib
import sys
import tempfile
import warnings
from pathlib import Path

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points

PACKAGE = """
import warnings

import keras


class Layer(keras.layers.Layer):
    @property
    def updates(self):
        warnings.warn("`updates` is deprecated, do not use it", FutureWarning, stacklevel=2)
        return []

    def call(self, x):
        return x

    def get_config(self):
        {used}
        return super().get_config()
"""


def _fit(used):
    with tempfile.TemporaryDirectory() as folder:
        layer = _installed(Path(folder) / "site-packages", used).Layer(name="old")
        model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        saving = keras.callbacks.ModelCheckpoint(f"{folder}/model.keras")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            return watched_fit(model, *points(), epochs=2, batch_size=8, callbacks=[saving])


def _installed(folder, used):
    """The package, imported from a folder in which packages are installed."""
    folder.mkdir()
    (folder / "oldlayers.py").write_text(PACKAGE.format(used=used))
    sys.modules.pop("oldlayers", None)
    sys.path.insert(0, str(folder))
    try:
        importlib.invalidate_caches()
        return importlib.import_module("oldlayers")
    finally:
        sys.path.remove(str(folder))


def faulty():
    return _fit("self.updates")


def healthy():
    return _fit("pass")


CASE = Case(
    bugs=("25", "50", "52"),
    title="A package warns the user of its own use of what is deprecated",
    rule="console-anomaly",
    subject="FutureWarning of oldlayers",
    in_words=True,
    advice=True,
    faulty=faulty,
    healthy=healthy,
    not_reachable="Warnings that a filter hides, and those that C++ code prints.",
)
