"""What a witness is, in words for somebody who has never seen its name."""

from __future__ import annotations

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
    "id_max": "largest id fed",
    "id_min": "smallest id fed",
    "input_dim": "rows of the table",
    "out_of_range": "share of ids outside the table",
    "iterations": "the optimizer's own counter",
    "rss": "memory of the process",
    "nonfinite": "NaN and infinite numbers",
    "moved_outside": "moved between two steps",
}


def witness_words(name: str, *, first: bool) -> str:
    """A few words; rules put what was shown or declared first, and what is true second."""
    quantity, _, witness = name.rpartition("/")
    if quantity and witness in BY_WITNESS:
        return BY_WITNESS[witness]
    return "shown or declared" if first else "measured"
