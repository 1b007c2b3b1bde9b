"""Which evidence a run does not carry, and when it would, for people who do not know its names."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache

STEPS = "comes with steps of training"
# By the name of a signal or audit: where it comes from, as docs/evidence.md has it.
COMES = {
    "announced": "comes where callbacks announce what they do",
    "state_reset": "comes where layers keep a state between batches",
    "validation_overlap": "comes with the first validation",
    "val_*": "comes with validation",
    "declared": "comes when training begins",
    "logits": "comes when training ends",
    **dict.fromkeys(
        (
            *("epoch", "weights", "units", "label_counts", "train_eval", "metric_state"),
            *("log_keys", "data_epoch"),
        ),
        "comes with epochs of training",
    ),
    **dict.fromkeys(
        ("gradient/*", "update/*", "weights/*", "optimizer/*", "time/*", "traces/*"),
        STEPS,
    ),
    "table_updates": "comes when an embedding is trained",
    "inputs*/*": "comes where inputs are floating-point numbers",
    "sample_weight*/given_*": "comes where sample weights are given",
    "*/weighted": "comes where sample weights are given",
}


def carries_no(*names: str, kind: str = "") -> str:
    """Says so in one sentence.

    >>> carries_no("val_loss/reported")
    'the run carries no val_loss/reported (comes with validation)'
    """
    text = f"the run carries no {kind}{' with '.join(names)}"
    told = comes_with(*names)
    return f"{text} ({told})" if told else text


@lru_cache(maxsize=4096)  # asked for the same names at each judgement
def comes_with(*names: str) -> str | None:
    """When a run carries the first of these of which that is known."""
    told = (words for name in names for each, words in COMES.items() if fnmatchcase(name, each))
    return next(told, None)
