from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from trainsanity.rules.comparison import (
    finding_of,
    maps,
    measured,
    merged,
    number,
    real,
    relative_gap,
    text,
    whole,
)
from trainsanity.rules.difference import Difference
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity, Witness
from trainsanity.wire import Audit


@dataclass(frozen=True)
class RoundtripStructure(Rule):
    """The model that is loaded is built differently from the one that was saved.

    Compares: classes and dtype policies of layers, the set of trainable weights, number and
    values of weights, optimizer and its slots, output names and configuration, before saving and
    after loading; and the saved configuration with a strict JSON reader.

    Why: a frozen layer that comes back trainable, or an activation that comes back as another,
    changes every later use of the model.

    Try: return every argument of __init__ from get_config, with super().get_config() in it, and
    register each class under a name of its own.

    Source: TensorFlow issues 41797 (Infinity in JSON), 37635 (class changes), 46329 (frozen
    layers thaw), 40981 (config changes).
    """

    id = "roundtrip-structure"
    severity = Severity.CRITICAL
    needs = ("audit:roundtrip",)

    # Relative: a Python float printed by JSON is exact, one that was stored as float32 is not.
    rounding: float = 1e-6

    @staticmethod
    def fires_on() -> RunHistory:
        """A frozen embedding thaws."""
        thawed = {"trainable_after": ["dense/kernel", "embedding/embeddings"]}
        return history(audits=[("roundtrip", 90, _FACTS | thawed)])

    @staticmethod
    def quiet_on() -> RunHistory:
        """Saved without its optimizer, on purpose."""
        return history(audits=[("roundtrip", 90, _FACTS | {"optimizer_slots": None})])

    def check(self, run: RunView) -> list[Finding]:
        return merged(found for audit in measured(run, "roundtrip") for found in self._check(audit))

    def _check(self, audit: Audit) -> Iterator[Finding]:
        yield from _trainable(audit)
        replaced = list(_optimizer(audit))
        yield from replaced
        yield from _counts(audit, ("weights",) if replaced else ("weights", "optimizer_slots"))
        yield from _values(audit)
        yield from _classes(audit)
        yield from _policies(audit)
        yield from _names(audit)
        yield from self._config(audit)
        yield from _strict(audit)

    def _config(self, audit: Audit) -> Iterator[Finding]:
        tensors: list[Mapping[str, Any]] = []
        for row in maps(audit.facts, "config_changed"):
            before, after = row.get("before"), row.get("after")
            left, right = real(row, "before"), real(row, "after")
            rounded = left is not None and right is not None
            path = text(row, "path") or "config"
            # Keras forgets the flag of a nested model and keeps those of its weights, which count.
            is_flag = path.rpartition(".")[2] == "trainable"
            same = rounded and relative_gap(left or 0.0, right or 0.0) <= self.rounding
            if is_flag or same:
                continue
            if "inbound_nodes" in path and path.endswith(".dtype"):
                tensors.append(row)
                continue
            yield _finding(
                audit,
                subject=f"config: {path}",
                title=f"{path} is {_short(before)} before and {_short(after)} after reload",
                message=(
                    f"A model rebuilt from its own configuration has {path} = {_short(after)}, "
                    f"where the original has {_short(before)}: get_config reports something else "
                    "than what __init__ was given, or from_config ignores it."
                ),
                witnesses=(_witness("before", before), _witness("after", after)),
                suggestion=f"Return the value that __init__ received for {path} from get_config.",
                severity=Severity.WARNING,
            )
        yield from _tensor_dtypes(audit, tensors)


def _tensor_dtypes(audit: Audit, rows: list[Mapping[str, Any]]) -> Iterator[Finding]:
    """Of dtypes of tensors between layers: they follow from the policy of the layer before."""
    if not rows:
        return
    before, after = _short(rows[0].get("before")), _short(rows[0].get("after"))
    place = (text(rows[0], "path") or "").partition(".")[0]
    yield _finding(
        audit,
        subject="dtype of tensors",
        title=f"{len(rows):,} tensors are {before} before and {after} after reload",
        message=(
            f"The input of {place}, and {len(rows) - 1:,} more tensors between layers, have dtype "
            f"{before} before saving and {after} after loading. A layer before it forgets its "
            "dtype policy in get_config, as SpatialDropout of Keras 3.15 does: it computes in "
            "another precision after loading."
        ),
        witnesses=(Witness("dtype before", before), Witness("dtype after", after)),
        suggestion=(
            "Set the global policy that the model was trained under before loading it; in layers "
            "of your own begin get_config with super().get_config()."
        ),
        severity=Severity.ADVICE,
    )


