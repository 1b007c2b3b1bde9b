"""Forward passes over the captured sample, with every call of a layer noted.

Audits read these notes; none of them runs the model more often than it must. A pass is eager, on a
few rows, and leaves the model as it was.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from trainsanity import backends, call_sites
from trainsanity.forward import call_model, fixed_batch, untouched
from trainsanity.masking import mask_of
from trainsanity.wrappers import Wrappers

Shapes = dict[tuple[int, int], list[tuple[int, ...]]]
_ends = itertools.count(1)


@dataclass
class Call:
    """One call of a layer or operation.

    Attributes:
        operation: the layer, model, or plain operation of a functional graph.
        args, kwargs: as `call` received them.
        result: what it returned.
        inputs, outputs: the tensors in them.
        masks_in: the mask on each input, or None.
        masks_out: the mask on each output, as it was when the next call began.
        caller: the call in whose `call` this one was made; None for the model itself.
        ended: rises with the order in which calls ended.
        training: the flag that `call` received; None where it takes none.
        file, line: the user's line that made the call, where there is one.
    """

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[Any]
    masks_in: list[Any]
    caller: Call | None
    file: str | None
    line: int | None
    result: Any = None
    outputs: list[Any] = field(default_factory=list)
    masks_out: list[Any] = field(default_factory=list)
    ended: int = 0

    @property
    def name(self) -> str:
        return str(self.operation.name)

    @property
    def kind(self) -> str:
        return type(self.operation).__name__

    @property
    def is_layer(self) -> bool:
        return isinstance(self.operation, keras.layers.Layer)

    @property
    def training(self) -> bool | None:
        flag = self.kwargs.get("training")
        return None if flag is None else bool(flag)

    @property
    def site(self) -> str | None:
        """ "model.py:41" where the user made this call; None where Keras made it from its graph."""
        for node in getattr(self.operation, "_inbound_nodes", []):
            site = call_sites.site_of_node(node)
            if site is not None:
                return site
        if self.file is None or self.line is None or getattr(self.operation, "_inbound_nodes", []):
            return None
        return f"{call_sites._short(self.file)}:{self.line}"


@dataclass
class Pass:
    """One forward pass: its calls in the order in which they began, and the model's output."""

    calls: list[Call]
    result: Any
    # Ids of all operations that were called, also inside a scan, where nothing has a value to note.
    called: set[int] = field(default_factory=set)

    def of(self, layer: Any) -> list[Call]:
        return [call for call in self.calls if call.operation is layer]

    @property
    def leaves(self) -> list[Call]:
        """Calls of operations that are no models."""
        return [call for call in self.calls if not isinstance(call.operation, keras.Model)]


def run_pass(model: Any, x: Any, *, training: bool) -> Pass:
    """Runs the model once on `x`; nothing of the model is changed."""
    calls: list[Call] = []
    called: set[int] = set()
    with untouched(model), recorded(model, calls, called=called):
        result = call_model(model, x, training=training)
    return Pass(calls, result, called)


