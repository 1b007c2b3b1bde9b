"""TensorFlow's way of the operations that Keras does not offer."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf


def write_row(ring: Any, count: Any, row: Any) -> None:
    """Writes one row of the ring in place and advances the counter; inside the compiled step."""
    variable, counter = ring._value, count._value
    # In place: assigning the whole ring would copy it in every step.
    tf.raw_ops.ResourceScatterUpdate(
        resource=variable.handle,
        indices=tf.math.floormod(counter, variable.shape[0]),
        updates=row,
    )
    counter.assign_add(1)


def read(variable: Any) -> np.ndarray[Any, Any]:
    """The value of a Keras variable on the host."""
    return np.asarray(variable._value.numpy())


def pick(variable: Any, coordinates: np.ndarray[Any, Any], *, xla: bool) -> Any:
    """Elements of a Keras variable; coordinates have shape (k, rank). Does not touch the rest of it."""
    if variable.shape == ():
        return tf.reshape(variable._value.read_value(), [1])
    if xla:  # knows no gather from a resource, and needs none: it fuses the read
        return tf.gather_nd(variable._value.read_value(), coordinates)
    # Reading the whole tensor would hold its buffer and force a copy at the next update.
    return tf.raw_ops.ResourceGatherNd(
        resource=variable._value.handle, indices=coordinates, dtype=variable._value.dtype
    )


def pick_tensor(tensor: Any, coordinates: np.ndarray[Any, Any]) -> Any:
    """Elements of a dense tensor, e.g. a gradient; coordinates have shape (k, rank)."""
    if tensor.shape.rank == 0:
        return tf.reshape(tensor, [1])
    return tf.gather_nd(tensor, coordinates)


def is_sparse(tensor: Any) -> bool:
    """Whether a gradient lists only the rows that were touched."""
    return isinstance(tensor, tf.IndexedSlices)


def square_sum(tensor: Any) -> Any:
    """Sum of squares as float32; of the touched rows for a sparse gradient."""
    values = tensor.values if is_sparse(tensor) else tensor
    return 2.0 * tf.nn.l2_loss(tf.cast(values, tf.float32))


def end_of_data_errors() -> tuple[type[BaseException], ...]:
    """What the train function raises to say that the data has ended."""
    return (StopIteration, tf.errors.OutOfRangeError)


def device_memory() -> float | None:
    """Bytes in use on the first GPU, or None where there is none."""
    if not tf.config.list_logical_devices("GPU"):
        return None
    return float(tf.config.experimental.get_memory_info("GPU:0")["current"])


def devices() -> list[str]:
    return [f"{d.device_type}:{d.name}" for d in tf.config.list_logical_devices()]


def version() -> str:
    return str(tf.__version__)
