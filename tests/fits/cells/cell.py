"""A cell: one way to train, what its evidence must be, and how both are compared."""

from __future__ import annotations

import importlib
import pkgutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from tests.watched import offline_callback

from trainsanity.pace import FIRST
from trainsanity.spooled import SpooledRun

EVERYWHERE = ("tensorflow", "jax", "torch")
Array = np.ndarray[Any, Any]


@dataclass
class Evidence:
    """What one run must have measured.

    Attributes:
        signals: name -> one value for each step of the run, counted from 1.
        sparse: name -> {step: value}, for signals that only some steps have.
        absent: signals that must not be there, because they could only be wrong.
        reasons: signal or probe -> words of the reason given for its absence.
        batches: of each epoch, as its audit says; None to leave it out.
        said: rules that have to speak at `warning` or above; no other may.
    """

    signals: Mapping[str, Any]
    sparse: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    batches: tuple[int, ...] | None = None
    said: tuple[str, ...] = ()


@dataclass
class Scene:
    """A model about to be trained.

    Attributes:
        models: those that are compared with and without the callback.
        train: trains with these callbacks and returns what must be the same without ours.
        evidence: of each run in the order in which they began; asked after training.
    """

    models: list[Any]
    train: Callable[[list[Any]], Any]
    evidence: Callable[[], list[Evidence]]


@dataclass(frozen=True)
class Cell:
    """One way to train.

    Attributes:
        group, name: its place in the table.
        make: makes the scene anew, the same every time.
        on: backends that have this way.
        options: of the callback.
        warns: how a warning begins that Keras gives.
        rtol: how far the evidence may be off, relative; float32 against float64 by hand.
    """

    group: str
    name: str
    make: Callable[[], Scene]
    on: tuple[str, ...] = EVERYWHERE
    options: Mapping[str, Any] = field(default_factory=dict)
    warns: str = ""
    rtol: float = 2e-5

    @property
    def slug(self) -> str:
        return f"{self.group}: {self.name}"


def cells_of(backend: str) -> list[Cell]:
    """All cells of a backend, by group."""
    package = importlib.import_module(__package__ or "")
    modules = sorted(m.name for m in pkgutil.iter_modules(package.__path__))
    loaded = [importlib.import_module(f"{package.__name__}.{name}") for name in modules]
    found = [cell for module in loaded for cell in getattr(module, "CELLS", ())]
    return [cell for cell in found if backend in cell.on]


def run(cell: Cell) -> str:
    """Trains with and without the callback.

    Returns:
        What was compared, in a few words.

    Raises:
        AssertionError: the evidence is not what was calculated, or the callback left its mark.
    """
    with warnings.catch_warnings():
        if cell.warns:
            warnings.filterwarnings("ignore", cell.warns)
        return _run(cell)


def _run(cell: Cell) -> str:
    scene, runs, watched = _watched(cell)
    wanted = scene.evidence()
    assert len(runs) == len(wanted), f"{len(wanted)} runs wanted, {len(runs)} found"
    for found, evidence in zip(runs, wanted, strict=True):
        _compare(cell, found, evidence)
    plain_scene = _fresh(cell)
    plain = plain_scene.train([])
    _assert_same(watched, plain, "what training returned")
    for with_ours, without in zip(scene.models, plain_scene.models, strict=True):
        _assert_same(state_of(with_ours), state_of(without), f"state of {without.name}")
    return _in_words(wanted)


def _in_words(wanted: list[Evidence]) -> str:
    names = {name for evidence in wanted for name in (*evidence.signals, *evidence.sparse)}
    reasons = {name for evidence in wanted for name in evidence.reasons}
    if not names:
        return f"not testable: {', '.join(sorted(reasons))}"
    return f"{len(names)} signals"


def _fresh(cell: Cell) -> Scene:
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(17)
    return cell.make()


def _watched(cell: Cell) -> tuple[Scene, list[SpooledRun], Any]:
    with tempfile.TemporaryDirectory() as folder:
        scene = _fresh(cell)
        returned = scene.train([offline_callback(folder, **cell.options)])
        spools = sorted(Path(folder).glob("*.spool"))  # ids of runs are in order of time
        return scene, [SpooledRun.read(path) for path in spools], returned


def state_of(model: Any) -> list[Array]:
    """Weights, seeds, metrics and the state of every optimizer."""
    optimizers = [x for x in vars(model).values() if isinstance(x, keras.optimizers.Optimizer)]
    variables = [*model.variables, *model.metrics_variables]
    variables += [v for optimizer in optimizers for v in optimizer.variables]
    unique = {id(v): v for v in variables}
    return [np.array(keras.ops.convert_to_numpy(v)) for v in unique.values()]


def _assert_same(left: Any, right: Any, what: str) -> None:
    keras.tree.assert_same_structure(left, right)
    for a, b in zip(keras.tree.flatten(left), keras.tree.flatten(right), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=what)


def _compare(cell: Cell, run: SpooledRun, wanted: Evidence) -> None:
    thinned = _thinned(run)
    failed = [audit.facts for audit in run.audits("probe_failed")]
    assert not failed, failed
    for name, values in wanted.signals.items():
        values = np.asarray(values, np.float64)
        steps, found = _signal(run, name)
        if name in thinned:
            assert set(range(1, FIRST + 1)) <= set(steps), f"steps of {name}: {steps}"
            values = values[steps - 1]
        else:
            np.testing.assert_array_equal(steps, np.arange(1, len(values) + 1), f"steps of {name}")
        np.testing.assert_allclose(found, values, rtol=cell.rtol, atol=1e-6, err_msg=name)
    for name, points in wanted.sparse.items():
        steps, found = _signal(run, name)
        np.testing.assert_array_equal(steps, list(points), f"steps of {name}")
        np.testing.assert_allclose(found, list(points.values()), rtol=cell.rtol, err_msg=name)
    for name in wanted.absent:
        assert name not in run.names, f"{name} is measured: {run.signal(name)[1]}"
    if wanted.batches is not None:
        counted = tuple(audit.facts["batches"] for audit in run.audits("epoch"))
        assert counted == wanted.batches, f"batches of epochs: {counted}"
    _compare_reasons(run, wanted)
    _compare_judgement(run, wanted)


def _thinned(run: SpooledRun) -> set[str]:
    """Signals of which the run says that only some steps have them, as their price demands."""
    said = [audit.facts for audit in run.audits("thinned")]
    lost = [facts for facts in said if facts["stride"] == 1]
    assert not lost, lost
    return {name for facts in said for name in facts["signal"].split(", ")}


def _signal(run: SpooledRun, name: str) -> tuple[Array, Array]:
    steps, found = run.signal(name)
    assert len(steps), f"{name} was not measured; known are {sorted(run.names)}"
    return steps, found


def _compare_reasons(run: SpooledRun, wanted: Evidence) -> None:
    if not wanted.reasons:
        return
    columns = run.audits("columns")[-1].facts
    given = dict(columns["not_testable"])
    given.update({m["key"]: m["reason"] for m in columns["metrics"] if m["reason"]})
    for name, words in wanted.reasons.items():
        assert words in given.get(name, ""), f"{name}: {words!r} is not among {given}"


def _compare_judgement(run: SpooledRun, wanted: Evidence) -> None:
    findings = run.judge().at_least("warning")
    unwanted = [
        (rule.id, finding.subject, finding.message)
        for rule, finding in findings
        if rule.id not in wanted.said
    ]
    assert not unwanted, unwanted
    said = {rule.id for rule, _ in findings}
    assert said == set(wanted.said), f"said: {said}, wanted: {wanted.said}"
