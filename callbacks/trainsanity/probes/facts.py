"""What the run is: environment, model, compile and fit arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from trainsanity import identity, optimizers
from trainsanity.backends.backend import Backend
from trainsanity.difference import dtype_of, elements_of
from trainsanity.executions import steps_per_execution
from trainsanity.origin import is_of_keras
from trainsanity.probes.batches import option
from trainsanity.probes.probe import Columns, OutputEvidence, Probe, Step
from trainsanity.redaction import HIDDEN, is_secret
from trainsanity.tape import TapeRows

MAX_TEXT = 200  # characters of a value that is no plain data


class Facts(Probe):
    """Audits `environment`, `model`, `compile`, `fit`, and `columns` after the first batch."""

    name = "facts"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._columns: dict[str, Any] | None = None  # as last said
        self._parameters = -1

    def on_begin(self) -> None:
        run = self.run
        run.audit("environment", _environment(run.backend), 0)
        self._say_model()
        if run.model.compiled:
            run.audit("compile", _compiled(run.model), 0)
        if run.fit is not None:
            run.audit("fit", _fit(run.fit), 0)

    def _say_model(self) -> None:
        """Again where the first batch has built what was not there before."""
        facts = _model(self.run.model)
        if facts["parameters"] != self._parameters:
            self._parameters = facts["parameters"]
            self.run.audit("model", facts, 0 if self._columns is None else self.run.step)

    def trace_loss(self, step: Step) -> Columns:
        facts = self.run.shared.setdefault("output_facts", {})
        for output in step.outputs:
            if output.name not in facts:
                facts[output.name] = _output(self.run.model, output)
        return {}

    see_step = trace_loss

    def on_rows(self, rows: TapeRows) -> Any:
        if self._columns is None:
            self._say_columns()
        return {}

    on_test_rows = on_rows

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        self._say_columns()
        self._say_model()

    def on_end(self) -> None:
        self._say_columns()

    def on_closed(self) -> None:
        if self._columns is not None:
            self._say_columns()

    def _say_columns(self) -> None:
        """What the columns are, and what cannot be measured and why; again where it changed."""
        shared = self.run.shared
        facts = {
            "metrics": [dict(m) for m in shared.get("metric_facts", {}).values()],
            "outputs": list(shared.get("output_facts", {}).values()),
            "not_testable": dict(self.run.not_testable),
        }
        if facts != self._columns:
            self._columns = facts
            self.run.audit("columns", facts)


def _environment(backend: Backend) -> dict[str, Any]:
    return {
        **identity.environment(),
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        "backend_version": backend.version(),
        "devices": backend.devices(),
        "dtype_policy": keras.config.dtype_policy().name,
    }


def _model(model: Any) -> dict[str, Any]:
    return {
        "name": model.name,
        "class": type(model).__name__,
        "parameters": elements_of(model.weights),
        "trainable_parameters": elements_of(model.trainable_weights),
        "layers": [_layer(layer) for layer in _all_layers(model)],
    }


def _all_layers(model: Any) -> list[Any]:
    return [x for x in model._flatten_layers(include_self=False) if not isinstance(x, keras.Model)]


def _layer(layer: Any) -> dict[str, Any]:
    return {
        "name": layer.name,
        "class": type(layer).__name__,
        "path": layer.path or layer.name,
        "parameters": elements_of(layer.weights),
        "trainable": bool(layer.trainable),
        "dtype": layer.dtype_policy.name,
        "output_shape": _output_shape(layer),
        "mask_in": _takes_mask(layer),
        "supports_masking": bool(layer.supports_masking),
    }


def _takes_mask(layer: Any) -> bool:
    """Whether the layer's `call` has an argument for the mask of what it gets."""
    return any("mask" in name for name in inspect.signature(layer.call).parameters)


def _output_shape(layer: Any) -> Any:
    """As the functional graph records it; None for layers of a subclassed model."""
    if not layer._inbound_nodes:
        return None
    shapes = [list(t.shape) for t in layer._inbound_nodes[0].output_tensors]
    return shapes[0] if len(shapes) == 1 else shapes


