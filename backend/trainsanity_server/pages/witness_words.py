"""What a witness is, in words for somebody who has never seen its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainsanity_server.pages.formats import figures

IN_ALL = "_in_all"  # ends the names of signals that are of all processes that train together
# By the last part of a signal's name.
BY_WITNESS = {
    "reported": "what Keras shows",
    "recomputed": "recomputed from labels and outputs",
    "batch": "this batch alone, counted as Keras counts",
    "unmasked": "over real positions only",
    "all": "over all positions, padding too",
    "weighted": "weighted by the sample weights given",
    "differentiated": "what is differentiated",
    "added": "added losses and regularizers",
    "input_coverage": "share of positions real in the input",
    "loss_coverage": "share of positions the loss counts",
    "metric_coverage": "share of positions the metrics count",
    "padding_credit": "share of what the loss counts that is padding",
    "declared": "what the optimizer shows",
    "applied": "used inside the compiled step",
    "effective": "inferred from how the weights moved",
    "id_max": "largest id looked up",
    "id_min": "smallest id looked up",
    "input_dim": "rows of the table",
    "out_of_range": "share of ids outside the table",
    "iterations": "the optimizer's own counter",
    "rss": "memory of the process",
    "nonfinite": "NaN and infinite numbers",
    "moved_outside": "moved between two steps",
}
# How a sentence begins with the first witness, and how it goes on with the second.
BEGINNINGS = {
    "reported": "Keras reports {quantity} {value}",
    "declared": "The optimizer shows a {quantity} of {value}",
    "applied": "The compiled step uses a {quantity} of {value}",
    "loss_coverage": "The loss counts {value} of the positions",
    "metric_coverage": "The metrics count {value} of the positions",
    "id_max": "Ids up to {value} are looked up",
}
ENDINGS = {
    "unmasked": "over real positions it is {value}",
    "recomputed": "recomputed from labels and outputs it is {value}",
    "weighted": "weighted by the sample weights it is {value}",
    "applied": "the compiled step uses {value}",
    "effective": "the weights move as if it were {value}",
    "input_coverage": "{value} of them are real",
    "input_dim": "the table has {value} rows",
}


def witness_words(name: str) -> str:
    """A few words for a signal; empty for whatever else testifies, which is named in words."""
    quantity, _, witness = name.rpartition("/")
    if not quantity:
        return ""
    words = BY_WITNESS.get(witness.removesuffix(IN_ALL), "")
    return f"{words}, of all processes".lstrip(", ") if witness.endswith(IN_ALL) else words


def sentence(witnesses: Sequence[Mapping[str, Any]]) -> str:
    """`Keras reports accuracy 0.56; over real positions it is 0.22`, or nothing without words."""
    if len(witnesses) < 2:
        return ""
    quantity, _, shown = str(witnesses[0]["name"]).rpartition("/")
    true = str(witnesses[1]["name"]).rpartition("/")[2]
    if shown not in BEGINNINGS or true not in ENDINGS:
        return ""
    first, second = figures([witness["value"] for witness in witnesses[:2]])
    beginning = BEGINNINGS[shown].format(quantity=quantity.replace("_", " "), value=first)
    return f"{beginning}; {ENDINGS[true].format(value=second)}"
