"""UMLAUT: Schoop, Huang and Hartmann, CHI 2021, "UMLAUT: Debugging Deep Learning Programs using
Program Structure and Model Behavior".

Thresholds: `umlaut/heuristics.py` of github.com/BerkeleyHCI/umlaut (commit c7c6f00): inputs outside
-1..1; inputs that are not floating-point; NaN loss; neither softmax at the end nor `from_logits`;
validation loss that rises while the training loss does not; validation accuracy above 0.95, or
above the training accuracy. We look at inputs behind normalization layers, and accept softmax as an
activation; both raise fewer alarms.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from published.evidence import Evidence


def judge(found: Evidence) -> Iterator[tuple[str, frozenset[str]]]:
    """Symptoms, each with the rules of ours that would be the right diagnosis with it."""
    bounds = found.input_range()
    if bounds and (bounds[0] < -1 or bounds[1] > 1):
        yield "input not normalized", frozenset({"input-not-normalized"})
    if found.has_integer_inputs:
        yield "input not floating", frozenset({"dtype-policy-mismatch"})
    if np.isnan(found.batch_losses).any():
        yield "NaN in loss", frozenset({"nonfinite-propagation"})
    ends = [(o.get("activation"), o.get("from_logits")) for o in found.outputs]
    if any(activation != "softmax" and not logits for activation, logits in ends):
        yield "no softmax before the loss", frozenset({"output-range-mismatch"})
    train, validation = found.losses, found.validation_losses
    size = min(train.size, validation.size)
    worse = (np.diff(validation[:size]) > 0) & (np.diff(train[:size]) <= 0)
    if worse.any():
        yield "overfitting", frozenset({"overfitting"})
    size = min(found.accuracies.size, found.validation_accuracies.size)
    own, other = found.accuracies[:size], found.validation_accuracies[:size]
    if ((other > 0.95) | (other > own)).any():
        yield "validation accuracy very high", frozenset({"validation-overlap"})
