"""What each backend offers, with the answer of those that have nothing to do."""

from __future__ import annotations

import functools
import itertools
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
from keras import ops
from keras.backend import is_float_dtype, standardize_dtype

from trainsanity.host_ring import HostRing

ONE_PROGRAM = "several processes run one program together, which must be the same in all of them"


def side_by_side(cells: Mapping[int, Any], rest: float) -> list[Any]:
    """Cells in the order of their places, up to the last."""
    return [cells.get(i, rest) for i in range(max(cells, default=-1) + 1)]


@dataclass(frozen=True)
class Element:
    """A cell that is an element of a vector, a tensor of shape (elements,)."""

    vector: Any
    place: int


def _divide_no_nan(part: Any, whole: Any) -> Any:
    return np.divide(part, whole, out=np.zeros(np.shape(part)), where=np.asarray(whole != 0))


# Of `keras.ops`, what columns are made with on the host.
HOST_OPS = SimpleNamespace(
    divide_no_nan=_divide_no_nan, maximum=np.maximum, sqrt=np.sqrt, where=np.where
)


def identity(ops: Any, number: Any) -> Any:
    return number


def sum_of(ops: Any, *numbers: Any) -> Any:
    return functools.reduce(operator.add, numbers)


def norm_of(ops: Any, *squares: Any) -> Any:
    """Of sums of squares."""
    return ops.sqrt(sum_of(ops, *squares))


def ratio(ops: Any, part: Any, whole: Any) -> Any:
    """0 where the whole is 0."""
    if isinstance(whole, float):
        return part / whole if whole else 0.0 * part
    return ops.divide_no_nan(part, whole)


@dataclass(frozen=True)
class OnHost:
    """A column that the host makes of several cells, when the row is read.

    Attributes:
        make: of `HOST_OPS` and an array for each cell; the same function in every trace.
        cells: scalars.
    """

    make: Callable[..., Any]
    cells: Sequence[Any]

    @classmethod
    def of(cls, make: Callable[..., Any], cells: Sequence[Any]) -> Any:
        """Where there is nothing to make, the only cell."""
        return cells[0] if make is identity else cls(make, cells)


@dataclass(frozen=True)
class Sizes:
    """Of some gradients.

    Attributes:
        squares: scalars that add up to the sum of all squares.
        nonfinite: scalars that add up to how many elements are NaN or infinite.
        largest: the largest absolute element of each; None for those that were not asked for.
    """

    squares: list[Any]
    nonfinite: list[Any]
    largest: list[Any | None]


class Store(Protocol):
    """A key-value store of several processes. Every method may wait for the network, and `get` for
    a key that is not there.
    """

    def check(self, keys: list[str]) -> bool: ...
    def get(self, key: str) -> bytes: ...
    def set(self, key: str, value: str | bytes) -> None: ...
    def delete_key(self, key: str) -> bool: ...


@dataclass(frozen=True)
class MeetingPlace:
    """Where processes that train together can leave something for one another.

    Attributes:
        open: makes a store for one thread alone, in that thread. Trouble with it is a
            RuntimeError.
        most_bytes: that one process may write there during a run.
    """

    open: Callable[[], Store]
    most_bytes: float