def _compiled(model: Any) -> dict[str, Any]:
    optimizer = model.optimizer
    config = getattr(model, "_compile_config", None)
    given = dict(config.config) if config is not None else {}
    own_train_step = not is_of_keras(type(model).train_step)
    return {
        "optimizer": None
        if optimizer is None
        else {
            "class": type(optimizer).__name__,
            "config": plain(optimizers.config_of(optimizer)),
        },
        "loss": plain(given.get("loss")),
        "loss_weights": plain(given.get("loss_weights")),
        "metrics": plain(given.get("metrics")),
        "weighted_metrics": plain(given.get("weighted_metrics")),
        "jit_compile": bool(model.jit_compile),
        "run_eagerly": bool(model.run_eagerly),
        "steps_per_execution": steps_per_execution(model),
        "custom_train_step": own_train_step,
        "custom_compute_loss": not is_of_keras(type(model).compute_loss),
        "optimizers": len(optimizers.of_model(model)),
    }


def _fit(fit: Any) -> dict[str, Any]:
    return {
        "epochs": fit.get("epochs"),
        "initial_epoch": fit.get("initial_epoch"),
        "steps_per_epoch": fit.get("steps_per_epoch"),
        "declared_steps": fit.declared_steps,
        "batch_size": fit.get("batch_size"),
        "shuffle": _shuffle(fit),
        "class_weight": plain(fit.get("class_weight")),
        "has_sample_weight": fit.get("sample_weight") is not None,
        "validation": fit.get("validation_data") is not None or bool(fit.get("validation_split")),
        "data": fit.data_kind,
    }


def _shuffle(fit: Any) -> bool | None:
    """None where Keras ignores the argument."""
    shuffle = fit.get("shuffle")
    obeyed = fit.data_kind in ("arrays", "PyDataset")
    return shuffle if obeyed and isinstance(shuffle, bool) else None


def _output(model: Any, output: OutputEvidence) -> dict[str, Any]:
    loss = output.loss
    from_logits = option(loss, "from_logits")
    return {
        "name": output.name,
        "shape": _shape_of(output.y_pred),
        "dtype": dtype_of(output.y_pred),
        "label_shape": _shape_of(output.y_true),
        "loss": None if loss is None else loss.name,
        "loss_dtypes": sorted({dtype_of(loss) for loss, *_ in output.losses}),
        "from_logits": from_logits if isinstance(from_logits, bool) else None,
        "activation": _activation(model, output.name),
        "ignore_class": option(loss, "ignore_class"),
        "axis": plain(option(loss, "axis")),
        "aligned_with_mask": _is_aligned(output),
    }


def _shape_of(tensor: Any) -> list[int | None]:
    """With None for the rows of the batch."""
    return [None, *list(tensor.shape)[1:]] if len(tensor.shape) else []


def _is_aligned(output: OutputEvidence) -> bool:
    """Whether a mask arrives that has the axes of the output."""
    if output.mask is None or len(output.mask.shape) > len(output.y_pred.shape):
        return False
    pairs = zip(output.mask.shape, output.y_pred.shape, strict=False)
    return all(m is None or p is None or m == p for m, p in pairs)


def _activation(model: Any, name: str) -> str | None:
    """Name of the activation that makes an output of a functional model."""
    outputs = getattr(model, "outputs", None) or []
    names = list(getattr(model, "output_names", None) or []) if name else [name]
    if name not in names or len(outputs) != len(names):
        return None
    operation = outputs[names.index(name)]._keras_history.operation
    if isinstance(operation, (keras.layers.Softmax, keras.layers.ReLU)):
        return type(operation).__name__.lower()
    activation = getattr(getattr(operation, "activation", None), "__name__", None)
    return activation if isinstance(activation, str) else None


def plain(value: Any, key: str = "") -> Any:
    """Plain data of a configuration: secrets hidden, objects by their name, arrays by
    their shape.
    """
    if is_secret(key, value):
        return HIDDEN
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return value[:MAX_TEXT]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(k): plain(v, str(k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "shape"):
        return f"array of shape {tuple(value.shape)}"
    name = getattr(value, "name", None) or getattr(value, "__name__", None)
    kind = type(value).__name__
    return f"{kind}({name})"[:MAX_TEXT] if isinstance(name, str) else kind
