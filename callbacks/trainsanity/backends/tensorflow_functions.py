"""Keras' function of steps, called past `tf.function`; and once more, without what hangs on one
marked constant.

Nothing is traced again: the definition that TensorFlow keeps of each function is copied, with
another value of the constant, and TensorFlow leaves out what then nothing uses.
"""

from __future__ import annotations

import inspect
import itertools
import re
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from tensorflow import config
from tensorflow.core.framework import attr_value_pb2, function_pb2, node_def_pb2
from tensorflow.python.eager import context
from tensorflow.python.eager.polymorphic_function import atomic_function
from tensorflow.python.framework import dtypes, op_def_registry
from tensorflow.python.framework.tensor_util import make_tensor_proto

OUR_SCOPE = "trainsanity"
OUR_NODE = re.compile(rf"(^|/){OUR_SCOPE}(_\d+)?/")
MARK = "trainsanity_left_out"  # the constant's name
RARELY = "trainsanity_rarely"  # scope of writes to variables that are left out
TAKEN_APART = "_lower_using_switch_merge"  # of a branch: whether it becomes operations
_MARKED = re.compile(rf"(^|/){MARK}(_\d+)?$")
_RARE = re.compile(rf"(^|/){RARELY}(_\d+)?/")
# What keeps its state in variables or in Python, or has none that counts. Others may keep it in the
# function, as `RandomUniform` its place in a sequence: two functions would not go on where the
# other has stopped.
_STATE_OUTSIDE = re.compile(
    r"(ReadVariableOp|Assign\w*VariableOp|VarHandleOp|VarIsInitializedOp|Resource\w+|\w*Iterator\w*"
    r"|\w*Optional\w*|If|While|Case|\w*PartitionedCall|Assert|PrintV2|\w*PyFunc|Timestamp"
    r"|Stateful(Standard|Truncated|Uniform)\w*|Rng\w*Skip|LookupTable\w+|TensorList\w+|Placeholder)"
)
ASSIGNMENT = re.compile(r"Assign\w*VariableOp")
MOST_BYTES = 64 * 1024**2  # that a copy may take
_numbers = itertools.count()


def traced(program: Any) -> Any:
    """What is traced behind Keras' function of steps (`tf.types.experimental.ConcreteFunction`);
    None where that is not one function, or what it uses from outside changes.
    """
    # The name that Keras' `_make_function` gives it.
    compiled = inspect.getclosurevars(program).nonlocals.get("multi_step_on_iterator")
    listed = getattr(compiled, "_list_all_concrete_functions", None)
    found = listed() if listed is not None else []
    if len(found) != 1 or config.functions_run_eagerly():
        return None
    return None if found[0].graph.deferred_external_captures else found[0]


def steps_of(function: atomic_function.AtomicFunction, whole: Any) -> Callable[..., Any]:
    """Steps by `whole`, or by a copy of it, on the batches of an iterator. Python's part of
    `tf.function`, which looks at each argument and each variable, takes longer than some steps.
    """
    kind = function.function_type
    captures = kind.unpack_captures(whole.captured_inputs)
    # Not by the iterator itself, which must not live longer for us.
    inputs: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()

    def step(iterator: Any) -> Any:
        given = inputs.get(iterator)
        if given is None:
            given = inputs[iterator] = [*kind.unpack_inputs(kind.bind(iterator)), *captures]
        found = function.call_preflattened(given)
        if not found.has_value():
            raise StopIteration
        return found.get_value()

    return step


class _Copy(atomic_function.AtomicFunction):  # type: ignore[misc] # TensorFlow has no types
    """Errors name the places in the user's code as those of the original do."""

    original: str

    @property
    def graph_debug_info(self) -> Any:
        return self._bound_context.get_graph_debug_info(self.original)


def without_rare(function: Any) -> atomic_function.AtomicFunction | None:
    """A copy of a traced function (`tf.types.experimental.ConcreteFunction`) in which the marked
    constant is 1; None where there is none, where a copy would not go on where the function
    stopped, or would be too large.
    """
    copies = _Copies(function.inference_fn)
    definition = function_pb2.FunctionDef()
    definition.CopyFrom(function.function_def)
    is_other = copies.change(definition)
    can_run = is_other and not copies.hold_state and copies.size <= MOST_BYTES
    return copies.register(definition) if can_run else None


class _Copies:
    """Copies of functions that call each other.

    Attributes:
        hold_state: whether a function keeps state that a copy of it would not have.
        size: bytes of all definitions; constants are a part of them.
    """

    def __init__(self, original: atomic_function.AtomicFunction) -> None:
        self.hold_state = False
        self.size = 0
        self._type = original.function_type
        # What may be called by one that comes later.
        self._made: list[atomic_function.AtomicFunction] = list(original.children)
        self._names: dict[str, str] = {}

    def change(self, definition: function_pb2.FunctionDef) -> bool:
        """Whether there was anything to change in it, or in what it calls."""
        is_other = False
        self.size += definition.ByteSize()
        for node in definition.node_def:
            self.hold_state |= _holds_state(node.op)
            if node.op == "Const" and _MARKED.search(node.name):
                node.attr["value"].tensor.CopyFrom(make_tensor_proto(1.0, dtypes.float32))
                is_other = True
            elif ASSIGNMENT.fullmatch(node.op) and _RARE.search(node.name):
                _leave_out(node)
                is_other = True
            elif node.op in ("If", "StatelessIf") and OUR_NODE.search(node.name):
                node.attr[TAKEN_APART].b = True  # only so TensorFlow sees that it is not taken
            for called in _functions(node):
                name = self._name(called.name)
                is_other |= name != called.name
                called.name = name
        return is_other

    def _name(self, name: str) -> str:
        """Of the copy, where it is another function."""
        if name not in self._names:
            definition = context.context().get_function_def(name)
            is_other = self.change(definition)
            self._names[name] = self.register(definition).name.decode() if is_other else name
        return self._names[name]

    def register(self, definition: function_pb2.FunctionDef) -> atomic_function.AtomicFunction:
        """Makes it known to TensorFlow until nobody holds it."""
        original, bound = definition.signature.name, context.context()
        definition.signature.name = name = f"{original}_{MARK}_{next(_numbers)}"
        bound.add_function_def(definition)
        copy = _Copy(name, bound, self._type, list(self._made))
        copy.original = original
        self._made.append(copy)
        return copy


def _holds_state(op: str) -> bool:
    known = op_def_registry.get(op)
    return known is None or (known.is_stateful and not _STATE_OUTSIDE.fullmatch(op))


def _functions(node: node_def_pb2.NodeDef) -> Iterator[attr_value_pb2.NameAttrList]:
    """That an operation calls."""
    for attr in node.attr.values():
        if attr.HasField("func"):
            yield attr.func
        yield from attr.list.func


def _leave_out(node: node_def_pb2.NodeDef) -> None:
    """What waits for it still may."""
    node.op = "NoOp"
    node.attr.clear()
    waits_for = [name for name in node.input if name.startswith("^")]
    del node.input[:]
    node.input.extend(waits_for)
