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
    kernels = [row for epoch in found.kernels() for row in epoch]
    gradients = [
        row["gradient_largest"] for row in kernels if row.get("gradient_largest") is not None
    ]
    if any(largest < 1e-7 for largest in gradients):
        yield "VanishingGradient", frozenset({"vanishing-gradient", "dead-weights"})
    every_tenth = found.batch_losses[::10]
    if (every_tenth[1:] > every_tenth[:-1] * (1 - 0.001)).any():
        yield "LossNotDecreasing", frozenset({"loss-not-decreasing", "lr-effective-mismatch"})
    if _has_odd_updates(found):
        yield "WeightUpdateRatio", frozenset({"update-ratio", "lr-effective-mismatch"})
    layers = [row for row in found.units() if row.get("units")]
    if any(r["activation"] == "relu" and r["dead"] / r["units"] > 0.5 for r in layers):
        yield "DeadRelu", frozenset({"dead-units", "dead-weights"})
    bounded = [r for r in layers if r["activation"] in ("sigmoid", "tanh")]
    if any((r.get("saturated") or 0.0) > 0.5 for r in bounded):
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
