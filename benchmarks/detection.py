"""Faulty and healthy trainings, judged by trainsanity and by the published rules of its peers.

The faulty runs and their healthy twins are those of the zoo (`tests/zoo`), further healthy runs the
workflows of `tests/healthy`. Every tool sees the same runs. *Detected*: anything at all is said
about a faulty run. *Right*: what is said names the trouble. An alarm of trainsanity is an alert at
`warning` or above, or the advice that a case asks for.

The zoo was made with the rules of trainsanity at hand, and holds silent bugs, not the sick
trainings for which its peers were made: alarms about healthy runs compare better than detections.
The peers' rules are made again on other evidence than their own, as told below.

    python benchmarks/detection.py --quick
    python benchmarks/detection.py --write
    python benchmarks/detection.py --write --resume judged.jsonl
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from overhead.resuming import Kept, resume_option

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # where the tests lie, whose trainings these are
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
PAGE = ROOT / "docs" / "detection.md"
TOOLS = ("trainsanity", "umlaut", "deepdiagnosis", "autotrainer", "sagemaker")
QUICK_SECONDS = 35.0
Said = dict[str, list[tuple[str, frozenset[str]]]]


@dataclass(frozen=True)
class Judged:
    """One run, and what each tool says about it.

    Attributes:
        rule: slug of the right diagnosis; "" for a healthy run.
        said: by each tool, symptoms with the rules that are the right diagnosis with them.
    """

    name: str
    rule: str
    said: Said

    def is_right(self, tool: str) -> bool:
        return any(self.rule in diagnoses for _, diagnoses in self.said[tool])


def say(run: Any, case: Any = None) -> Said:
    """What every tool says about a run."""
    from published import autotrainer, deepdiagnosis, sagemaker, umlaut
    from published.evidence import Evidence

    peers = {
        "umlaut": umlaut,
        "deepdiagnosis": deepdiagnosis,
        "autotrainer": autotrainer,
        "sagemaker": sagemaker,
    }
    least = "advice" if case is not None and case.advice else "warning"
    findings = run.judge().at_least(least)
    ours = {rule.id for rule, finding in findings if _counts(rule, finding, case)}
    said: Said = {"trainsanity": [(slug, frozenset({slug})) for slug in sorted(ours)]}
    return said | {name: list(peer.judge(Evidence(run))) for name, peer in peers.items()}


def _counts(rule: Any, finding: Any, case: Any) -> bool:
    """Advice counts only where the case asks for it."""
    severity = (finding.severity or rule.severity).value
    return severity != "advice" or (case is not None and rule.id == case.rule)


@dataclass(frozen=True)
class Training:
    """What makes one or more runs, and whose failure that is; no case: healthy."""

    name: str
    train: Callable[[], Any]
    case: Any = None

    def judged(self) -> Iterator[Judged]:
        rule = self.case.rule if self.case is not None else ""
        for run in trained(self.train):
            yield Judged(self.name, rule, say(run, self.case))


def trained(train: Callable[[], Any]) -> Iterator[Any]:
    import keras

    keras.backend.clear_session()
    keras.utils.set_random_seed(7)
    runs = train()
    yield from runs if isinstance(runs, list) else [runs]


def trainings() -> Iterator[Training]:
    """A faulty one, its twin, a workflow, and so on."""
    from itertools import zip_longest

    from tests.healthy.workflows import all_workflows
    from tests.zoo.case import all_cases

    cases = [case for case in all_cases() if case.rule]
    for case, workflow in zip_longest(cases, all_workflows()):
        if case is not None:
            yield Training(case.name, case.faulty, case)
            yield Training(f"twin of {case.name}", case.healthy)
        if workflow is not None:
            yield Training(workflow.__name__, workflow)


def judged_runs(seconds: float, kept: Kept) -> Iterator[Judged]:
    """Until the seconds are used up; what is kept is not trained again."""
    begun = time.perf_counter()
    for training in trainings():
        known = kept.of(training.name)
        if known is not None:
            yield from map(_judged, known)
            continue
        if time.perf_counter() - begun > seconds:
            return
        runs = list(training.judged())
        kept.keep([asdict(run) for run in runs])
        yield from runs


def _judged(facts: dict[str, Any]) -> Judged:
    said = {
        tool: [(name, frozenset(diagnoses)) for name, diagnoses in symptoms]
        for tool, symptoms in facts["said"].items()
    }
    return Judged(facts["name"], facts["rule"], said)


def rows_of(runs: list[Judged]) -> Iterable[dict[str, Any]]:
    faulty, healthy = [r for r in runs if r.rule], [r for r in runs if not r.rule]
    for tool in TOOLS:
        detected = sum(bool(run.said[tool]) for run in faulty)
        loud = sum(bool(run.said[tool]) for run in healthy)
        alarms = sum(len(run.said[tool]) for run in healthy)
        values = {
            "faulty runs": (len(faulty), "runs"),
            "detected": (detected, "runs"),
            "right diagnosis": (sum(run.is_right(tool) for run in faulty), "runs"),
            "healthy runs": (len(healthy), "runs"),
            "healthy runs with an alarm": (loud, "runs"),
            "alarms per healthy run": (round(alarms / max(len(healthy), 1), 3), "alarms"),
        }
        for case, (value, unit) in values.items():
            yield {"case": case, "subject": tool, "value": value, "unit": unit}


def table(rows: list[dict[str, Any]]) -> str:
    """As Markdown: a tool in each line."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    value = {(row["subject"], row["case"]): row["value"] for row in rows}
    lines = [f"| tool | {' | '.join(cases)} |", "| --- |" + " ---: |" * len(cases)]
    for tool in TOOLS:
        cells = " | ".join(f"{value[tool, case]:g}" for case in cases)
        lines.append(f"| {tool} | {cells} |")
    return "\n".join(lines)


