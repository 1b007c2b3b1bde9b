"""The loss: as reported, as differentiated, recomputed, and over other choices of what counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from keras import ops

from trainsanity.backends.backend import ratio, sum_of
from trainsanity.epoch_mean import VARIANTS, EpochMean, EpochMeans
from trainsanity.masking import mask_of
from trainsanity.origin import is_of_keras
from trainsanity.probes.probe import Columns, OutputEvidence, Step
from trainsanity.probes.weighting import (
    is_reduced,
    product,
    real_positions,
    size_of,
    spread_if_any,
    spread_positions,
)
from trainsanity.tape import TapeRows


@dataclass(frozen=True)
class Term:
    """One compiled loss of one output.

    Attributes:
        values: unreduced, float32.
        weight: its factor in the sum of losses.
        sample_weight, mask: of the shape of `values`, or None.
        key: under which Keras shows it; None for the only one.
    """

    output: OutputEvidence
    loss: Any
    values: Any
    weight: float
    sample_weight: Any
    mask: Any
    key: str | None

    @property
    def is_reduced(self) -> bool:
        return is_reduced(self.values, self.output.y_pred)

    def spread(self, positions: Any | None) -> Any | None:
        return None if positions is None else spread_positions(positions, self.values)


class Losses(EpochMeans):
    """Per batch: the compiled loss from unreduced values, under the mask, the weights, and without
    them.
    """

    name = "losses"
    in_all_processes = True

    # inside the step

    def trace_loss(self, step: Step) -> Columns:
        added: Any = 0.0
        if step.added:
            totals = [*map(self.run.backend.total, step.added)]
            added = self.run.backend.column(sum_of, totals)
        columns: dict[str, Any] = {
            "loss/differentiated": self.run.backend.total(step.loss),
            "loss/added": added,
            "loss/nonfinite": self.run.backend.nonfinite([step.loss]),
        }
        terms = _terms(step, self._keys()) if self._are_known(step) else []
        # The weights of an output whose loss is one number: all that they multiply.
        columns |= {
            f"{term.output.quantity('sample_weight')}/loss_values": 1.0
            for term in terms
            if term.is_reduced and term.output.sample_weight is not None
        }
        reason = self._why_not(terms)
        if reason is not None:
            self.run.not_testable["loss/recomputed"] = reason
            return columns
        parts_of: dict[str, list[Any]] = {}
        wanted = {variant for term in terms for variant in self._applicable(step, term)}
        for term in terms:
            columns.update(_elements(columns, term.output, term.values))
            for variant, part in self._parts(step, term, wanted).items():
                parts_of.setdefault(variant, []).extend((*part, term.weight))
                if variant == "recomputed" and term.key:
                    columns[f"{term.key}/batch"] = self.run.backend.column(added_up, [*part, 1.0])
        if len(terms) == 1:
            columns.update(self._positions(terms[0]))
        parts_of["recomputed"] += (added, 1.0, 1.0)
        for variant, parts in parts_of.items():
            columns[f"_loss:{variant}"] = self.run.backend.column(added_up, parts)
        return columns

    def _are_known(self, step: Step) -> bool:
        """Whether every compiled loss belongs to an output, and its values were seen."""
        compiled = len(self._keys())
        known = sum(len(output.losses) for output in step.outputs)
        return compiled > 0 and len(step.losses) == known == compiled

    def _keys(self) -> list[str | None]:
        """Of all compiled losses in their order; Keras shows none for the only one."""
        compiled = getattr(self.run.model, "_compile_loss", None)
        flat = getattr(compiled, "_flat_losses", None) or []
        return [f"{loss.name}_loss" if len(flat) > 1 and loss.name else None for loss in flat]

    def _why_not(self, terms: list[Term]) -> str | None:
        """Why the loss cannot be computed anew from its unreduced values; None where it can."""
        if not is_of_keras(type(self.run.model).compute_loss):
            return "the model computes its loss by a compute_loss of its own"
        if not terms:
            return "the compiled losses do not belong to outputs with labels, or cannot be watched"
        for term in terms:
            name, reduction = term.loss.name, term.loss.reduction
            weighed = term.output.sample_weight is not None
            if term.is_reduced and (weighed or _carries(term.output)):
                return (
                    f"the loss {name!r} is reduced by itself, so its positions cannot be weighed "
                    "again"
                )
            if weighed and term.sample_weight is None:
                return f"the sample weights have other axes than the loss {name!r}"
            if self.run.replicas > 1 and reduction == "sum":
                return "Keras does not divide a sum of losses by the number of replicas"
            if reduction in (None, "none"):
                return f"the loss {name!r} has no reduction"
        return None

    def _applicable(self, step: Step, term: Term) -> Iterator[str]:
        """The ways to count that mean something for this part of the loss."""
        real = term.spread(real_positions(step, term.output, self.run))
        yield "recomputed"
        if real is not None or term.mask is not None or term.sample_weight is not None:
            yield "all"
        if real is not None:
            yield "unmasked"
        if term.sample_weight is not None:
            yield "weighted"
        if term.sample_weight is not None or term.output.given_weight is not None:
            yield "unweighted"

    def _parts(self, step: Step, term: Term, wanted: set[str]) -> dict[str, Any]:
        """This part of the loss, counted in each of the wanted ways."""
        real = term.spread(real_positions(step, term.output, self.run))
        real = term.mask if real is None else real
        counted = {
            "recomputed": (term.sample_weight, term.mask),
            "all": (None, None),
            "unmasked": (None, real),
            "weighted": (term.sample_weight, real),
            "unweighted": (None, term.mask),
        }
        return {
            variant: self._reduce(term.values, weight, mask, term.loss.reduction)
            for variant, (weight, mask) in counted.items()
            if variant in wanted
        }

    def _positions(self, term: Term) -> Columns:
        """Sum over counted positions and their number, of the only part of the loss."""
        if term.mask is None or term.loss.reduction not in ("sum_over_batch_size", "mean"):
            return {}
        whole, _ = self._reduce(term.values, term.sample_weight, term.mask, "sum")
        return {
            "_loss:positions:n": self.run.backend.column(product_of, [whole, term.weight]),
            "_loss:positions:d": self.run.backend.total(term.mask),
        }

    def _reduce(
        self, values: Any, weight: Any | None, mask: Any | None, reduction: str
    ) -> tuple[Any, Any]:
        """The reduction of `keras.losses.Loss`, written anew (compare keras/src/losses/loss.py): a
        sum, and what it is divided by.

        With a mask, "sum_over_batch_size" divides by the unmasked positions, not by the weights'
        sum.
        """
        total = self.run.backend.total
        counted = product(weight, mask)
        if counted is None:
            part = total(values)
        else:
            part = total(ops.where(counted != 0, values * counted, ops.zeros_like(values)))
        if reduction == "sum":
            return part, 1.0
        if reduction == "mean_with_sample_weight" and counted is not None:
            return part, total(counted)
        return part, size_of(values) if mask is None else total(mask)

    # on the host

    def columns(self, rows: TapeRows, means: EpochMean) -> Columns:
        found: dict[str, Any] = {}
        sizes = rows.columns.get("batch/size")
        if sizes is None:
            return found
        for variant in VARIANTS:
            batch = rows.columns.get(f"_loss:{variant}")
            if batch is not None:
                # Keras weighs a batch's loss by its rows (keras/src/backend/*/trainer.py,
                # `train_step`).
                found[f"loss/{variant}"] = means.extend(variant, batch * sizes, sizes)
        batch, plain = (rows.columns.get(f"_loss:{v}") for v in ("recomputed", "unweighted"))
        if batch is not None:
            found["loss/batch"] = batch
        if plain is not None:
            found["loss/batch_unweighted"] = plain + rows.columns["loss/added"]
        found.update(_by_position(rows, means))
        return found


def product_of(ops: Any, number: Any, factor: Any) -> Any:
    return number * factor


def added_up(ops: Any, *parts: Any) -> Any:
    """Of sums, each followed by what it is divided by and its weight."""
    triples = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return sum(ratio(ops, part, whole) * weight for part, whole, weight in triples)


def _terms(step: Step, keys: list[str | None]) -> list[Term]:
    """The compiled losses in the order of the outputs."""
    return [
        _term(output, loss, ops.cast(step.losses[place], "float32"), weight, keys[place])
        for output in step.outputs
        for loss, weight, place in output.losses
    ]


def _term(
    output: OutputEvidence, loss: Any, values: Any, weight: float | None, key: str | None
) -> Term:
    given = spread_if_any(output.sample_weight, values)
    mask = product(spread_if_any(output.mask, values), spread_if_any(mask_of(values), values))
    return Term(output, loss, values, 1.0 if weight is None else weight, given, mask, key)


def _by_position(rows: TapeRows, means: EpochMean) -> Columns:
    """The loss as one mean over all counted positions since the epoch began, where nothing is added
    to it.
    """
    numerator, count = (rows.columns.get(f"_loss:positions:{part}") for part in "nd")
    if numerator is None or count is None or rows.columns["loss/added"].any():
        return {}
    return {"loss/by_position": means.extend("positions", numerator, count)}


def _elements(columns: dict[str, Any], output: OutputEvidence, values: Any) -> Columns:
    """Elements in the unreduced losses of all outputs so far, and the most there can be without
    broadcasting.
    """
    sizes = size_of(output.y_true), size_of(output.y_pred)
    known = all(isinstance(size, float) for size in sizes)
    most = max(sizes) if known else ops.maximum(*sizes)
    return {
        "loss/elements": columns.get("loss/elements", 0.0) + size_of(values),
        "loss/expected_elements": columns.get("loss/expected_elements", 0.0) + most,
    }


def _carries(output: OutputEvidence) -> bool:
    """Whether a mask arrives with an output that has its axes."""
    mask = output.mask
    return mask is not None and len(output.y_pred.shape) >= len(mask.shape)
