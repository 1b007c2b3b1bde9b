"""TensorFlow's way of the operations that Keras does not offer."""

from __future__ import annotations

import contextlib
import functools
import random
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import compress, groupby
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops
from tensorflow.core.framework import attr_value_pb2
from tensorflow.python.eager import context
from tensorflow.python.eager.polymorphic_function import polymorphic_function
from tensorflow.python.framework import config as tf_config
from tensorflow.python.ops.resource_variable_ops import default_variable_creator_v2

from trainsanity.backends.backend import Backend, Element, Sizes, side_by_side
from trainsanity.backends.tensorflow_functions import (
    MARK,
    OUR_NODE,
    OUR_SCOPE,
    RARELY,
    TAKEN_APART,
    steps_of,
    traced,
    without_rare,
)
from trainsanity.overheard import Overheard
from trainsanity.wrappers import Wrappers

TRACE_COUNTERS = "_frequent_tracing_detector_manager"
CONVERTER = "_autoconvert_optionals"
# Of the exponent and of the mantissa.
BITS = {tf.float64: (11, 52), tf.float32: (8, 23), tf.bfloat16: (8, 7), tf.float16: (5, 10)}
FROM_LOGITS = {"Softmax": tf.nn.softmax, "Sigmoid": tf.math.sigmoid}
SMALL = 16_384  # elements: counting what is not finite is cheap, and done at once
FEW = 32_768  # of all tensors: counting takes less time than the making of a branch, for long
FAILED_NODE = re.compile(r"\{\{node ([^}]*)\}\}")  # as TensorFlow ends the text of an error


class Uncounted:
    """Stands for TensorFlow's counters of traces and counts none of some threads."""

    def __init__(self, counters: Any, threads: Sequence[int]) -> None:
        self._counters, self._threads = counters, threads

    def called_with_tracing(self, *args: Any) -> None:
        if threading.get_ident() not in self._threads:
            self._counters.called_with_tracing(*args)

    def called_without_tracing(self, *args: Any) -> None:
        if threading.get_ident() not in self._threads:
            self._counters.called_without_tracing(*args)


_trace_counters = Overheard(polymorphic_function, TRACE_COUNTERS, Uncounted)


