"""All audits of a model on a few rows, and one watched evaluation of them, without training."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from trainsanity import backends, identity, unwarned, wire
from trainsanity.boundary import Boundary
from trainsanity.callback import SanityCallback
from trainsanity.columns import table
from trainsanity.errors import CannotAudit, SampleRefused
from trainsanity.fit_arguments import FitArguments
from trainsanity.forward import evaluation_untouched, quiet_forward, refused, untouched
from trainsanity.probes import all_probes
from trainsanity.probes.probe import Probe
from trainsanity.recording import rows_of
from trainsanity.rules import Finding, Rule
from trainsanity.run import Run, header_of
from trainsanity.settings import Expect, Settings
from trainsanity.spooled import Judgement, SpooledRun
from trainsanity.stream import RunStream

VERDICTS = ("alert", "ok", "not_testable")  # as they are listed
AFTER_TRAINING = ("roundtrip", "replicas")  # probes that audit in `on_released`


@dataclass(frozen=True)
class Report:
    """What the rules say of a model that was audited.

    Attributes:
        judgement: findings, and one verdict for every rule.
        run: the audits themselves.
        obstacle: what the model, its loss or its metrics raise on these rows; empty where they take
            them.
    """

    judgement: Judgement
    run: SpooledRun
    obstacle: str = ""

    @property
    def findings(self) -> list[tuple[Rule, Finding]]:
        return self.judgement.findings

    def __str__(self) -> str:
        out = io.StringIO()
        for line in self.lines():
            print(line, file=out)
        return out.getvalue()

    def lines(self) -> Iterator[str]:
        """Findings, then the verdict of every rule."""
        for rule, finding in self.findings:
            yield f"{finding.severity or rule.severity}  {rule.id}: {finding.title}"
            yield f"    {finding.message}"
            yield f"    Try: {finding.suggestion}"
        if self.obstacle:
            yield f"{self.obstacle}"
            yield "Little was checked. Give rows, labels and weights as `fit` takes them."
        elif not self.findings:
            yield "no findings"
        yield ""
        rows = [(slug, *verdict) for slug, verdict in self.judgement.verdicts.items()]
        rows.sort(key=lambda row: (VERDICTS.index(row[1]), row[0]))
        yield from table(("rule", "verdict", "why"), rows)


def audit(
    model: Any, x: Any, y: Any = None, sample_weight: Any = None, expect: Expect | None = None
) -> Report:
    """Checks a model on a few rows and prints what was found; nothing of the model is changed.

    Args:
        model: A built Keras model; what needs labels is checked where it is compiled.
        x: Arrays of a few rows, as `fit` takes them; every row is used.
        y: Their labels.
        sample_weight: Their weights.
        expect: What you intend, e.g. `Expect(causal=True)`.

    Returns:
        Findings and verdicts; `print(report)` shows them again.

    Raises:
        SampleRefused: what was given is no model with rows of data.
    """
    _refuse_what_is_no_sample(model, {"x": x, "y": y, "sample_weight": sample_weight})
    with tempfile.TemporaryDirectory() as folder:
        report = _audited(model, (x, y, sample_weight), expect or Expect(), Path(folder))
    print(report, end="")
    return report


def _audited(model: Any, sample: tuple[Any, Any, Any], expect: Expect, folder: Path) -> Report:
    settings = Settings.resolve("offline", spool_dir=folder, keep_spool=True, expect=expect)
    run_id = identity.new_run_id()
    stream = RunStream(settings, run_id, header_of(model, settings, "fit"), lambda alert: None)
    run = Run(model, backends.active(), stream, settings)
    run.optimizer = getattr(model, "optimizer", None)
    run.sample = sample
    run.fit = FitArguments()

    boundary = Boundary(run.note_failure)
    unwarned.begin(boundary)
    obstacle = boundary.call("forward", _obstacle, model, sample[0], default="")
    _look(run, boundary)
    evaluated: list[wire.Packet] = []
    if not obstacle:
        evaluated, obstacle = boundary.call(
            "evaluate", _evaluated, model, sample, expect, folder, default=([], "")
        )
    unwarned.end(boundary)
    stream.close("finished")
    looked = SpooledRun.read(settings.spool_dir / f"{run_id}.spool")
    spooled = SpooledRun([*looked.packets, *evaluated])
    return Report(spooled.judge(), spooled, obstacle)


def _refuse_what_is_no_sample(model: Any, parts: dict[str, Any]) -> None:
    """
    Raises:
        SampleRefused: at what `fit` would not take either, or takes in another form.
    """
    if not isinstance(model, keras.Model):
        raise SampleRefused(f"model must be a keras.Model. Received: {type(model).__name__}")
    if parts["x"] is None:
        raise SampleRefused("x must be the rows to check the model on. Received: None")
    rows: dict[str, set[int]] = {}
    for name, part in parts.items():
        for leaf in keras.tree.flatten(part):
            if leaf is not None and not len(getattr(leaf, "shape", ())):
                raise SampleRefused(
                    f"{name} must be an array, or a list, tuple or dict of arrays. Received: "
                    f"{type(leaf).__name__}. Lists of numbers need numpy.asarray; of a data set "
                    "give one batch: x, y = next(iter(dataset))."
                )
            if leaf is not None:
                rows.setdefault(name, set()).add(int(leaf.shape[0]))
    if len(set.union(*rows.values())) > 1 or 0 in rows["x"]:
        told = ", ".join(f"{name} of {sorted(found)}" for name, found in rows.items())
        raise SampleRefused(f"all arrays must have the same rows, at least one. Received: {told}")


def _obstacle(model: Any, x: Any) -> str:
    try:
        quiet_forward(model, x)
    except CannotAudit as reason:
        return f"The rows do not go through the model: {reason}"
    return ""


def _evaluated(
    model: Any, sample: tuple[Any, Any, Any], expect: Expect, folder: Path
) -> tuple[list[wire.Packet], str]:
    """What the loss and the metrics count, as measured in an evaluation of these rows; and what
    they raise.
    """
    x, y, sample_weight = sample
    if y is None or not getattr(model, "compiled", False):
        return [], ""
    callback = SanityCallback(
        "offline", spool_dir=folder, keep_spool=True, verbose=False, expect=expect
    )
    own_traces = backends.active().own_traces()
    try:
        with evaluation_untouched(model), untouched(model), own_traces, refused("evaluate raises"):
            model.evaluate(
                x,
                y,
                sample_weight=sample_weight,
                batch_size=rows_of(x),
                verbose=0,
                callbacks=[callback],
            )
    except CannotAudit as reason:
        return [], f"The model cannot be evaluated on these rows: {reason}"
    return SpooledRun.read(folder / f"{callback.run_id}.spool").packets, ""


def _look(run: Run, boundary: Boundary) -> None:
    for make in sorted(all_probes(), key=lambda make: make.cost):
        if make.on_sample is not Probe.on_sample or make.name in AFTER_TRAINING:
            boundary.call(make.name, _look_with, make, run)


def _look_with(make: type[Probe], run: Run) -> None:
    probe = make(run)
    try:
        probe.on_sample()
        probe.on_end()
        if probe.name in AFTER_TRAINING:
            probe.on_released()
    except CannotAudit as reason:
        run.refuse(probe, str(reason))
