"""TensorFlow's way of the operations that Keras does not offer."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops
from tensorflow.python.eager import context

READABLE_IN_EPOCH = True  # variables hold their values between steps
HAS_GRADIENT_BOUNDARY = False  # a value made inside the gradient may be used outside
OUR_SCOPE = "trainsanity"
ONE_PROGRAM = "several processes run one program together, which must be the same in all of them"


def row(values: list[Any], width: int, rest: float) -> Any:
    """Scalars of any type, then `rest`, as a float32 tensor of shape (width,)."""
    filler = tf.fill([width - len(values)], tf.constant(rest, tf.float32))
    if not values:
        return filler
    return tf.concat([tf.stack([_scalar(value) for value in values]), filler], 0)


def _scalar(value: Any) -> Any:
    """As float32; an operation fewer in every step for what is a scalar already."""
    cell = tf.cast(value, tf.float32)
    return cell if cell.shape.rank == 0 else tf.reshape(cell, [])


def write_row(ring: Any, count: Any, row: Any) -> None:
    """Writes one row of the ring in place and advances the counter; inside the compiled step."""
    variable, counter = own_copy(ring._value), own_copy(count._value)
    # In place: assigning the whole ring would copy it in every step.
    tf.raw_ops.ResourceScatterUpdate(
        resource=variable.handle,
        indices=tf.math.floormod(counter, variable.shape[0]),
        updates=row,
    )
    # Bound to the row: where data of unknown length has ended, the graph runs once more for what
    # does not depend on a batch, and this must not count.
    with tf.control_dependencies([row]):
        counter.assign_add(1)


def read(variable: Any) -> np.ndarray[Any, Any]:
    """The value of a Keras variable on the host."""
    # Python may collect what a call has left while another model is traced.
    with tf.init_scope():
        return np.asarray(variable._value.numpy())


def read_in_step(variable: Any, model: Any, state: Any) -> np.ndarray[Any, Any]:
    """The same as `read`: variables hold their values at any time."""
    return read(variable)


def copy_tape(tape: Any, model: Any, result: Any) -> None:
    """Nothing: the tape can be read at any time."""


def tape_before(tape: Any, model: Any, args: tuple[Any, ...]) -> None:
    """Nothing: the tape can be read at any time."""


def observing() -> AbstractContextManager[Any]:
    """Operations made within carry our name, so that one that fails is known as ours."""
    scope: AbstractContextManager[Any] = tf.name_scope(OUR_SCOPE)
    return scope


def outside_trace() -> AbstractContextManager[Any]:
    """Within, variables may be made although a step is being traced."""
    scope: AbstractContextManager[Any] = tf.init_scope()
    return scope


def peek(iterator: Any) -> tuple[Any, Iterator[Any]] | None:
    """The next batch and an iterator that still gives it; None where it is fetched inside the
    graph.
    """
    if isinstance(iterator, (tf.data.Iterator, tf.distribute.DistributedIterator)):
        return None
    for batch in iterator:
        return batch, itertools.chain([batch], iterator)
    return None


def catch_sample(run: Any, args: tuple[Any, ...]) -> None:
    """Inside the step: keeps the first rows of the first batch, for data that only the
    graph sees.
    """
    if run.sample is not None or "caught" in run.shared:
        return
    leaves = tf.nest.flatten(args[0])
    if not all(_can_be_caught(leaf, run.compiled_by_xla) for leaf in leaves):
        run.not_testable["sample"] = "the data has parts that are no dense tensors of known shape"
        return
    with tf.init_scope():
        kept = [_room_for(leaf) for leaf in leaves]
        done = tf.Variable(False, trainable=False)

    def keep() -> tf.Tensor:
        for variable, leaf in zip(kept, leaves, strict=True):
            variable.assign(leaf[: run.sample_rows])
        done.assign(True)
        return tf.constant(True)

    tf.cond(done, lambda: tf.constant(False), keep)
    run.shared["caught"] = (done, kept, args[0])


def _can_be_caught(leaf: Any, xla: bool) -> bool:
    # XLA fixes the shape of a variable at its first use.
    return (
        isinstance(leaf, tf.Tensor)
        and leaf.shape.rank is not None
        and leaf.shape.rank > 0
        and not xla
    )


def _room_for(leaf: Any) -> tf.Variable:
    shape = tf.TensorShape([None] * leaf.shape.rank)
    empty = tf.zeros([0] * leaf.shape.rank, leaf.dtype)
    return tf.Variable(empty, shape=shape, trainable=False)


def caught_sample(run: Any) -> Any | None:
    """The rows that `catch_sample` has kept, as arrays, in the structure of the data."""
    caught = run.shared.get("caught")
    if caught is None or not bool(caught[0].numpy()):
        return None
    _, kept, structure = caught
    return tf.nest.pack_sequence_as(structure, [variable.numpy() for variable in kept])


def pick(variable: Any, coordinates: np.ndarray[Any, Any], *, xla: bool) -> Any:
    """Elements of a Keras variable; coordinates have shape (k, rank). Does not touch the rest of
    it.
    """
    own = own_copy(variable._value)
    if variable.shape == ():
        return tf.reshape(own.read_value(), [1])
    if xla:  # knows no gather from a resource, and needs none: it fuses the read
        return tf.gather_nd(own.read_value(), coordinates)
    # Reading the whole tensor would hold its buffer and force a copy at the next update.
    return tf.raw_ops.ResourceGatherNd(
        resource=own.handle,
        indices=coordinates,
        dtype=own.dtype,
    )


def pick_value(variable: Any, coordinates: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Elements of a Keras variable on the host, without moving the others."""
    value: np.ndarray[Any, Any] = tf.cast(
        pick(variable, coordinates, xla=False), tf.float32
    ).numpy()
    return value


