"""Amazon SageMaker Debugger, the built-in rules for deep learning: Rauschmayr et al., MLSys 2021,
"Amazon SageMaker Debugger: A system for real-time insights into machine learning model training".

Thresholds: the pages of the built-in rules (docs.aws.amazon.com/sagemaker/latest/dg), defaults:
VanishingGradient: mean absolute gradient below 1e-7. ExplodingTensor: NaN or infinity.
LossNotDecreasing: less than 0.1 % lower than 10 steps before. WeightUpdateRatio: updates above 10
or below 1e-8 of the weights. SaturatedActivation and DeadRelu: half of a layer's units. Overfit:
validation loss 0.1 of the training loss above it. We know each kernel's largest gradient instead of
the mean, the ratio over sampled weights of all layers, and units at 0 for every sample; most of
them raise fewer alarms. Overfit is judged at the last epoch alone. The
pages were read for VanishingGradient, WeightUpdateRatio and the steps of LossNotDecreasing; the
other defaults were not read there again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from published.evidence import Evidence


def judge(found: Evidence) -> Iterator[tuple[str, frozenset[str]]]:
    """Symptoms, each with the rules of ours that would be the right diagnosis with it."""
    if found.is_nonfinite or not np.isfinite(found.batch_losses).all():
        yield "ExplodingTensor", frozenset({"nonfinite-propagation"})
    if any(largest < 1e-7 for largest in found.largest_gradients()):
        yield "VanishingGradient", frozenset({"vanishing-gradient", "dead-weights"})
    every_tenth = found.batch_losses[::10]
    if (every_tenth[1:] > every_tenth[:-1] * (1 - 0.001)).any():
        yield "LossNotDecreasing", frozenset({"loss-not-decreasing", "lr-effective-mismatch"})
    if _has_odd_updates(found):
        yield "WeightUpdateRatio", frozenset({"update-ratio", "lr-effective-mismatch"})
    if any(share > 0.5 for share in found.dead_relu_shares()):
        yield "DeadRelu", frozenset({"dead-units", "dead-weights"})
    if any(share > 0.5 for share in found.saturated_shares()):
        yield "SaturatedActivation", frozenset({"saturated-units"})
    train, validation = found.losses, found.validation_losses
    if train.size and validation.size and validation[-1] - train[-1] > 0.1 * abs(train[-1]):
        yield "Overfit", frozenset({"overfitting"})


def _has_odd_updates(found: Evidence) -> bool:
    update, weights = found.series("update/sampled_norm"), found.series("weights/sampled_norm")
    size = min(update.size, weights.size)
    known = weights[:size] > 0
    ratio = update[:size][known] / weights[:size][known]
    return bool(((ratio > 10.0) | (ratio < 1e-8)).any())
