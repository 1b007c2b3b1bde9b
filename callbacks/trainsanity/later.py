"""Steps that are looked at later, many at once, from copies of what they were given and have made.

A step that runs as Python code goes through all of Keras; any line of ours in between takes several
times as long as when it runs again and again. Copying a few small tensors takes less. What is
copied cannot change, as a buffer that a generator fills anew for every batch, and keeps no graph of
a gradient alive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from trainsanity.backends.backend import Backend
from trainsanity.masking import mask_of, put_mask
from trainsanity.probes.probe import Columns, LayerCall, Step
from trainsanity.recording import holds_numbers

# Of a step. To look at one between two steps of Keras takes 0.5 ms and more, a hundred at once 0.06
# each; as many bytes as this are copied in 0.05 ms, four times as many in 0.3 (2 cores). What waits
# in all is bounded by `HostRing`.
MOST_BYTES = 2**18
FEW = 4  # steps that are looked at one by one

Change = Callable[[Any], Any]


def keep(step: Step, backend: Backend) -> int | None:
    """Puts copies in place of all tensors of a step, and numbers in place of scalars. Called within
    `observing`, at every step: for most models one loop over a few tensors.

    Returns:
        Bytes that the copies take, or None where there is too much to copy, or a number cannot be
        had; nothing has changed then.
    """
    asked = {id(asked_with): asked_with for _, asked_with in step.waiting}
    parts = [*step.given]
    for asked_with in asked.values():
        parts += asked_with
    parts += step.losses
    parts += step.metric_values.values()
    parts += [call.inputs for call in step.calls]
    copies = _Copies(backend)
    made = copies.made
    for part in parts:
        if part is not None and id(part) not in made:
            copies.add(part)
    loss = _number(backend, step.loss)
    added = [_number(backend, value) for value in step.added]
    is_whole = (loss is None) == (step.loss is None) and None not in added
    if copies.size > MOST_BYTES or not is_whole:
        return None
    for asked_with in asked.values():  # which `waiting` has too
        asked_with[:] = [made.get(id(part)) for part in asked_with]
    step.asked_with = []
    x, y, weights = [made.get(id(part)) for part in step.given]
    step.given = (x, y, weights)
    step.losses = [made.get(id(values)) for values in step.losses]
    step.metric_values = {key: made.get(id(x)) for key, x in step.metric_values.items()}
    step.calls = [LayerCall(call.layer, made.get(id(call.inputs))) for call in step.calls]
    step.loss, step.added = loss, added
    step.results = {key: _number(backend, scalar) for key, scalar in step.results.items()}
    step.copies = copies.tensors
    return copies.size


def _number(backend: Backend, scalar: Any) -> Any:
    """None for what is none."""
    found = backend.number(scalar)
    return found if isinstance(found, (int, float)) else None


def _changed(step: Step, change: Change, number: Change) -> dict[str, Any]:
    """All that probes see of a step, with other tensors."""
    asked: dict[int, list[Any]] = {}
    for _, asked_with in step.waiting:
        if id(asked_with) not in asked:
            asked[id(asked_with)] = [change(part) for part in asked_with]
    return {
        "waiting": [(hook, asked[id(asked_with)]) for hook, asked_with in step.waiting],
        "asked_with": [],
        "given": tuple([change(part) for part in step.given]),
        "calls": [LayerCall(call.layer, change(call.inputs)) for call in step.calls],
        "loss": number(step.loss),
        "added": [number(value) for value in step.added],
        "results": {key: number(value) for key, value in step.results.items()},
        "losses": [change(values) for values in step.losses],
        "metric_values": {key: change(values) for key, values in step.metric_values.items()},
    }


def _numbers(step: Step) -> list[float]:
    """In the order in which `_changed` goes through them."""
    scalars = (step.loss, *step.added, *step.results.values())
    return [float(scalar) for scalar in scalars if scalar is not None]


def _with(step: Step, parts: Sequence[Any]) -> Step:
    """The step with these in place of its copies and numbers."""
    by_copy = {id(copy): part for copy, part in zip(step.copies, parts, strict=False)}
    numbers = iter(parts[len(step.copies) :])
    for copy in step.copies:
        mask = mask_of(copy)
        if mask is not None:
            put_mask(by_copy[id(copy)], by_copy[id(mask)])

    def change(structure: Any) -> Any:
        return keras.tree.map_structure(lambda leaf: by_copy.get(id(leaf)), structure)

    changed = _changed(step, change, lambda scalar: None if scalar is None else next(numbers))
    return replace(step, **changed, columns={}, shared={})


class _Copies:
    """Attributes:
    size: bytes of all tensors; beyond MOST_BYTES none is copied any more.
    made: id of a tensor, or of a structure that was added -> its copy.
    tensors: all copies, each once.
    """

    def __init__(self, backend: Backend) -> None:
        self.size = 0
        self.made: dict[int, Any] = {}
        self.tensors: list[Any] = []
        self._backend = backend

    def add(self, structure: Any) -> None:
        """Copies it, with None in place of what is no tensor of numbers."""
        if self._backend.is_dense(structure):
            self._of_tensor(structure, self._backend.unshared)
        elif isinstance(structure, np.ndarray):
            if holds_numbers(structure):
                self._of_tensor(structure, np.array)
        elif structure is not None:
            leaves = keras.tree.flatten(structure)
            is_leaf = len(leaves) == 1 and leaves[0] is structure
            if not is_leaf:
                self.made[id(structure)] = keras.tree.map_structure(self._of, structure)

    def _of(self, leaf: Any) -> Any:
        if leaf is not None and id(leaf) not in self.made:
            self.add(leaf)
        return self.made.get(id(leaf))

    def _of_tensor(self, tensor: Any, copied: Change) -> None:
        self.size += tensor.nbytes
        if self.size > MOST_BYTES:
            return
        self.made[id(tensor)] = copy = copied(tensor)
        self.tensors.append(copy)
        mask = mask_of(tensor)
        if mask is not None:
            put_mask(copy, self._of(mask))


def alike(steps: Sequence[Step]) -> list[list[int]]:
    """Which steps differ from each other in the values of their tensors only."""
    by_kind: dict[Any, list[int]] = {}
    for i, step in enumerate(steps):
        by_kind.setdefault(_kind(step), []).append(i)
    return [*by_kind.values()]


def _kind(step: Step) -> tuple[Any, ...]:
    tensors = tuple([(t.shape, t.dtype) for t in step.copies])  # arrays have dtypes of their own
    hooks = tuple([hook for hook, _ in step.waiting])
    known = tuple([(key, value is None) for key, value in step.results.items()])
    counts = (len(step.added), len(step.losses), len(step.calls))
    return (step.training, step.loss is None, tensors, hooks, known, counts)


def columns_of(
    steps: Sequence[Step], look: Callable[[Step], Columns], backend: Backend
) -> dict[str, Any]:
    """What `look` finds in each of some steps that are alike, by looking once at all of them: by
    name an array with a value for each, or a number for all.

    Args:
        look: must ask for no value of a tensor.
    """
    first = steps[0]
    values = zip(*([*step.copies, *_numbers(step)] for step in steps), strict=True)
    fixed: dict[str, Any] = {}
    names: list[str] = []

    def look_at_all(*parts: Any) -> tuple[Any, ...]:
        found = look(_with(first, parts))
        measured = {name: value for name, value in found.items() if backend.is_dense(value)}
        fixed.update({name: found[name] for name in found if name not in measured})
        names.extend(measured)
        return tuple(measured.values())

    columns = backend.for_each(look_at_all, list(values))
    return {**fixed, **dict(zip(names, columns, strict=True))}
