"""The model saved, loaded again, and compared with itself."""

from __future__ import annotations

import base64
import hashlib
import json
import marshal
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import keras
import numpy as np

from trainsanity import backends, optimizers
from trainsanity.difference import coarsest_dtype, difference, elements_of
from trainsanity.fit_arguments import NO_SAMPLE
from trainsanity.forward import (
    as_in_training,
    evaluation_untouched,
    names_untouched,
    quiet_forward,
    recurrent_states,
    refused,
    untouched,
)
from trainsanity.interrupts import is_interrupt
from trainsanity.origin import is_of_keras
from trainsanity.probes.probe import Probe
from trainsanity.recording import called_method, tensors_of

MAX_PARAMETERS = 20_000_000  # larger models would make the end of training wait for the disk

# What Keras, and `get_config` and `from_config` of the user's, raise for a model that they cannot
# save or load.
REFUSALS = (
    TypeError,
    ValueError,
    KeyError,
    AttributeError,
    ImportError,
    OSError,
    RuntimeError,  # also NotImplementedError
)
LONGEST_REFUSAL = 300  # characters of its text


class Roundtrip(Probe):
    """Makes the audit `roundtrip` when training has ended."""

    name = "roundtrip"
    cost = 1.0

    def on_released(self) -> None:
        run = self.run
        reason = self._why_not()
        if reason is not None:
            run.audit("roundtrip", {"not_testable": reason})
            return
        with (
            untouched(run.model),
            names_untouched(),
            run.backend.own_traces(),
            tempfile.TemporaryDirectory() as folder,
        ):
            facts = self._facts(Path(folder) / "model.keras")
        run.audit("roundtrip", facts)

    def _facts(self, path: Path) -> dict[str, Any]:
        model, doing = self.run.model, "saving"
        # A refusal is no silent bug: it raises where users see it.
        try:
            model.save(path)
            doing = "loading"
            loaded = keras.saving.load_model(path, safe_mode=False)
        except REFUSALS as error:
            if is_interrupt(error):
                raise
            text = str(error)
            cut = text if len(text) <= LONGEST_REFUSAL else f"{text[:LONGEST_REFUSAL]} ..."
            return {"not_testable": f"{doing} raises: {cut}"}
        return self._compare(model, loaded, _strict_complaint(path))

    def _why_not(self) -> str | None:
        if self.run.sample is None:
            return NO_SAMPLE
        parameters = elements_of(self.run.model.weights)
        if parameters > MAX_PARAMETERS:
            return f"the model has {parameters:,} parameters, more than {MAX_PARAMETERS:,}"
        merging = [layer.name for layer in self.run.model._flatten_layers() if _merges(layer)]
        if merging:
            return f"saving merges LoRA into quantized weights, which rounds them anew: {merging}"
        return None

    def _compare(self, model: Any, loaded: Any, complaint: str | None) -> dict[str, Any]:
        x = self.run.sample[0]
        _give_states(model, loaded)
        before, again = (tensors_of(quiet_forward(model, x)) for _ in range(2))
        after = tensors_of(quiet_forward(loaded, x))
        names = list(getattr(model, "output_names", None) or [])
        coarsest = coarsest_dtype(model)
        outputs = [
            {
                "name": names[i] if i < len(names) else f"output_{i}",
                "difference": difference(
                    a, b, noise=difference(a, c)["largest"], computed_in=coarsest
                ),
            }
            for i, (a, b, c) in enumerate(zip(before, after, again, strict=True))
            if tuple(a.shape) == tuple(b.shape)
        ]
        return {
            "format": ".keras",
            "outputs": outputs,
            "metrics": self._metrics(model, loaded),
            "weights_changed": _weights_changed(model, loaded),
            "weights": {"before": len(model.weights), "after": len(loaded.weights)},
            **_trainable(model, loaded),
            "layers": _classes(model, loaded),
            "config_changed": _config_changed(model, loaded),
            "optimizer": _optimizers(model, loaded),
            "optimizer_slots": _slots(model, loaded),
            "output_names": {
                "before": names,
                "after": list(getattr(loaded, "output_names", None) or []),
            },
            "strict_json": complaint,
        }

    def _metrics(self, model: Any, loaded: Any) -> list[dict[str, Any]]:
        """Loss and metrics of both on the captured rows."""
        x, y, weight = self.run.sample
        if y is None or not model.compiled or not loaded.compiled:
            return []
        # Building its metrics already moves the state of a stateful layer on.
        if any(recurrent_states(layer) for layer in model._flatten_layers()):
            return []
        with refused("the model cannot be evaluated on the captured rows"):
            before = _evaluated(model, x, y, weight)
        # A lambda is saved without the names that it uses.
        with refused("the reloaded model cannot be evaluated"):
            after = _evaluated(loaded, x, y, weight)
        rows = int(keras.tree.flatten(x)[0].shape[0])
        return [
            {"key": key, "before": float(before[key]), "after": float(after[key]), "samples": rows}
            for key in before
            if key in after
        ]


def _merges(layer: Any) -> bool:
    """Whether Keras saves the layer with other weights than it computes with."""
    is_quantized = called_method(layer) == "quantized_call"
    return is_quantized and bool(getattr(layer, "lora_enabled", False))


def _give_states(model: Any, loaded: Any) -> None:
    """Lets both begin in the same recurrent state: it belongs to a sequence and is never saved."""
    for own, other in zip(model._flatten_layers(), loaded._flatten_layers(), strict=False):
        for mine, its in zip(recurrent_states(own), recurrent_states(other), strict=False):
            its.assign(mine)