def pick_tensor(tensor: Any, coordinates: np.ndarray[Any, Any]) -> Any:
    """Elements of a dense tensor, e.g. a gradient; coordinates have shape (k, rank)."""
    if tensor.shape.rank == 0:
        return tf.reshape(tensor, [1])
    return tf.gather_nd(tensor, coordinates)


def is_sparse(tensor: Any) -> bool:
    """Whether a gradient lists only the rows that were touched."""
    return isinstance(tensor, tf.IndexedSlices)


def dense_part(tensor: Any) -> Any:
    """The tensor, or the touched rows of a sparse gradient."""
    return tensor.values if is_sparse(tensor) else tensor


def square_sum(tensor: Any) -> Any:
    """Sum of squares as float32; of the touched rows for a sparse gradient."""
    values = dense_part(tensor)
    return 2.0 * tf.nn.l2_loss(tf.cast(values, tf.float32))


def end_of_data_errors() -> tuple[type[BaseException], ...]:
    """What the train function raises to say that the data has ended."""
    return (StopIteration, tf.errors.OutOfRangeError)


def forward_errors() -> tuple[type[Exception], ...]:
    """What an eager call may raise besides Python's own errors."""
    return (tf.errors.OpError,)


def gradient(function: Callable[[], Any], variables: list[Any]) -> tuple[Any, list[Any]]:
    """What `function()` returns, and its gradient by each variable; None where it has none."""
    with tf.GradientTape() as tape:
        value = function()
    found = tape.gradient(value, [variable._value for variable in variables])
    return value, [None if g is None else tf.convert_to_tensor(g) for g in found]


def device_memory() -> float | None:
    """Bytes in use on the first GPU, or None where there is none."""
    if not tf.config.list_logical_devices("GPU"):
        return None
    return float(tf.config.experimental.get_memory_info("GPU:0")["current"])


def devices() -> list[str]:
    return [f"{d.device_type}:{d.name}" for d in tf.config.list_logical_devices()]


def version() -> str:
    return str(tf.__version__)


def generator_state() -> Any:
    """State of the generator from which eager random operations draw their seeds; None where no
    seed was set.
    """
    rng = getattr(context.context(), "_rng", None)
    return None if rng is None else rng.getstate()


def put_back_generator(state: Any) -> None:
    if state is not None:
        context.context()._rng.setstate(state)


def is_traced(tensor: Any) -> bool:
    """Whether a tensor stands for a value inside a graph that is being made."""
    return isinstance(tensor, tf.Tensor) and not hasattr(tensor, "numpy")


@contextlib.contextmanager
def watched_reads(read: dict[int, Any], stack: list[Any]) -> Iterator[None]:
    """Within, variables of TensorFlow's own that are read are noted too, where they are
    trainable.
    """
    with tf.GradientTape() as tape:
        yield
    for variable in tape.watched_variables():
        read.setdefault(id(variable), (variable, None))


