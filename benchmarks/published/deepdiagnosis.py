"""DeepDiagnosis: Wardat, Cruz, Le and Rajan, ICSE 2022, "DeepDiagnosis: Automatically Diagnosing
Faults and Recommending Actionable Fixes in Deep Learning Programs".

Thresholds: `callback/callbacks.py` of github.com/DeepDiagnosis/ICSE2022: mean absolute gradient
below 1e-7; 0.7 of a relu's outputs 0; half of the inputs of a sigmoid or tanh beyond ±5; variance
of weights below 1e-5 or above 10; NaN or infinite numbers; a linear or relu output under a
crossentropy. We know the largest gradient instead of the mean, units that are 0 for every sample
instead of single zeros, and outputs within 1 % of an activation's end instead of inputs beyond ±5;
most of them raise
fewer alarms.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from published.evidence import Evidence


def judge(found: Evidence) -> Iterator[tuple[str, frozenset[str]]]:
    """Symptoms, each with the rules of ours that would be the right diagnosis with it."""
    if found.is_nonfinite or not np.isfinite(found.batch_losses).all():
        yield "numerical error", frozenset({"nonfinite-propagation"})
    if any(largest < 1e-7 for largest in found.largest_gradients()):
        yield "vanishing gradient", frozenset({"vanishing-gradient", "dead-weights"})
    if any(share >= 0.7 for share in found.dead_relu_shares()):
        yield "dead node", frozenset({"dead-units", "dead-weights"})
    if any(share > 0.5 for share in found.saturated_shares()):
        yield "saturated activation", frozenset({"saturated-units"})
    kernels = [row for epoch in found.kernels() for row in epoch]
    known = [r for r in kernels if r.get("norm") is not None and (r.get("size") or 0) > 1]
    variances = [row["norm"] ** 2 / row["size"] for row in known]
    if any(variance < 1e-5 or variance > 10 for variance in variances):
        yield "tensor variance", frozenset({"update-ratio"})
    if any(_is_out_of_range(output) for output in found.outputs):
        yield "out of range", frozenset({"output-range-mismatch"})


def _is_out_of_range(output: dict[str, object]) -> bool:
    return output.get("activation") in ("linear", "relu") and str(output.get("loss")).endswith(
        "categorical_crossentropy"
    )
