from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainsanity.rules.comparison import maps, measured, merged, number, real, text
from trainsanity.rules.difference import Difference
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.wire import Audit


@dataclass(frozen=True)
class ModeFlagLost(Rule):
    """A layer does not learn whether the model trains or predicts.

    Compares: the `training` flag that dropout, noise and normalization layers receive in the
    model's training pass, and what they then do, with what the same layer does when called
    alone; the flags that they receive in a train_step or test_step of your own; and weights before
    and after an inference pass, which must not change them.

    Why: dropout that is silently off overfits; statistics that move during evaluation make
    every evaluation change the model.

    Try: pass `training=training` on in every call() and every cell, and call the model with
    `training=True` in a train_step of your own. Parts of a model that such a step calls by
    themselves, as the critic of a GAN, are advice.

    Source: TensorFlow issues 27275, 26319, 32586 (stacked RNN cells).
    """

    id = "mode-flag-lost"
    severity = Severity.WARNING
    needs = ("audit:mode",)

    @staticmethod
    def fires_on() -> RunHistory:
        """A model that calls its dropout with training=False."""
        return history(audits=[("mode", 1, {"layers": [_OFF]})])

    @staticmethod
    def quiet_on() -> RunHistory:
        """The fine-tuning idiom: a backbone called with training=False in a functional graph."""
        return history(audits=[("mode", 1, {"layers": [_OFF | {"declared": True}]})])

    def check(self, run: RunView) -> list[Finding]:
        found: list[Finding] = []
        testable = False
        for audit in measured(run, "mode"):
            layers = [r for r in maps(audit.facts, "layers") if _has_effect(r)]
            moved = maps(audit.facts, "inference_state")
            testable |= bool(layers or moved)
            found += [f for row in layers for f in _lost(audit, row)]
            if _own_step(run):
                found += [_untold(audit, row) for row in layers if _is_untold(row)]
            found += [_overridden(audit, row) for row in layers if _is_overridden(row)]
            found += [_changed(audit, row) for row in moved if (real(row, "moved") or 0.0) > 0.0]
        found += _trains_in_test(run)
        if run.new_audits("mode") and not testable and not found:
            raise NotTestable("no layer of the model acts differently in training and inference")
        return merged(found)


def _trains_in_test(run: RunView) -> Iterator[Finding]:
    """A test_step of the user's that calls the model with training=True."""
    for audit in run.new_audits("mode_in_test") if run.has_audit("mode_in_test") else []:
        rows = maps(run.audit("mode").facts, "layers") if run.has_audit("mode") else []
        acting = {text(row, "name") for row in rows if _has_effect(row)}
        told = audit.facts.get("layers_in_training")
        names = [name for name in told if name in acting] if isinstance(told, list) else []
        if not names:
            continue
        more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        yield Finding(
            subject="test_step: training=True",
            title="Your test_step evaluates the model in training mode",
            message=(
                f"The test_step calls the model with training=True, so that {names[0]}{more} acts "
                "as in training: validation numbers carry its noise, or the statistics of single "
                "batches, and are not those of predict."
            ),
            witnesses=(
                Witness("flag in the test pass", "training=True"),
                Witness("flag of an evaluation", "training=False"),
            ),
            suggestion="Write self(x, training=False) in test_step.",
            first_step=audit.step,
            last_step=audit.step,
            certainty="Flags are compared as the layers received them in the test step.",
        )


def _has_effect(row: Mapping[str, Any]) -> bool:
    """Whether the layer, called alone, differs between training and inference at all."""
    alone = Difference.of(row, "alone")
    return alone is not None and alone.disagrees


def _is_overridden(row: Mapping[str, Any]) -> bool:
    """Whether the graph says `training=False`, and the layer acts as in training nevertheless."""
    acted = Difference.of(row, "acted")
    return bool(text(row, "overridden_at")) and acted is not None and acted.disagrees


def _overridden(audit: Audit, row: Mapping[str, Any]) -> Finding:
    name, where = text(row, "name") or "?", text(row, "overridden_at") or "?"
    acted = Difference.of(row, "acted")
    return Finding(
        subject=f"{where}: training=False",
        title=f"{where} was called with training=False, and {name} trains nevertheless",
        message=(
            f"The functional graph calls {where} with training=False. In the model's training "
            f"pass {name} ({text(row, 'class') or 'layer'}) received True: its output differs from "
            f"inference by {number(acted.largest if acted else 0.0)}. Keras 3 replaces the flag of "
            "the graph by the one of the model's own call."
        ),
        witnesses=(
            Witness("effect of training asked for", 0.0),
            Witness("effect of training, in the model", acted.largest if acted else 0.0),
        ),
        suggestion=(
            f"Set {where}.trainable = False (batch normalization then runs in inference mode), or "
            "call it inside a layer of your own that passes training=False."
        ),
        first_step=audit.step,
        last_step=audit.step,
        certainty="What the graph says, what the layer received and what it did.",
    )