def behind_barrier(tensors: list[Any]) -> list[Any]:
    """The same values, of which XLA cannot make the code that computes them anew.

    Without it the compiler may fuse a value that is also observed in another way, and round it
    otherwise.
    """
    return list(gen_xla_ops.xla_optimization_barrier(input=tensors))


def is_dense(tensor: Any) -> bool:
    """Whether this is an ordinary tensor, not None nor a list of touched rows."""
    return isinstance(tensor, tf.Tensor)


def copies(tensors: list[Any], *, xla: bool) -> list[Any]:
    """The same values as tensors of their own, whose use does not change how others are
    compiled.
    """
    if xla:
        return [t if not is_dense(t) else behind_barrier([t])[0] for t in tensors]
    return [_copy(tensor) for tensor in tensors]


def _copy(tensor: Any) -> Any:
    if is_sparse(tensor):
        values = tf.raw_ops.Snapshot(input=tensor.values)
        return tf.IndexedSlices(values, tensor.indices, tensor.dense_shape)
    return tf.raw_ops.Snapshot(input=tensor) if is_dense(tensor) else tensor


def is_traced_step(model: Any) -> bool:
    return not model.run_eagerly


def why_untappable(model: Any) -> str | None:
    """Why no tap can go into the step of this model, or None."""
    strategy = model.distribute_strategy
    if strategy.num_replicas_in_sync == 1 or isinstance(strategy, tf.distribute.MirroredStrategy):
        return None
    return f"batches are added up over the replicas of MirroredStrategy, not of {strategy!r:.60}"


def processes(model: Any) -> int:
    """How many processes train one model."""
    cluster = model.distribute_strategy.cluster_resolver
    specification = cluster.cluster_spec().as_dict() if cluster is not None else {}
    return sum(len(tasks) for tasks in specification.values()) or 1


def why_not_in_this_process(model: Any) -> str | None:
    """Why this one of several processes must be left alone."""
    return None if processes(model) == 1 else ONE_PROGRAM


def replicas(model: Any) -> int:
    """Copies of the model that share every batch."""
    return int(model.distribute_strategy.num_replicas_in_sync)


def with_all_replicas(function: Callable[[list[Any]], None], own: Any) -> None:
    """Inside the step of one replica: calls the function once for all, with what each brings."""
    # Behind a function, TensorFlow does not look into what is brought.
    tf.distribute.get_replica_context().merge_call(
        lambda strategy, brought: function(
            [bring() for bring in strategy.experimental_local_results(brought)]
        ),
        args=(lambda: own,),
    )


def copies_of(variable: Any) -> list[Any]:
    """What holds a Keras variable's value, on every replica: each may hold another one."""
    return list(getattr(variable._value, "values", (variable._value,)))


def own_copy(variable: Any) -> Any:
    """The variable, or the first copy of one that lives on several replicas."""
    return getattr(variable, "_primary", variable)


def is_our_failure(error: BaseException) -> bool:
    """Whether an operation failed that was made within `observing`."""
    return f"{OUR_SCOPE}/" in str(error)


def count_nonfinite(tensors: list[Any], finite: Any, *, xla: bool) -> Any:
    """Elements that are NaN or infinite; only counted where `finite` does not already say that
    there are none. XLA counts always: a branch would split its fusions, and training round
    otherwise.
    """

    def count() -> Any:
        values = [dense_part(t) for t in tensors]
        found = [tf.reduce_sum(tf.cast(~tf.math.is_finite(v), tf.float32)) for v in values]
        return tf.add_n(found)

    return count() if xla else tf.cond(finite, lambda: tf.zeros(()), count)


def arrival(batch: Any, *, xla: bool) -> tuple[Any, Any] | None:
    """When the tensors of a batch are there: whole seconds (modulo 2**20) and the fraction of the
    clock of the system, each exact enough as float32. None under XLA, which knows no clock.
    """
    leaves = [leaf for leaf in tf.nest.flatten(batch) if is_dense(leaf)]
    if xla or not leaves:
        return None
    with tf.control_dependencies(leaves):
        now = tf.timestamp()
    seconds = tf.floor(now)
    return tf.math.floormod(seconds, 2.0**20), now - seconds


def largest(tensor: Any) -> Any:
    """Largest absolute element, as float32."""
    values = dense_part(tensor)
    return tf.cast(tf.reduce_max(tf.abs(values)), tf.float32)


def unshared(structure: Any) -> Any:
    """The same: nothing is changed in place."""
    return structure