def _evaluated(model: Any, x: Any, y: Any, weight: Any) -> dict[str, Any]:
    y, weight = as_in_training((y, weight))  # a metric of the user's may use methods of tensors
    with evaluation_untouched(model), backends.active().once(model):
        model.reset_metrics()  # up to Keras 3.14 `test_on_batch` adds to what was there
        result: dict[str, Any] = model.test_on_batch(x, y, sample_weight=weight, return_dict=True)
        return {k: v for k, v in result.items() if np.ndim(v) == 0}


def _pairs(model: Any, loaded: Any) -> list[tuple[Any, Any]]:
    """Weights that belong together: in each pair of layers by their names where these tell them
    apart, else by their order.
    """
    layers, others = list(model._flatten_layers()), list(loaded._flatten_layers())
    if len(layers) != len(others):
        return list(zip(model.weights, loaded.weights, strict=False))
    pairs: list[tuple[Any, Any]] = []
    for layer, other in zip(layers, others, strict=True):
        mine, its = _own_weights(layer), _own_weights(other)
        names = [weight.name for weight in mine]
        # A layer that is quantized after it was built holds its weights in another order.
        if len(set(names)) == len(names) and sorted(names) == sorted(w.name for w in its):
            by_name = {weight.name: weight for weight in its}
            its = [by_name[name] for name in names]
        pairs += zip(mine, its, strict=False)
    return pairs


def _own_weights(layer: Any) -> list[Any]:
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def _weights_changed(model: Any, loaded: Any) -> list[dict[str, Any]]:
    rows = []
    for a, b in _pairs(model, loaded):
        if tuple(a.shape) != tuple(b.shape):
            continue
        found = difference(a, b)
        if found["largest"] > 0 or found["nonfinite"][0] != found["nonfinite"][1]:
            rows.append({"path": a.path, "difference": found})
    return rows


def _trainable(model: Any, loaded: Any) -> dict[str, list[str]]:
    """Trainable weights by the original's paths."""
    paths = {id(b): a.path for a, b in _pairs(model, loaded)}
    return {
        "trainable_before": [w.path for w in model.trainable_weights],
        "trainable_after": [paths.get(id(w), w.path) for w in loaded.trainable_weights],
    }


def _classes(model: Any, loaded: Any) -> list[dict[str, Any]]:
    pairs = zip(
        model._flatten_layers(include_self=False),
        loaded._flatten_layers(include_self=False),
        strict=False,
    )
    return [
        {
            "name": a.name,
            "class_before": _class_path(a),
            "class_after": _class_path(b),
            "policy_before": a.dtype_policy.name,
            "policy_after": b.dtype_policy.name,
            "of_keras": is_of_keras(type(a)),
        }
        for a, b in pairs
    ]


def _class_path(layer: Any) -> str:
    return f"{type(layer).__module__}.{type(layer).__qualname__}"


def _optimizers(model: Any, loaded: Any) -> dict[str, Any] | None:
    pair = [optimizers.working(getattr(each, "optimizer", None)) for each in (model, loaded)]
    if pair[0] is None or pair[1] is None:
        return None
    before, after = (dict(_entries(optimizers.config_of(each), "")) for each in pair)
    return {
        "before": type(pair[0]).__name__,
        "after": type(pair[1]).__name__,
        # The learning rate comes back with the weights.
        "changed": sorted(
            key for key in before if key != "learning_rate" and before[key] != after.get(key)
        ),
    }


def _slots(model: Any, loaded: Any) -> dict[str, int] | None:
    own, other = getattr(model, "optimizer", None), getattr(loaded, "optimizer", None)
    # One that has never been used is not built, and is when it has been loaded.
    if own is None or other is None or not own.built:
        return None
    # A file says which weights are trainable, and not which were when the model was compiled.
    known = {id(v) for v in optimizers.working(own)._trainable_variables}
    if known != {id(v) for v in model.trainable_variables}:
        return None
    return {"before": len(own.variables), "after": len(other.variables)}


def _config_changed(model: Any, loaded: Any) -> list[dict[str, Any]]:
    """Entries of the configuration that a rebuilt model holds differently; made-up names aside."""
    try:
        before, after = (dict(_entries(m.get_config(), "")) for m in (model, loaded))
    except NotImplementedError:
        return []
    return [
        {"path": path, "before": before.get(path), "after": after.get(path)}
        for path in sorted({*before, *after})
        if before.get(path) != after.get(path)
    ]


def _entries(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        if value.get("class_name") == "__lambda__":
            value = value | {"config": _lambda_config(value["config"])}
        for key, each in value.items():
            if key in ("name", "registered_name", "module", "build_config", "shared_object_id"):
                continue
            yield from _entries(each, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for i, each in enumerate(value):
            yield from _entries(each, f"{path}[{i}]")
    elif value is None or isinstance(value, (bool, int, float, str)):
        yield path, value


def _lambda_config(config: dict[str, Any]) -> dict[str, Any]:
    """A lambda's configuration with what its code does in place of its bytes, which also say how
    often its constants are used elsewhere in the process.
    """
    code = marshal.loads(base64.b64decode(config["code"]))
    return config | {"code": hashlib.blake2b(_meaning(code), digest_size=8).hexdigest()}


def _meaning(code: CodeType) -> bytes:
    constants = [_meaning(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    names = (code.co_names, code.co_varnames, code.co_freevars)
    return repr((code.co_code, constants, names)).encode()


def _strict_complaint(path: Path) -> str | None:
    """What a strict JSON reader says of the configuration in the file; None where it reads it."""
    with zipfile.ZipFile(path) as archive:
        text = archive.read("config.json").decode()

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError as error:
        return str(error)
    return None