def page(runs: list[Judged], rows: list[dict[str, Any]]) -> str:
    from published import autotrainer, deepdiagnosis, sagemaker, umlaut

    intro = str(__doc__).partition("\n\n    python")[0]
    lines = ["# Detection", "", "Written by `python benchmarks/detection.py --write`.", intro, ""]
    lines += [table(rows), "", _extent(runs), "", "## What the peers' rules are", ""]
    for module in (umlaut, deepdiagnosis, autotrainer, sagemaker):
        lines += [" ".join(str(module.__doc__).split()), ""]
    lines += [
        "## What was said about each faulty run",
        "",
        f"| run | right | {' | '.join(TOOLS)} |",
    ]
    lines.append("| --- |" * 1 + " --- |" * (len(TOOLS) + 1))
    for run in runs:
        if run.rule:
            cells = [", ".join(name for name, _ in run.said[tool]) or "-" for tool in TOOLS]
            lines.append(f"| {run.name} | {run.rule} | {' | '.join(cells)} |")
    loud = [run for run in runs if not run.rule and run.said["trainsanity"]]
    lines += ["", f"Healthy runs about which trainsanity says something: {len(loud)}."]
    return "\n".join(lines) + "\n"


def _extent(runs: list[Judged]) -> str:
    from tests.zoo.case import all_cases

    every = sum(bool(case.rule) for case in all_cases())
    return f"{sum(bool(run.rule) for run in runs)} of the {every} faulty trainings of the zoo."


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="Under a minute: as many as fit into it.")
@click.option("--seconds", default=float("inf"), help="Begin no new run after so long.")
@click.option("--json", "as_json", is_flag=True, help="A list for programs.")
@click.option("--write", is_flag=True, help="Write docs/detection.md.")
@resume_option
def main(quick: bool, seconds: float, as_json: bool, write: bool, resume: Path | None) -> None:
    # What trainings print goes with the progress; the answer alone goes to standard output.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    runs = []
    kept = Kept(resume, key_of=lambda judged: judged[0]["name"])
    for run in judged_runs(QUICK_SECONDS if quick else seconds, kept):
        runs.append(run)
        ours = ", ".join(name for name, _ in run.said["trainsanity"]) or "nothing"
        click.echo(f"{run.name}: {ours}", err=True)
    rows = list(rows_of(runs))
    if write:
        PAGE.write_text(page(runs, rows), encoding="utf-8")
    click.echo(json.dumps(rows, indent=2) if as_json else table(rows), file=answer)


if __name__ == "__main__":
    main()