def _trainable(audit: Audit) -> Iterator[Finding]:
    before, after = _set(audit, "trainable_before"), _set(audit, "trainable_after")
    if before is None or after is None or before == after:
        return
    thawed, frozen = sorted(after - before), sorted(before - after)
    parts = [
        f"{_list(names)} {'is' if len(names) == 1 else 'are'} {what} after loading"
        for names, what in ((thawed, "trainable"), (frozen, "frozen"))
        if names
    ]
    yield _finding(
        audit,
        subject="trainable weights",
        title=f"{len(before):,} trainable weights before, {len(after):,} after reload",
        message=(
            f"{' and '.join(parts)}, other than before saving. The layer's get_config leaves out "
            "`trainable`, or the flag was set on inner weights only."
        ),
        witnesses=(
            Witness("trainable weights before", len(before), "weights"),
            Witness("trainable weights after", len(after), "weights"),
        ),
        suggestion="Begin get_config with super().get_config(), which holds `trainable`.",
    )


def _optimizer(audit: Audit) -> Iterator[Finding]:
    facts = audit.facts.get("optimizer")
    if not isinstance(facts, Mapping):
        return
    before, after = text(facts, "before"), text(facts, "after")
    changed = [str(key) for key in facts.get("changed") or []]
    if before is None or after is None or (before == after and not changed):
        return
    is_other = before != after
    now = after if is_other else f"{after} with {_list(changed)} changed"
    yield _finding(
        audit,
        subject="optimizer",
        title=f"{before} before saving, {after} after loading"
        if is_other
        else f"{after} with other options after loading",
        message=(
            f"The model is trained with {before} and comes back with {now}: what is trained on "
            "from the file moves its weights otherwise."
        ),
        witnesses=(Witness("optimizer before", before), Witness("optimizer after", now)),
        suggestion="Compile the model again after loading it. Keras 3.15.1 forgets the optimizer "
        "of a model that has been saved to .h5, in every later file.",
    )


def _counts(audit: Audit, keys: tuple[str, ...]) -> Iterator[Finding]:
    for key in keys:
        what = key.replace("_", " ")
        counts = audit.facts.get(key)
        if not isinstance(counts, Mapping):
            continue
        before, after = whole(counts, "before"), whole(counts, "after")
        if before is None or after is None or before == after:
            continue
        yield _finding(
            audit,
            subject=what,
            title=f"{before:,} {what} before saving, {after:,} after loading",
            message=(
                f"The model had {before:,} {what} when it was saved and has {after:,} after "
                "loading. Some were not saved, or the rebuilt layers create others."
            ),
            witnesses=(Witness(f"{what} before", before), Witness(f"{what} after", after)),
            suggestion="Create weights in build() with add_weight, depending on the config alone.",
        )


def _values(audit: Audit) -> Iterator[Finding]:
    rows = maps(audit.facts, "weights_changed")
    # Saving merges LoRA into its kernel and clears it: other values, and the same function.
    merged_layers = {_layer(row) for row in rows if "/lora_" in str(row.get("path"))}
    for row in rows:
        difference, path = Difference.of(row), text(row, "path") or "?"
        if difference is None or difference.largest == 0.0 or _layer(row) in merged_layers:
            continue
        yield _finding(
            audit,
            subject=path,
            title=f"{path} differs by {number(difference.largest)} after reload",
            message=(
                f"{path} has other values after loading: up to {number(difference.largest)} "
                f"apart, at values of up to {number(difference.scale)}."
            ),
            witnesses=(
                Witness("largest value before", difference.scale),
                Witness("largest difference after", difference.largest),
            ),
            suggestion="Check save_own_variables and load_own_variables of the layer.",
        )


