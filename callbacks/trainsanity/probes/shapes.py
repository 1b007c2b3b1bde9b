"""Shapes that layers declare, and the shapes of the tensors they take and return."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from trainsanity.origin import is_of_keras
from trainsanity.probes.probe import Probe
from trainsanity.recording import Call, Passes


class Shapes(Probe):
    """Makes the audit `shapes` from two passes of different batch size."""

    name = "shapes"
    cost = 0.1

    def on_sample(self) -> None:
        passes = Passes.of(self.run)
        small = passes.shapes_of_half()
        layers: list[dict[str, Any]] = []
        for i, call in _numbered(passes.inference.leaves):
            if call.is_layer and call.outputs:
                layers.extend(_rows(call, small.get((id(call.operation), i), [])))
        self.run.audit("shapes", {"layers": layers})


def _numbered(calls: list[Call]) -> Iterator[tuple[int, Call]]:
    """Calls with their number among those of the same layer."""
    counts: dict[int, int] = {}
    for call in calls:
        number = counts.get(id(call.operation), 0)
        counts[id(call.operation)] = number + 1
        yield number, call


def _rows(call: Call, small: Sequence[tuple[int, ...]]) -> Iterator[dict[str, Any]]:
    declared = declared_outputs(call)
    for index, output in enumerate(call.outputs):
        actual = [int(d) for d in output.shape]
        other = small[index] if index < len(small) else None
        by, shape = declared[index] if index < len(declared) else (None, None)
        yield {
            **_about(call),
            "what": "output",
            "index": index,
            "declared_by": by,
            "declared": shape if shape is not None else [None] * len(actual),
            "actual": actual,
            "inputs_known": _inputs_known(call),
            "gets_other_shapes": _gets_other_shapes(call),
            "seen": 1 if other is None else 2,
            "follows_batch": _follows_batch(actual, other),
        }
    yield from _built(call)


def _about(call: Call) -> dict[str, Any]:
    return {"name": call.name, "class": call.kind, "site": call.site}


def declared_outputs(call: Call) -> list[tuple[str, list[int | None]]]:
    """What the layer says of each of its outputs: by the functional graph, else by its own
    `compute_output_shape`.
    """
    actual = [[int(d) for d in t.shape] for t in call.outputs]
    candidates = [
        [list(t.shape) for t in node.output_tensors]
        for node in call.operation._inbound_nodes
        if len(node.output_tensors) == len(actual)
    ]
    if candidates:
        # A shared layer has a node for each call: what fits one of them is declared.
        best = min(candidates, key=lambda shapes: sum(map(_contradicts, shapes, actual)))
        return [("symbolic tensor", shape) for shape in best]
    return _computed(call)


def _contradicts(declared: list[int | None], actual: list[int]) -> bool:
    return len(declared) != len(actual) or any(
        d is not None and d != a for d, a in zip(declared[1:], actual[1:], strict=True)
    )


def _computed(call: Call) -> list[tuple[str, list[int | None]]]:
    layer = call.operation
    of_user = not is_of_keras(type(layer).compute_output_shape)
    if not of_user or len(call.inputs) != 1:
        return []
    shape = layer.compute_output_shape((None, *call.inputs[0].shape[1:]))
    shapes = [shape] if shape and not isinstance(shape[0], (tuple, list)) else list(shape)
    return [("compute_output_shape", [*s]) for s in shapes]


def _inputs_known(call: Call) -> bool:
    nodes = call.operation._inbound_nodes
    return bool(nodes) and all(
        None not in tensor.shape[1:] for node in nodes for tensor in node.input_tensors
    )


def _gets_other_shapes(call: Call) -> bool:
    """Whether already what goes in has not the shape that the functional graph says."""
    actual = [[int(d) for d in t.shape] for t in call.inputs]
    declared = [
        [list(t.shape) for t in node.input_tensors]
        for node in call.operation._inbound_nodes
        if len(node.input_tensors) == len(actual)
    ]
    return bool(declared) and all(any(map(_contradicts, d, actual)) for d in declared)


def _follows_batch(actual: list[int], other: tuple[int, ...] | None) -> list[int]:
    if other is None or len(other) != len(actual) or other[0] == actual[0]:
        return []
    ratio = actual[0] / int(other[0])
    return [i for i in range(1, len(actual)) if actual[i] == int(other[i]) * ratio != 0]


def _built(call: Call) -> Iterator[dict[str, Any]]:
    """The input shape recorded when the layer was built, where it recorded one."""
    recorded = getattr(call.operation, "_build_shapes_dict", None)
    if not recorded or len(recorded) != 1 or len(call.inputs) != 1:
        return
    shape = next(iter(recorded.values()))
    if shape is not None and (not shape or isinstance(shape[0], (tuple, list, dict))):
        return
    yield {
        **_about(call),
        "what": "input",
        "index": 0,
        "declared_by": "build config",
        "declared": None if shape is None else list(shape),
        "actual": [int(d) for d in call.inputs[0].shape],
        "inputs_known": True,
        "seen": 1,
        "follows_batch": [],
    }