class Backend(ABC):
    """One backend's way of the operations that Keras does not offer.

    Attributes:
        TAPE_DEPTH: rows of a tape, at least.
        CELLS: that a column may need, on average; more where the host makes it of several.
        READABLE_IN_EPOCH: variables hold their values between steps.
        HAS_GRADIENT_BOUNDARY: a value made inside the gradient leaves it only through a variable.
        COMPILES_OPERATIONS: each operation of an eager call, for each shape that it gets.
        TRACES_AGAIN: a trace in which variables are made is thrown away, and the next one is run.
    """

    TAPE_DEPTH = 1024
    CELLS = 1
    READABLE_IN_EPOCH = True
    HAS_GRADIENT_BOUNDARY = False
    TRACES_AGAIN = False
    COMPILES_OPERATIONS = False

    # The tape and the step it is written in

    def leaves_out(self) -> bool:
        """Whether a compiled step can leave operations out at little cost, and be timed."""
        return False

    def when(self, condition: Any, compute: Callable[[], Any], rest: float) -> Any:
        """What `compute` returns where the condition holds, a float32 vector of known length; else
        `rest` in its place. Only where `leaves_out`.
        """
        raise NotImplementedError

    def choosing(
        self, model: Any, run: Callable[[Any, tuple[Any, ...]], Any]
    ) -> Callable[..., Any] | None:
        """Keras' method that makes functions of steps (`_make_function`), such that what it makes
        of the model's `train_step` runs its compiled program by `run(program, args)`. None where no
        other program can be made of one.
        """
        return None

    def in_turn(self, value: Any, otherwise: Any) -> Any:
        """While a step is traced: the value, and in a program that is made by `leaving_out` the
        other one, of the same shape and type.
        """
        return value

    def leaving_out(self, program: Any, args: tuple[Any, ...]) -> Callable[..., Any] | None:
        """A compiled training step compiled once more, without what has its turn only at some
        steps. None where that cannot be done, or would not run as the program does.

        Args:
            args: of an execution that is about to come, of a kind that was run before: then the
                step is not traced again.
        """
        return None

    def direct(self, program: Any, args: tuple[Any, ...]) -> Callable[..., Any] | None:
        """A compiled training step, called past what only looks at its arguments, for arguments of
        the kind that it was run with before. None where that saves nothing, or cannot be done.
        """
        return None

    def kind_of(self, args: tuple[Any, ...]) -> Any:
        """What a program is compiled for, of the arguments of an execution."""
        return None

    def rarely(self, kept: Sequence[Any]) -> AbstractContextManager[None]:
        """Within, while a step is traced, nothing is written to variables in a program that is
        made by `leaving_out`.

        Args:
            kept: the variables.
        """
        return nullcontext()

    def wait_for(self, args: tuple[Any, ...], variable: Any) -> None:
        """Until the step before an execution with these arguments has run.

        Args:
            variable: one that every step writes to.
        """
        self.read(variable)

    @abstractmethod
    def row(self, cells: Mapping[int, Any], width: int, rest: float) -> Any:
        """Single numbers of any type by their places, `rest` elsewhere, as a float32 tensor of
        shape (width,). Where `leaves_out`, some may be of type `Element`.
        """

    def not_differentiated(self, row: Any) -> Any:
        """A row that is made where there is a gradient, as a constant."""
        return row

    @abstractmethod
    def write_row(self, ring: Any, count: Any, row: Any) -> None:
        """Writes one row of the ring and advances the counter; inside the step."""

    def in_memory(self, ring: Any, count: Any, rest: float) -> HostRing | None:
        """The way to write a tape whose step runs as Python code beside it in memory; None where
        `row` and `write_row` do it.
        """
        return None

    def copy_tape(self, tape: Any, model: Any, result: Any) -> tuple[Any, Any] | None:
        """Counter and ring out of the new state; None where the tape can be read at any time."""
        return None

    def is_there(self, copy: tuple[Any, Any]) -> bool:
        """Whether a copy of the tape can be read without waiting for the step that it is made of;
        False also where that is not known.
        """
        return False

    def tape_before(self, tape: Any, model: Any, args: tuple[Any, ...]) -> tuple[int, Any] | None:
        """Counter and ring out of the state that an execution is about to get, on the host; None
        where the tape can be read at any time.
        """
        return None

    def observing(self) -> AbstractContextManager[Any]:
        """Around all that is measured inside the step."""
        return nullcontext()

    def outside_trace(self) -> AbstractContextManager[Any]:
        """Within, variables may be made although a step is being traced."""
        return nullcontext()

    def own_traces(self) -> AbstractContextManager[None]:
        """Within, functions may be traced and compiled without counting as the user's, and without
        being kept for good.
        """
        return nullcontext()

    @abstractmethod
    def is_traced_step(self, model: Any) -> bool:
        """Whether Python sees the steps of this model only while they are compiled."""

    def runs_at_once(self) -> bool:
        """Whether somebody has told the backend to run each operation at once where a step would be
        traced.
        """
        return False

    def is_traced(self, tensor: Any) -> bool:
        """Whether a tensor stands for a value inside a graph that is being made."""
        return False

    def why_untappable(self, model: Any) -> str | None:
        """Why no tap can go into the step of this model, or None."""
        return None

    def follows_code(self, model: Any) -> bool:
        """Whether a compiler follows every line of Python that a step runs, ours among them."""
        return False

    def uncompiled(self, model: Any) -> AbstractContextManager[None]:
        """Within, what Keras makes for the model is not compiled where `follows_code`: that takes
        longer than all that an audit would run it for, and counts towards how often the compiler
        compiles anew the code that the user's own step is made of.
        """
        return nullcontext()

    def once(self, model: Any) -> AbstractContextManager[None]:
        """Within, what Keras makes for the model is run once, in the way that takes least time."""
        return self.uncompiled(model)

    def is_our_failure(self, error: BaseException) -> bool:
        """Whether an operation failed that was made within `observing`; never where taps run as
        they are called, or where a step that failed has lost its state.
        """
        return False

    def watched_reads(self, read: dict[int, Any]) -> AbstractContextManager[None]:
        """Within, variables of the backend's own that are read are noted too, where they are
        trainable.
        """
        return nullcontext()

    # The data

    def peek(self, batches: Any) -> tuple[Any, Any] | None:
        """The next batch and what still gives it; None where there is none to be seen."""
        for batch in batches:
            return batch, itertools.chain([batch], batches)
        return None

    def catch_sample(self, run: Any, batch: Any) -> None:
        """Inside the graph: keeps the first rows of the first batch, for data that `peek` cannot
        see.
        """
        return

    def around_making(self, model: Any, look: Callable[[Any], None]) -> Callable[..., Any] | None:
        """In place of the method that makes the functions of a model whose steps XLA compiles:
        calls `look` with the batch of a training step, in the graph around what is compiled. None
        where there is no such graph, or this Keras gives no way into it.
        """
        return None

    def caught_sample(self, run: Any) -> Any | None:
        """The rows that `catch_sample` has kept, as arrays, in the structure of the data."""
        return None

    def arrival(self, batch: Any, *, xla: bool) -> tuple[Any, Any] | None:
        """When the tensors of a batch are there: whole seconds (modulo 2**20) and the fraction of
        the clock of the system, each exact enough as float32. None where Keras fetches the batch on
        the host before the step, or the step knows no clock.
        """
        return None

    def end_of_data_errors(self) -> tuple[type[BaseException], ...]:
        """What the train function raises to say that the data has ended."""
        return (StopIteration,)

    def forward_errors(self) -> tuple[type[Exception], ...]:
        """What an eager call may raise besides Python's own errors."""
        return ()

    # Variables

    @abstractmethod
    def read(self, variable: Any) -> np.ndarray[Any, Any]:
        """The value of a Keras variable on the host."""

    def read_in_step(self, variable: Any, model: Any, state: Any) -> np.ndarray[Any, Any]:
        """The value of a Keras variable right before a step."""
        return self.read(variable)

    def zeros(self, shape: tuple[int, ...], dtype: str | None = None) -> Any:
        """For a variable to begin with; an initializer, as Keras calls them."""
        return np.zeros(shape, dtype)

    def made_whole(self, model: Any, args: tuple[Any, ...]) -> AbstractContextManager[bool]:
        """Between two executions of the train function: within, variables that are empty in an
        epoch hold what the next execution gets. Gives whether they do.
        """
        return nullcontext(True)

    def state_of(self, result: Any) -> Any:
        """The state that an execution gives back, which the next one gets as the very same object
        unless somebody has looked at or written to variables in between. None where variables hold
        it themselves.
        """
        return None

    def assigned(
        self, model: Any, args: tuple[Any, ...], values: Sequence[tuple[Any, Any]]
    ) -> tuple[Any, ...]:
        """The arguments of an execution with other values of variables of the model's metrics.

        Args:
            values: variables, and arrays of their shapes and types.
        """
        return args

    def keep_state(self, model: Any, args: tuple[Any, ...], result: Any = None) -> None:
        """An error leaves an execution with these arguments, or what we do around it: sees to it
        that Keras finds what it puts back into the variables.
        """
        return None

    def part(self, model: Any) -> None:
        """Before the audits of the end: gives variables that share their memory memory of their
        own, where what we run may consume one for the other.
        """
        return None

    @abstractmethod
    def pick(self, variable: Any, coordinates: np.ndarray[Any, Any]) -> Any:
        """Elements of a Keras variable; coordinates have shape (k, rank)."""

    @abstractmethod
    def pick_value(self, variable: Any, coordinates: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Elements of a Keras variable on the host, between epochs."""

    # Tensors

    @abstractmethod
    def pick_tensor(self, tensor: Any, coordinates: np.ndarray[Any, Any]) -> Any:
        """Elements of a dense tensor, e.g. a gradient; coordinates have shape (k, rank)."""

    def pick_gradient(self, gradient: Any, coordinates: np.ndarray[Any, Any]) -> Any:
        """As `pick_tensor`, and so that a large gradient need not be kept for what is done with the
        elements.
        """
        return self.pick_tensor(gradient, coordinates)

    def joined(self, vectors: list[Any]) -> Any:
        """Some short float32 vectors one behind the other."""
        return ops.concatenate(vectors)

    @abstractmethod
    def is_dense(self, tensor: Any) -> bool:
        """Whether this is an ordinary tensor, not None nor a list of touched rows."""

    @abstractmethod
    def is_sparse(self, tensor: Any) -> bool:
        """Whether a gradient lists only the rows that were touched."""

    @abstractmethod
    def dense_part(self, tensor: Any) -> Any:
        """The tensor, or the touched rows of a sparse gradient."""

    def total(self, tensor: Any) -> Any:
        """A column of the sum of all elements; a plain number where the step runs on the host as it
        is called, as that costs less than a tensor.
        """
        return ops.sum(ops.cast(tensor, "float32"))

    def for_each(
        self, function: Callable[..., tuple[Any, ...]], arguments: list[Sequence[Any]]
    ) -> list[np.ndarray[Any, Any]]:
        """The scalars that `function` returns for each of the arguments' elements, of one shape, by
        one call for all of them. Only where `in_memory`.

        Args:
            arguments: for each parameter its n values: tensors, or numbers.

        Returns:
            For each scalar its values, float64 of shape (n,).
        """
        raise NotImplementedError

    def number(self, scalar: Any) -> Any:
        """A plain number where the step runs on the host; anything but a scalar as it is."""
        return scalar

    def nonfinite(self, tensors: list[Any]) -> Any:
        """How many elements are NaN or infinite; integers are always finite."""
        floats = [t for t in tensors if is_float_dtype(standardize_dtype(t.dtype))]
        bad = [ops.logical_not(ops.isfinite(t)) for t in floats]
        return sum((ops.sum(ops.cast(flags, "float32")) for flags in bad), 0.0)

    def finite(self, tensor: Any) -> Any:
        """The tensor with 1 in place of NaN and infinity."""
        return ops.where(ops.isfinite(tensor), tensor, 1.0)

    def constant(self, array: np.ndarray[Any, Any]) -> Any:
        """A tensor of an array that is never changed."""
        return ops.convert_to_tensor(array)

    def rows_added_up(self, tensor: Any) -> Any:
        """The tensor; of a sparse gradient, which may list a row more than once, the sums of each
        touched row, (n, ...), with zeros behind them.
        """
        return self.dense_part(tensor)

    @abstractmethod
    def square_sums(self, tensors: list[Any]) -> list[Any]:
        """Sum of squares of each, as float32; of the touched rows for a sparse gradient."""

    @abstractmethod
    def largest(self, tensors: list[Any]) -> list[Any]:
        """Largest absolute element of each, as float32."""

    @abstractmethod
    def sizes(self, gradients: list[Any], which: list[bool], *, xla: bool) -> Sizes:
        """Sums of squares and counts of what is not finite, of all gradients together, and the
        largest elements of some.

        Args:
            which: those whose largest elements are wanted.
        """

    def extremes(self, tensor: Any) -> tuple[Any, Any]:
        """The smallest and the largest element."""
        return ops.min(tensor), ops.max(tensor)

    def moments(self, tensor: Any) -> tuple[Any, Any]:
        """Mean and standard deviation of a float32 tensor."""
        mean = ops.mean(tensor)
        return mean, ops.sqrt(ops.mean(ops.square(tensor - mean)))

    def shares(self, parts: list[Any], wholes: list[Any]) -> list[Any]:
        """How much of each of some sets is in a part of it; 0 for an empty one. Sets of positions,
        booleans of one shape.
        """
        sets = ops.cast(ops.stack([*parts, *wholes]), "float32")
        counts = ops.sum(sets, axis=tuple(range(1, len(sets.shape))))
        found = ops.divide_no_nan(counts[: len(parts)], counts[len(parts) :])
        return list(ops.unstack(found, len(parts)))

    def share(self, flags: Any) -> Any:
        """How many of some booleans are true, as a share of all."""
        return ops.mean(ops.cast(flags, "float32"))

    def sums(self, vectors: list[Any]) -> list[Any]:
        """The sum over each of some float32 vectors of one length."""
        return self.sums_and_largest(vectors, [])[0]

    def vector(self, scalars: Sequence[Any]) -> Any:
        """Scalars of any type as one float32 tensor of shape (scalars,)."""
        return ops.stack([ops.reshape(ops.cast(scalar, "float32"), ()) for scalar in scalars])

    def column(self, make: Callable[..., Any], cells: Sequence[Any]) -> Any:
        """A column that `make` makes of scalars; by the host, where it costs a step less.

        Args:
            make: of `keras.ops`, or `HOST_OPS`, and the cells; a function of a module.
            cells: scalars, or columns that were not made yet.
        """
        return make(ops, *cells)

    def columns_made(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        """The columns of a row as scalars, or `OnHost`: what `extremes`, `moments`, `nonfinite`,
        `share`, `shares`, `sums` and `total` have given may wait for one another until then.
        """
        return columns

    def on_host(self, tensor: Any) -> np.ndarray[Any, Any] | None:
        """Its values in float32, not to be changed, where they are at hand at no cost."""
        return None

    def sums_and_largest(self, sums: list[Any], largest: list[Any]) -> tuple[list[Any], list[Any]]:
        """The sum over each of some vectors, and the largest element of each of others; float32,
        all of one length.
        """
        if len(sums) > 3:  # fewer operations
            found = list(ops.unstack(ops.sum(ops.stack(sums), axis=1), len(sums)))
        else:
            found = [ops.sum(vector) for vector in sums]
        return found, [ops.max(vector) for vector in largest]

    def trace_scope(self) -> Any:
        """What tells apart the traces that code may run in; equal in the same one. None: there are
        none.
        """
        return None

    def behind_barrier(self, tensors: list[Any]) -> list[Any]:
        """The same values, of which a compiler cannot make the code that computes them anew.

        Without it XLA may fuse a value that is also observed in another way, and round it
        otherwise.
        """
        return tensors

    def gradients_to_see(self, gradients: list[Any]) -> list[Any]:
        """The gradients of a step that XLA compiles, so that looking at them does not change how
        they, and what is done with them, are compiled.
        """
        return self.behind_barrier(gradients)

    def copies(self, tensors: list[Any], *, xla: bool) -> list[Any]:
        """The same values as tensors of their own, whose use does not change how others are
        compiled.
        """
        return tensors

    def with_logits(self, copy: Any, tensor: Any) -> Any:
        """A copy of probabilities from which Keras' losses compute as they do from the tensor."""
        return copy

    def unshared(self, structure: Any) -> Any:
        """The same values, out of reach of what Keras does in place."""
        return structure

    @abstractmethod
    def gradient(
        self, function: Callable[[], Any], variables: list[Any], *, compiled: bool
    ) -> tuple[Any, list[Any]]:
        """What `function()` returns, and its gradient by each variable; None where it has none."""

    def for_its_shapes(self, function: Callable[[Any], Any], x: Any, model: Any) -> None:
        """Calls a function for the shapes that it meets on its way, not for values."""
        function(x)

    def of_values(
        self, function: Callable[[], Any], variables: list[Any], *, compiled: bool
    ) -> Callable[[list[np.ndarray[Any, Any]]], Any]:
        """`function` by the values of variables, which may keep those that they are given last.

        Args:
            compiled: whether `function` can be compiled, where that saves time.
        """

        def with_values(values: list[np.ndarray[Any, Any]]) -> Any:
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
            return function()

        return with_values

    def gradients_by_row(
        self, function: Callable[[], Any], variables: list[Any]
    ) -> list[tuple[Any, Any, Any]]:
        """Variable, row numbers (n,) and gradients (n, ...) where the gradient is a list with a row
        for each use, the same row more than once; none where all gradients are whole tensors.
        """
        return []

    def from_rows(self, indices: Any, values: Any, shape: tuple[int, ...]) -> Any:
        """A gradient as such a list; only where `gradients_by_row` gives some."""
        raise NotImplementedError

    # Random numbers

    def generator_state(self) -> Any:
        """State of the backend's global generators; None where it has none."""
        return None

    def put_back_generator(self, state: Any) -> None:
        """Takes what `generator_state` gave."""
        return

    def beside_keras(self, owner: Any) -> list[Callable[[], Any]]:
        """For state of the backend's own kinds that an object holds and Keras does not know, such
        as buffers: what puts it back to what it is now.
        """
        return []

    # Processes and replicas

    @abstractmethod
    def processes(self, model: Any) -> int:
        """How many processes train one model."""

    def process(self) -> int:
        """The number of this one among them, from 0 on."""
        return 0

    def meeting_place(self) -> MeetingPlace | None:
        """None where there is none that can be used without a wait in training."""
        return None

    def why_not_in_this_process(self, model: Any) -> str | None:
        """Why this one of several processes must be left alone."""
        return None if self.processes(model) == 1 else ONE_PROGRAM

    def replicas(self, model: Any) -> int:
        """Copies of the model in this process that share every batch: one where what is measured
        in a process is of all that it computes.
        """
        return 1

    def with_all_replicas(self, function: Callable[[list[Any]], None], own: Any) -> None:
        """Inside the step of one replica: calls the function once for all, with what each
        brings.
        """
        function([own])

    def copies_of(self, variable: Any) -> list[Any]:
        """What holds a Keras variable's value, on every replica."""
        return [variable]

    # The machine

    @abstractmethod
    def device_memory(self) -> float | None:
        """Bytes in use on the first accelerator, or None where there is none."""

    @abstractmethod
    def devices(self) -> list[str]: ...

    @abstractmethod
    def version(self) -> str: ...