class TensorFlow(Backend):
    # Source: `Function._call` in tensorflow/python/eager/polymorphic_function. The first one is run
    # only where the variables' first values cannot be taken out of it; zeros can.
    TRACES_AGAIN = True

    def row(self, cells: Mapping[int, Any], width: int, rest: float) -> Any:
        values = side_by_side(cells, rest)
        filler = tf.fill([width - len(values)], tf.constant(rest, tf.float32))
        return tf.concat([*_pieces(values), filler], 0)

    def vector(self, scalars: Sequence[Any]) -> Any:
        return tf.stack([_scalar(scalar) for scalar in scalars])

    def write_row(self, ring: Any, count: Any, row: Any) -> None:
        """In place, inside the compiled step."""
        variable, counter = own_copy(ring._value), own_copy(count._value)
        # In place: assigning the whole ring would copy it in every step.
        tf.raw_ops.ResourceScatterUpdate(
            resource=variable.handle,
            indices=tf.math.floormod(counter, variable.shape[0]),
            updates=row,
        )
        # Bound to the row: where data of unknown length has ended, the graph runs once more for
        # what does not depend on a batch, and this must not count.
        with tf.control_dependencies([row]):
            counter.assign_add(1)

    def leaves_out(self) -> bool:
        """A GPU would have to tell the host of each condition, and runs behind the host's clock."""
        return not tf.config.list_logical_devices("GPU")

    def when(self, condition: Any, compute: Callable[[], Any], rest: float) -> Any:
        values: list[Any] = []

        def vector() -> Any:
            with self.observing():
                values.append(compute())
            return values[0]

        def without() -> Any:
            return tf.fill(values[0].shape, tf.constant(rest, values[0].dtype))

        if self.runs_at_once():
            return compute()
        found = tf.cond(condition, vector, without)
        branch = found.op
        while branch.type not in ("If", "StatelessIf"):
            branch = branch.inputs[0].op
        # As one operation: taken apart, each operation that is left out would still cost time.
        branch._set_attr(TAKEN_APART, attr_value_pb2.AttrValue(b=False))
        return found

    def choosing(
        self, model: Any, run: Callable[[Any, tuple[Any, ...]], Any]
    ) -> Callable[..., Any]:
        make = model._make_function

        def make_function(step_function: Any, *args: Any, **kwargs: Any) -> Any:
            made = make(step_function, *args, **kwargs)
            if step_function != model.train_step:
                return made

            def chosen(*args: Any) -> Any:
                return run(made, args)

            return chosen

        return make_function

    def in_turn(self, value: Any, otherwise: Any) -> Any:
        return tf.where(tf.equal(tf.constant(0.0, name=MARK), 0.0), value, otherwise)

    def rarely(self, kept: Sequence[Any]) -> AbstractContextManager[None]:
        scope: AbstractContextManager[None] = tf.name_scope(RARELY)
        return scope

    def kind_of(self, args: tuple[Any, ...]) -> Any:
        """Batches that the graph fetches by itself are all of one kind."""
        (iterator,) = args
        if tf.config.functions_run_eagerly() or not isinstance(iterator, tf.data.Iterator):
            return None
        return iterator.element_spec

    def leaving_out(self, program: Any, args: tuple[Any, ...]) -> Callable[..., Any] | None:
        whole = traced(program)
        short = None if whole is None else without_rare(whole)
        return None if short is None else steps_of(short, whole)

    def direct(self, program: Any, args: tuple[Any, ...]) -> Callable[..., Any] | None:
        whole = traced(program)
        return None if whole is None else steps_of(whole.inference_fn, whole)

    def read(self, variable: Any) -> np.ndarray[Any, Any]:
        # Python may collect what a call has left while another model is traced.
        with tf.init_scope():
            return np.asarray(variable._value.numpy())

    def observing(self) -> AbstractContextManager[Any]:
        """Operations made within carry our name, so that one that fails is known as ours."""
        scope: AbstractContextManager[Any] = tf.name_scope(OUR_SCOPE)
        return scope

    @contextlib.contextmanager
    def outside_trace(self) -> Iterator[None]:
        """A function has creators of its own for variables, also in the scope of what is run first:
        what they make costs a trace more, and they refuse to make it in a later one.
        """
        with tf.init_scope(), tf.variable_creator_scope(_made_at_once):
            yield

    @contextlib.contextmanager
    def own_traces(self) -> Iterator[None]:
        """TensorFlow counts how often the functions of a place in the code are traced, over all
        models, and warns from the fifth on.
        """
        if not hasattr(polymorphic_function, TRACE_COUNTERS):
            yield
            return
        thread = threading.get_ident()
        _trace_counters.listen(thread)
        try:
            yield
        finally:
            _trace_counters.forget(thread)

    def peek(self, batches: Any) -> tuple[Any, Any] | None:
        """None also where the batches are fetched inside the graph."""
        if isinstance(batches, (tf.data.Iterator, tf.distribute.DistributedIterator)):
            return None
        return super().peek(batches)

    def catch_sample(self, run: Any, batch: Any) -> None:
        """For data that only the graph sees. TensorFlow may trace a step again before it has run
        once, so each trace does it.
        """
        leaves = tf.nest.flatten(batch)
        is_kept = run.sample is not None or (tf.executing_eagerly() and "caught" in run.shared)
        if is_kept or not self._has_room(run, leaves):
            return
        done, kept, _ = run.shared["caught"]

        def keep() -> tf.Tensor:
            for variable, leaf in zip(kept, leaves, strict=True):
                variable.assign(leaf[: run.sample_rows])
            done.assign(True)
            return tf.constant(True)

        tf.cond(done, lambda: tf.constant(False), keep)
        run.shared["caught"] = (done, kept, batch)

    def around_making(self, model: Any, look: Callable[[Any], None]) -> Callable[..., Any] | None:
        """XLA fixes the shape of a variable at its first use, and must not see what keeps a sample.
        What Keras calls `CONVERTER` for is called with each batch, in the graph around it.
        """
        convert, make = getattr(model, CONVERTER, None), model._make_function
        if convert is None:  # in Keras 3.10 and before
            return None

        def converter(compiled: Callable[..., Any]) -> Callable[..., Any]:
            step = convert(compiled)

            def look_and_step(data: Any) -> Any:
                look(data)
                return step(data)

            return look_and_step

        def make_function(step: Callable[..., Any]) -> Any:
            if step != model.train_step:
                return make(step)
            for_now = Wrappers()
            for_now.put(model, CONVERTER, converter)
            try:
                return make(step)
            finally:
                for_now.take_off()

        return make_function

    def _has_room(self, run: Any, leaves: list[Any]) -> bool:
        """Whether there are variables for these parts of a batch; they are made for the first."""
        if "caught" in run.shared:
            kept = run.shared["caught"][1]
            return len(kept) == len(leaves) and all(map(_fits, kept, leaves))
        if not all(map(_can_be_caught, leaves)):
            why = "the data has parts that are no dense tensors of known shape"
            run.not_testable["sample"] = why
            return False
        with self.outside_trace():
            done = tf.Variable(False, trainable=False)
            run.shared["caught"] = (done, [_room_for(leaf) for leaf in leaves], None)
        return True

    def caught_sample(self, run: Any) -> Any | None:
        caught = run.shared.get("caught")
        if caught is None or not bool(caught[0].numpy()):
            return None
        _, kept, structure = caught
        return tf.nest.pack_sequence_as(structure, [variable.numpy() for variable in kept])

    def pick(self, variable: Any, coordinates: np.ndarray[Any, Any]) -> Any:
        # Not by a gather from the resource: for good, each read of the variable would then copy it.
        own = own_copy(variable._value)
        value = tf.raw_ops.ReadVariableOp(resource=own.handle, dtype=own.dtype)
        return self.pick_tensor(value, coordinates)

    def pick_value(self, variable: Any, coordinates: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Without moving the others."""
        value: np.ndarray[Any, Any] = tf.cast(self.pick(variable, coordinates), tf.float32).numpy()
        return value

    def pick_tensor(self, tensor: Any, coordinates: np.ndarray[Any, Any]) -> Any:
        if tensor.shape.rank == 0:
            return tf.reshape(tensor, [1])
        return tf.gather_nd(tensor, coordinates)

    def is_sparse(self, tensor: Any) -> bool:
        return isinstance(tensor, tf.IndexedSlices)

    def dense_part(self, tensor: Any) -> Any:
        return tensor.values if self.is_sparse(tensor) else tensor

    def rows_added_up(self, tensor: Any) -> Any:
        if not self.is_sparse(tensor):
            return tensor
        # Sorted, as XLA knows no `unique`.
        order = tf.argsort(tensor.indices)
        rows = tf.gather(tensor.indices, order)
        is_other = tf.concat([[0], tf.cast(rows[1:] != rows[:-1], tf.int32)], 0)
        values = tf.gather(tensor.values, order)
        return tf.math.unsorted_segment_sum(values, tf.cumsum(is_other), tf.shape(rows)[0])

    def square_sums(self, tensors: list[Any]) -> list[Any]:
        # Every operation of a graph takes its time to make, also where it does next to nothing.
        return list(tf.unstack(self._squares(tensors), len(tensors))) if tensors else []

    def _squares(self, tensors: list[Any]) -> Any:
        values = [tf.cast(self.dense_part(tensor), tf.float32) for tensor in tensors]
        return 2.0 * tf.stack([tf.nn.l2_loss(v) for v in values])

    def end_of_data_errors(self) -> tuple[type[BaseException], ...]:
        return (StopIteration, tf.errors.OutOfRangeError)

    def forward_errors(self) -> tuple[type[Exception], ...]:
        return (tf.errors.OpError,)

    def gradient(
        self, function: Callable[[], Any], variables: list[Any], *, compiled: bool
    ) -> tuple[Any, list[Any]]:
        with tf.GradientTape() as tape:
            value = function()
        found = tape.gradient(value, [variable._value for variable in variables])
        return value, [None if g is None else tf.convert_to_tensor(g) for g in found]

    def of_values(
        self, function: Callable[[], Any], variables: list[Any], *, compiled: bool
    ) -> Callable[[list[np.ndarray[Any, Any]]], Any]:
        # One trace takes as long as a few passes operation by operation.
        chosen = tf.function(function, autograph=False) if compiled else function
        return super().of_values(chosen, variables, compiled=compiled)

    def gradients_by_row(
        self, function: Callable[[], Any], variables: list[Any]
    ) -> list[tuple[Any, Any, Any]]:
        with tf.GradientTape() as tape:
            value = function()
        found = tape.gradient(value, [variable._value for variable in variables])
        pairs = zip(variables, found, strict=True)
        return [(v, g.indices, g.values) for v, g in pairs if self.is_sparse(g)]

    def from_rows(self, indices: Any, values: Any, shape: tuple[int, ...]) -> Any:
        return tf.IndexedSlices(tf.convert_to_tensor(values), tf.convert_to_tensor(indices), shape)

    def device_memory(self) -> float | None:
        if not tf.config.list_logical_devices("GPU"):
            return None
        return float(tf.config.experimental.get_memory_info("GPU:0")["current"])

    def devices(self) -> list[str]:
        return [f"{d.device_type}:{d.name}" for d in tf.config.list_logical_devices()]

    def version(self) -> str:
        return str(tf.__version__)

    def generator_state(self) -> Any:
        """Of the generator from which eager random operations draw their seeds; None where no seed
        was set.

        An operation with a seed that was used before goes on where that one was: until it is put
        back, another generator gives seeds that training will not be given.
        """
        held = context.context()
        generator = getattr(held, "_rng", None)
        if generator is not None:
            held._rng = random.Random("trainsanity")
        return generator

    def beside_keras(self, owner: Any) -> list[Callable[[], Any]]:
        variables: list[Any] = []
        for value in vars(owner).values():
            if isinstance(value, tf.Variable):
                variables.append(value)
            elif isinstance(value, tf.random.Generator):
                variables.append(value.state)
            elif isinstance(value, tf.Module):
                variables += value.variables
        return [
            functools.partial(v.assign, v.numpy()) for v in variables if v.dtype.is_numpy_compatible
        ]

    def put_back_generator(self, state: Any) -> None:
        if state is not None:
            context.context()._rng = state

    def runs_at_once(self) -> bool:
        return bool(tf.executing_eagerly())

    def is_traced(self, tensor: Any) -> bool:
        return isinstance(tensor, tf.Tensor) and not hasattr(tensor, "numpy")

    @contextlib.contextmanager
    def once(self, model: Any) -> Iterator[None]:
        """Eagerly: a graph takes longer to trace than a batch takes without one."""
        own = model.__dict__
        before, own["_run_eagerly"] = own["_run_eagerly"], True
        try:
            yield
        finally:
            own["_run_eagerly"] = before

    @contextlib.contextmanager
    def watched_reads(self, read: dict[int, Any]) -> Iterator[None]:
        with tf.GradientTape() as tape:
            yield
        for variable in tape.watched_variables():
            read.setdefault(id(variable), (variable, None))

    def trace_scope(self) -> Any:
        return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()

    def behind_barrier(self, tensors: list[Any]) -> list[Any]:
        return list(gen_xla_ops.xla_optimization_barrier(input=tensors))

    def gradients_to_see(self, gradients: list[Any]) -> list[Any]:
        """Through an operation that changes nothing, and that XLA joins to whatever makes or uses
        them: it compiles what makes a value otherwise where a barrier must get it.
        """
        return [_as_precise(gradient) for gradient in gradients]

    def with_logits(self, copy: Any, tensor: Any) -> Any:
        """Keras' crossentropies take the logits that were noted on the probabilities, or that the
        operation got which made them: from probabilities that have become 0 nothing is known.
        """
        logits = getattr(tensor, "_keras_logits", None)
        if logits is not None:
            copy._keras_logits = _as_precise(logits)
            return copy
        again = FROM_LOGITS.get(tensor.op.type) if self.is_traced(tensor) else None
        return copy if again is None else again(_as_precise(tensor.op.inputs[0]))

    def is_dense(self, tensor: Any) -> bool:
        return isinstance(tensor, tf.Tensor)

    def copies(self, tensors: list[Any], *, xla: bool) -> list[Any]:
        return [self._copy(tensor, xla=xla) for tensor in tensors]

    def _copy(self, tensor: Any, *, xla: bool) -> Any:
        if self.is_sparse(tensor):
            values = self._copy(tensor.values, xla=xla)
            return tf.IndexedSlices(values, tensor.indices, tensor.dense_shape)
        if not self.is_dense(tensor):
            return tensor
        return _as_precise(tensor) if xla else tf.raw_ops.Snapshot(input=tensor)

    def is_traced_step(self, model: Any) -> bool:
        return not model.run_eagerly

    def why_untappable(self, model: Any) -> str | None:
        strategy = model.distribute_strategy
        mirrored = isinstance(strategy, tf.distribute.MirroredStrategy)
        if mirrored or strategy.num_replicas_in_sync == 1:
            return None
        return (
            f"batches are added up over the replicas of MirroredStrategy, not of {strategy!r:.60}"
        )

    def processes(self, model: Any) -> int:
        cluster = model.distribute_strategy.cluster_resolver
        specification = cluster.cluster_spec().as_dict() if cluster is not None else {}
        return sum(len(tasks) for tasks in specification.values()) or 1

    def replicas(self, model: Any) -> int:
        return int(model.distribute_strategy.num_replicas_in_sync)

    def with_all_replicas(self, function: Callable[[list[Any]], None], own: Any) -> None:
        # Behind a function, TensorFlow does not look into what is brought.
        tf.distribute.get_replica_context().merge_call(
            lambda strategy, brought: function(
                [bring() for bring in strategy.experimental_local_results(brought)]
            ),
            args=(lambda: own,),
        )

    def copies_of(self, variable: Any) -> list[Any]:
        """Each may hold another value."""
        return list(getattr(variable._value, "values", (variable._value,)))

    def is_our_failure(self, error: BaseException) -> bool:
        """Whether every operation that failed is ours: only then would the user's have gone on. The
        text names files of ours for any operation of a step that is watched.
        """
        failed = FAILED_NODE.findall(str(error))
        return bool(failed) and all(map(OUR_NODE.search, failed))

    def sizes(self, gradients: list[Any], which: list[bool], *, xla: bool) -> Sizes:
        squares = tf.reduce_sum(self._squares(gradients))
        count = self._count_nonfinite(gradients, tf.math.is_finite(squares), xla=xla)
        wanted = iter(self.largest([*compress(gradients, which)]))
        return Sizes([squares], [count], [next(wanted) if w else None for w in which])

    def _count_nonfinite(self, tensors: list[Any], finite: Any, *, xla: bool) -> Any:
        """Where not all are. XLA always counts in small ones: a branch would split its fusions, and
        training round otherwise. What is large is there as a whole.
        """
        parts = [self.dense_part(tensor) for tensor in tensors]
        small = [part for part in parts if 0 < (part.shape.num_elements() or 0) <= SMALL]
        large = [part for part in parts if not any(part is one for one in small)]
        if xla:
            count = self.nonfinite(small)
            if large:
                count += tf.cond(finite, lambda: tf.zeros(()), lambda: self.nonfinite(large))
            return count
        if not large and sum(part.shape.num_elements() for part in small) <= FEW:
            return self.nonfinite(_joined(small))
        return tf.cond(
            finite, lambda: tf.zeros(()), lambda: self.nonfinite([*_joined(small), *large])
        )

    def arrival(self, batch: Any, *, xla: bool) -> tuple[Any, Any] | None:
        """None under XLA, which knows no clock, and where operations are to be deterministic: a
        clock would raise.
        """
        leaves = [leaf for leaf in tf.nest.flatten(batch) if self.is_dense(leaf)]
        if xla or not leaves or tf_config.is_op_determinism_enabled():
            return None
        with tf.control_dependencies(leaves):
            now = tf.timestamp()
        seconds = tf.floor(now)
        return tf.math.floormod(seconds, 2.0**20), now - seconds

    def largest(self, tensors: list[Any]) -> list[Any]:
        values = [self.dense_part(tensor) for tensor in tensors]
        return [tf.cast(tf.reduce_max(tf.abs(v)), tf.float32) for v in values]


def _joined(tensors: list[Any]) -> list[Any]:
    """Their elements, in one vector for each type."""
    flat = tf.constant([-1])
    by_type: dict[Any, list[Any]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tf.reshape(tensor, flat))
    return [tf.concat(vectors, 0) for vectors in by_type.values()]


def _as_precise(tensor: Any) -> Any:
    bits = BITS.get(tensor.dtype)
    if bits is None:
        return tensor
    exponent, mantissa = bits
    return gen_xla_ops.xla_reduce_precision(
        operand=tensor, exponent_bits=exponent, mantissa_bits=mantissa
    )


def _pieces(values: Iterable[Any]) -> Iterator[Any]:
    """Cells as vectors. One of which all elements follow each other stays whole: to take it apart
    takes longer than all else that is done with a row.
    """
    for _, group in groupby(values, lambda v: id(v.vector) if isinstance(v, Element) else None):
        cells = list(group)
        vector = cells[0].vector if isinstance(cells[0], Element) else None
        is_whole = vector is not None and [c.place for c in cells] == list(range(vector.shape[0]))
        yield vector if is_whole else tf.stack([_scalar(cell) for cell in cells])


def _scalar(value: Any) -> Any:
    """As float32; an operation fewer in every step for what is a scalar already."""
    if isinstance(value, Element):
        return value.vector[value.place]
    cell = tf.cast(value, tf.float32)
    return cell if cell.shape.rank == 0 else tf.reshape(cell, [])


def _can_be_caught(leaf: Any) -> bool:
    return isinstance(leaf, tf.Tensor) and leaf.shape.rank is not None and leaf.shape.rank > 0


def _room_for(leaf: Any) -> tf.Variable:
    shape = tf.TensorShape([None] * leaf.shape.rank)
    empty = tf.zeros([0] * leaf.shape.rank, leaf.dtype)
    return tf.Variable(empty, shape=shape, trainable=False)


def _fits(variable: tf.Variable, leaf: Any) -> bool:
    is_same = isinstance(leaf, tf.Tensor) and leaf.dtype == variable.dtype
    return is_same and leaf.shape.rank == variable.shape.rank


def _made_at_once(_: Any, **options: Any) -> Any:
    return default_variable_creator_v2(**options)


def own_copy(variable: Any) -> Any:
    """The variable, or the first copy of one that lives on several replicas."""
    return getattr(variable, "_primary", variable)
