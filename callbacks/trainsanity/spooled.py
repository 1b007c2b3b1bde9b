"""A run read back from its spool and judged in this process, without a server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainsanity import wire
from trainsanity.rules import Finding, NotTestable, Rule, RunFacts, RunHistory, all_rules
from trainsanity.spool import Spool


@dataclass
class Judgement:
    """What all rules say about a run.

    Attributes:
        found: by rule and subject, in the order in which they were found first.
        verdicts: rule slug -> ("ok" | "alert" | "not_testable", reason).
    """

    found: dict[tuple[str, str], tuple[Rule, Finding]] = field(default_factory=dict)
    verdicts: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def findings(self) -> list[tuple[Rule, Finding]]:
        return list(self.found.values())

    def add(self, rule: Rule, finding: Finding) -> None:
        """What is known more exactly, or once more, takes the place of what was told before."""
        for subject in finding.replaces:
            self.found.pop((rule.id, subject), None)
        key = (rule.id, finding.subject)
        _, earlier = self.found.get(key, (rule, None))
        self.found[key] = (rule, finding if earlier is None else finding.after(earlier))

    def of(self, slug: str) -> list[Finding]:
        return [finding for rule, finding in self.findings if rule.id == slug]

    def at_least(self, severity: str) -> list[tuple[Rule, Finding]]:
        """Findings as bad as this or worse."""
        order = ["critical", "warning", "advice"]
        worst = order[: order.index(severity) + 1]
        return [(r, f) for r, f in self.findings if (f.severity or r.severity) in worst]


@dataclass
class SpooledRun:
    """All packets of one run."""

    packets: list[wire.Packet]

    @classmethod
    def read(cls, path: Path) -> SpooledRun:
        spool = Spool(path)
        try:
            return cls([wire.decode(spool.read(seq)) for seq in range(spool.next_seq)])
        finally:
            spool.close()

    def signal(self, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Steps and float64 values of a signal, both of shape (n,), in the order of the steps;
        empty where it has none.
        """
        steps, values = [], []
        for packet in self.packets:
            for block in packet.blocks:
                if name in block.names:
                    steps.append(block.steps)
                    values.append(block.values[block.names.index(name)].astype(np.float64))
        if not steps:
            return np.empty(0, np.int64), np.empty(0)
        joined = np.concatenate(steps)
        # A packet puts together what is of the same signals, not what is of neighbouring steps.
        order = np.argsort(joined, kind="stable")
        return joined[order], np.concatenate(values)[order]

    @property
    def names(self) -> set[str]:
        return {n for packet in self.packets for block in packet.blocks for n in block.names}

    def audits(self, name: str) -> list[wire.Audit]:
        return [a for packet in self.packets for a in packet.audits if a.name == name]

    def judge(self) -> Judgement:
        """Every rule over the run, packet by packet as a server would see it."""
        history = RunHistory()
        judgement = Judgement()
        for packet in self.packets:
            history.facts = _facts(self.packets[0], packet)
            for block in packet.blocks:
                history.append(block)
            for audit in packet.audits:
                history.add_audit(audit)
            for rule in self._rules(history.facts):
                _apply(rule, history, judgement)
            history.mark_judged()
        return judgement

    @staticmethod
    def _rules(facts: RunFacts) -> Iterator[Rule]:
        ignored = set(facts.expect.get("ignore", ()))
        return (rule for rule in all_rules() if rule.id not in ignored)


def _facts(first: wire.Packet, packet: wire.Packet) -> RunFacts:
    header = first.run or {}
    return RunFacts(
        id=packet.run_id,
        project=header.get("project", "default"),
        name=header.get("name", ""),
        kind=header.get("kind", "fit"),
        state=packet.state,
        backend=header.get("backend", ""),
        keras_version=header.get("keras_version", ""),
        expect=header.get("expect", {}),
        started_at=header.get("started_at", first.time),
        last_seen_at=packet.time,
        ended_at=packet.time if packet.state != "running" else None,
        silent_after=packet.silent_after,
        step=packet.step,
        now=packet.time,
    )


def _apply(rule: Rule, history: RunHistory, judgement: Judgement) -> None:
    known = judgement.verdicts.get(rule.id, ("", ""))[0]
    try:
        findings = rule.findings(history.view())
    except NotTestable as reason:
        if known in ("", "not_testable"):
            judgement.verdicts[rule.id] = ("not_testable", str(reason))
        return
    for finding in findings:
        judgement.add(rule, finding)
    if findings:
        judgement.verdicts[rule.id] = ("alert", findings[-1].title)
    elif known != "alert":
        judgement.verdicts[rule.id] = ("ok", "")