def _lost(audit: Audit, row: Mapping[str, Any]) -> Iterator[Finding]:
    received = row.get("received") or []
    acted = Difference.of(row, "acted")
    # Augmentation may do nothing by chance: what the layer was told has to agree with what it did.
    if not received or True in received or acted is None or acted.disagrees:
        return
    if _rests(row):
        return
    whole_model = bool(row.get("switched_model"))
    if whole_model and row.get("effect") == "statistics":
        return  # fine-tuning with the statistics of the backbone
    yield _finding(audit, row, acted, whole_model=whole_model)


def _finding(
    audit: Audit, row: Mapping[str, Any], acted: Difference, *, whole_model: bool
) -> Finding:
    name, alone = text(row, "name") or "?", Difference.of(row, "alone")
    site = f" at {text(row, 'site')}" if text(row, "site") else ""
    rate = real(row, "rate")
    what = f"{text(row, 'class') or 'layer'}{f' with rate {number(rate)}' if rate else ''}{site}"
    where = text(row, "switched_at") or name
    return Finding(
        subject=name,
        title=f"{name} stays in inference mode while the model trains",
        message=(
            f"{name} ({what}) was told training={_told(row)} in the model's training pass and "
            f"acted as in inference: its output differs from that by {number(acted.largest)}. "
            f"Called alone, training changes its output by "
            f"{number(alone.largest if alone else 0.0)}. Whoever calls {where} switched it off."
        ),
        witnesses=(
            Witness("effect of training, layer alone", alone.largest if alone else 0.0),
            Witness("effect of training, in the model", acted.largest),
        ),
        suggestion=f"Where {where} is called, pass training=training instead of a fixed value.",
        first_step=audit.step,
        last_step=audit.step,
        severity=Severity.ADVICE if whole_model else None,
        certainty=(
            f"Up to {number(acted.tolerance)} would be rounding; what the layer was told and what "
            "it did agree."
        ),
    )


def _own_step(run: RunView) -> bool:
    return run.has_audit("compile") and bool(run.audit("compile").facts.get("custom_train_step"))


def _is_untold(row: Mapping[str, Any]) -> bool:
    """Whether the train_step calls the layer, and nobody in it says that this is training."""
    step = row.get("in_step")
    if not isinstance(step, Mapping) or _rests(row):
        return False
    return True not in step["received"] and set(step["entered_with"]) == {None}


def _untold(audit: Audit, row: Mapping[str, Any]) -> Finding:
    name, alone = text(row, "name") or "?", Difference.of(row, "alone")
    whole_model = bool(row["in_step"].get("entered_model"))
    effect = number(alone.largest if alone else 0.0)
    return Finding(
        subject=name,
        title=f"{name} stays in inference mode in your train_step",
        message=(
            f"The train_step calls {'the model' if whole_model else 'a part of the model'} without "
            f"training=True, so that {name} ({text(row, 'class') or 'layer'}) acts as in "
            f"inference. Called alone, training changes its output by {effect}."
        ),
        witnesses=(
            Witness("effect of training, layer alone", alone.largest if alone else 0.0),
            Witness("effect of training, in the step", 0.0),
        ),
        suggestion="Write self(x, training=True) in train_step.",
        first_step=audit.step,
        last_step=audit.step,
        severity=None if whole_model else Severity.ADVICE,
        certainty="Flags are compared as the layer received them while the step was traced.",
    )


def _rests(row: Mapping[str, Any]) -> bool:
    """Whether the user has put the layer in inference mode."""
    frozen = row.get("effect") == "statistics" and row.get("trainable") is False
    return frozen or bool(row.get("declared"))


def _told(row: Mapping[str, Any]) -> str:
    return " and ".join(sorted({str(flag) for flag in row.get("received") or []}))


def _changed(audit: Audit, row: Mapping[str, Any]) -> Finding:
    path, moved = text(row, "path") or "?", real(row, "moved") or 0.0
    return Finding(
        subject=path,
        title=f"{path} changes during inference",
        message=(
            f"One inference pass moved {path} ({text(row, 'class') or 'layer'}) by "
            f"{number(moved)}. Evaluating or predicting then changes the model: results depend on "
            "how often and on what it was evaluated before."
        ),
        witnesses=(
            Witness("expected movement in inference", 0.0),
            Witness("movement in inference", moved),
        ),
        suggestion="Update statistics only where training is true.",
        first_step=audit.step,
        last_step=audit.step,
        certainty="Inference writes no weights, so any movement counts.",
    )


_OFF: dict[str, Any] = {
    "name": "dropout",
    "class": "Dropout",
    "effect": "random",
    "rate": 0.5,
    "trainable": True,
    "received": [False],
    "alone": {"largest": 2.0, "scale": 2.0, "elements": 64, "dtype": "float32", "noise": 0.0},
    "acted": {"largest": 0.0, "scale": 1.0, "elements": 64, "dtype": "float32", "noise": 0.0},
    "declared": False,
    "switched_at": "my_model",
    "switched_model": False,
}