def _classes(audit: Audit) -> Iterator[Finding]:
    for row in maps(audit.facts, "layers"):
        before, after = text(row, "class_before"), text(row, "class_after")
        if before is None or after is None or before == after:
            continue
        name = text(row, "name") or "?"
        yield _finding(
            audit,
            subject=name,
            title=f"{name} is a {_class(before)} before and a {_class(after)} after reload",
            message=(
                f"{name} was saved as {before} and loaded as {after}. Two classes are registered "
                "under one name, or from_config builds the parent class."
            ),
            witnesses=(Witness("class before", before), Witness("class after", after)),
            suggestion=(
                "Give each class its own register_keras_serializable(package=..., name=...), and "
                "return cls(**config) from from_config."
            ),
        )


def _policies(audit: Audit) -> Iterator[Finding]:
    for row in maps(audit.facts, "layers"):
        before, after = text(row, "policy_before"), text(row, "policy_after")
        if before is None or after is None or before == after:
            continue
        if _class(text(row, "class_before") or "") == "InputLayer":  # computes nothing
            continue
        name = text(row, "name") or "?"
        yield _finding(
            audit,
            subject=f"dtype policy of {name}",
            title=f"{name} has policy {before} before and {after} after reload",
            message=(
                f"{name} ({_class(text(row, 'class_before') or 'layer')}) was saved with the dtype "
                f"policy {before} and is loaded with {after}: it computes in another precision. "
                "Its get_config leaves the policy out, or writes another one, as that of "
                "SpatialDropout does in Keras 3.15."
            ),
            witnesses=(Witness("policy before", before), Witness("policy after", after)),
            suggestion=(
                "Begin get_config with super().get_config(), which holds the policy; for a layer "
                "of Keras itself set its dtype_policy again after loading."
            ),
            severity=Severity.ADVICE if row.get("of_keras") else Severity.WARNING,
        )


def _names(audit: Audit) -> Iterator[Finding]:
    names = audit.facts.get("output_names")
    if not isinstance(names, Mapping):
        return
    before, after = names.get("before"), names.get("after")
    if not before or not after or list(before) == list(after):
        return
    yield _finding(
        audit,
        subject="output names",
        title=f"Outputs are called {_short(list(after))} after reload",
        message=(
            f"The model's outputs are {_list(list(before))}; after loading they are "
            f"{_list(list(after))}. Code that asks for an output by its name breaks."
        ),
        witnesses=(
            Witness("output names before", _list(list(before))),
            Witness("output names after", _list(list(after))),
        ),
        suggestion="Name the output layers.",
        severity=Severity.WARNING,
    )


def _strict(audit: Audit) -> Iterator[Finding]:
    problem = text(audit.facts, "strict_json")
    if problem is None:
        return
    yield _finding(
        audit,
        subject="saved configuration",
        title="The saved configuration is not valid JSON",
        message=(
            f"Keras writes and reads the model's configuration, but a strict JSON reader says: "
            f"{problem}. Other tools cannot read the file. Infinity and NaN are not JSON."
        ),
        witnesses=(Witness("Keras' reader", "accepts it"), Witness("strict reader", problem)),
        suggestion="Use None or a large number instead of infinity in the layer's arguments.",
        severity=Severity.WARNING,
    )


_finding = partial(
    finding_of, certainty="What is saved must come back unchanged, so any difference counts."
)


def _set(audit: Audit, key: str) -> set[str] | None:
    value = audit.facts.get(key)
    return {str(v) for v in value} if isinstance(value, (list, tuple)) else None


def _list(names: list[Any]) -> str:
    shown = ", ".join(str(n) for n in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3:,} more"


def _layer(row: Mapping[str, Any]) -> str:
    return str(row.get("path")).rpartition("/")[0]


def _class(path: str) -> str:
    return path.rpartition(".")[2]


def _short(value: Any) -> str:
    shown = str(value)
    return shown if len(shown) <= 24 else shown[:21] + "..."


def _witness(when: str, value: Any) -> Witness:
    as_number = real({"v": value}, "v")
    return Witness(f"value {when}", str(value) if as_number is None else as_number)


_FACTS: dict[str, Any] = {
    "format": ".keras",
    "trainable_before": ["dense/kernel"],
    "trainable_after": ["dense/kernel"],
    "weights": {"before": 2, "after": 2},
    "weights_changed": [],
    "layers": [{"name": "dense", "class_before": "keras.Dense", "class_after": "keras.Dense"}],
    "config_changed": [],
    "optimizer_slots": {"before": 4, "after": 4},
    "output_names": {"before": ["dense"], "after": ["dense"]},
    "strict_json": None,
}