def output_shapes(model: Any, x: Any) -> Shapes:
    """Shapes of what every call of an operation gives, by its id and its number among the calls of
    the same operation; nothing is computed where that costs more than to find the shapes alone.
    """
    counts: Counter[int] = Counter()
    shapes: Shapes = {}

    def noting(operation: Any, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            key = (id(operation), counts[id(operation)])
            counts[id(operation)] += 1
            result = original(*args, **kwargs)
            shapes[key] = [tuple(tensor.shape) for tensor in tensors_of(result)]
            return result

        return call

    with untouched(model), _calls_replaced(model, noting):
        backends.active().for_its_shapes(lambda x: call_model(model, x, training=False), x, model)
    return shapes


@dataclass(frozen=True)
class Told:
    """The `training` flag of a call, and of the outermost call in which it was made; None where
    nobody gave one.
    """

    flag: bool | None
    entered_with: bool | None
    entered_model: bool  # the outermost call was one of the whole model


@contextmanager
def noted_calls(model: Any, told: dict[int, list[Told]]) -> Iterator[None]:
    """Within, what operations are told when they are called is noted by their ids, and nothing
    else.
    """
    outermost: list[tuple[bool | None, bool]] = []

    def noting(operation: Any, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            given = kwargs.get("training")
            flag = None if given is None else bool(given)
            outermost.append(outermost[0] if outermost else (flag, operation is model))
            told.setdefault(id(operation), []).append(Told(flag, *outermost[0]))
            try:
                return original(*args, **kwargs)
            finally:
                outermost.pop()

        return call

    with _calls_replaced(model, noting):
        yield


@contextmanager
def _calls_replaced(
    model: Any, make: Callable[[Any, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    replaced = Wrappers()
    try:
        for operation in operations_of(model):
            name = called_method(operation)
            replaced.put(operation, name, make(operation, getattr(operation, name)))
        yield
    finally:
        replaced.take_off(with_others=True)


def called_method(operation: Any) -> str:
    """The method in which Keras runs a layer or operation: quantized layers have one of their
    own.
    """
    policy = getattr(operation, "dtype_policy", None)
    is_quantized = getattr(policy, "quantization_mode", None) is not None
    return "quantized_call" if is_quantized else "call"


@contextmanager
def recorded(
    model: Any,
    calls: list[Call],
    stack: list[Call] | None = None,
    called: set[int] | None = None,
) -> Iterator[None]:
    """Within, every call of a layer or operation of the model is noted; `stack` holds those under
    way.
    """
    stack = [] if stack is None else stack
    called = set() if called is None else called
    unsettled: list[Call] = []

    def noting(operation: Any, original: Callable[..., Any]) -> Callable[..., Any]:
        return _noting(operation, original, calls, stack, called, unsettled)

    with _calls_replaced(model, noting):
        yield
        _settle(unsettled)


def operations_of(model: Any) -> list[Any]:
    """The model, all its layers, nested ones too, and the plain operations of functional graphs."""
    found: dict[int, Any] = {}
    for layer in model._flatten_layers():
        found[id(layer)] = layer
        for operation in getattr(layer, "operations", []):
            found[id(operation)] = operation
    return [o for o in found.values() if not isinstance(o, keras.layers.InputLayer)]


def _noting(
    operation: Any,
    original: Callable[..., Any],
    calls: list[Call],
    stack: list[Call],
    called: set[int],
    unsettled: list[Call],
) -> Callable[..., Any]:
    is_traced = backends.active().is_traced

    def call(*args: Any, **kwargs: Any) -> Any:
        inputs = tensors_of((args, kwargs))
        called.add(id(operation))
        if any(is_traced(tensor) for tensor in inputs):
            return original(*args, **kwargs)  # inside a scan or loop: nothing there has a value
        _settle(unsettled)
        frame = call_sites.user_frame(sys._getframe(1))
        noted = Call(
            operation,
            args,
            kwargs,
            inputs,
            [mask_of(tensor) for tensor in inputs],
            stack[-1] if stack else None,
            frame.f_code.co_filename if frame else None,
            frame.f_lineno if frame else None,
        )
        calls.append(noted)
        stack.append(noted)
        try:
            noted.result = original(*args, **kwargs)
        finally:
            stack.pop()
        noted.outputs = tensors_of(noted.result)
        noted.ended = next(_ends)
        unsettled.append(noted)
        return noted.result

    return call


def _settle(unsettled: list[Call]) -> None:
    """Reads the masks that Keras has put on outputs since their calls ended.

    Not later: MultiHeadAttention takes the mask off the tensors that it is given.
    """
    for call in unsettled:
        call.masks_out = [mask_of(tensor) for tensor in call.outputs]
    unsettled.clear()


def tensors_of(structure: Any) -> list[Any]:
    """The tensors of a structure that can be measured."""
    return [leaf for leaf in keras.tree.flatten(structure) if holds_numbers(leaf)]


def measurable(structure: Any) -> Any:
    """The same with None in place of what is no tensor of numbers."""
    return keras.tree.map_structure(lambda leaf: leaf if holds_numbers(leaf) else None, structure)


def holds_numbers(leaf: Any) -> bool:
    """Whether this is a tensor with a number at each place: not one of strings, nor a sparse or
    ragged one, for which many operations do not exist.
    """
    if isinstance(leaf, (np.ndarray, np.generic)):
        return leaf.dtype.kind not in "OSU"
    return backends.active().is_dense(leaf) and "string" not in str(leaf.dtype)


def first_rows(x: Any, rows: int) -> Any:
    """The first rows of every array of a structure."""
    return keras.tree.map_structure(lambda leaf: leaf[:rows], x)


def rows_of(x: Any) -> int:
    return int(keras.tree.flatten(x)[0].shape[0])


class Passes:
    """The passes of one run over its sample, made when first asked for."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self._made: dict[str, Pass] = {}

    @classmethod
    def of(cls, run: Any) -> Passes:
        """The run's; forgotten at the end of the audits, for the tensors take memory."""
        passes: Passes = run.shared.setdefault("passes", cls(run))
        return passes

    @property
    def inference(self) -> Pass:
        return self._make("inference", training=False)

    @property
    def training(self) -> Pass:
        return self._make("training", training=True)

    def shapes_of_half(self) -> Shapes:
        """Those of inference on the first half of the rows; none where the batch size is fixed."""
        model, x = self._run.model, self._run.sample[0]
        if fixed_batch(model) is not None:
            return {}
        return output_shapes(model, first_rows(x, max(1, rows_of(x) // 2)))

    def _make(self, name: str, *, training: bool) -> Pass:
        if name not in self._made:
            began = time.monotonic()
            self._made[name] = run_pass(self._run.model, self._run.sample[0], training=training)
            self._run.shared.setdefault("pass_seconds", time.monotonic() - began)
        return self._made[name]
