"""The one sentence that a run's page begins with: what is wrong, or how much was compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from trainsanity_server.pages.formats import count
from trainsanity_server.pages.witness_words import sentence
from trainsanity_server.services.runs import Alert, Run, Verdict

STANDING = ("open", "acknowledged")
NOUNS = {"critical": "contradiction", "warning": "warning", "advice": "piece of advice"}
PLURALS = {"advice": "pieces of advice"}
# Rules about the watching itself: that it goes on says nothing of the training.
OF_THE_WATCHING = ("probe-failed", "run-silent")


@dataclass(frozen=True)
class Headline:
    """Attributes:
    level: "critical", "warning", "advice", "good", or "unknown" where nothing was compared.
    text: the sentence.
    detail: what else there is to know, one sentence or two.
    """

    level: str
    text: str
    detail: str


def headline(run: Run, alerts: Sequence[Alert], verdicts: Sequence[Verdict]) -> Headline:
    standing = [alert for alert in alerts if alert.state in STANDING]
    detail = " ".join(part for part in (_checked(verdicts), _set_aside(alerts)) if part)
    if standing:
        counts = Counter(alert.severity for alert in standing)
        worst = min(standing, key=lambda alert: list(NOUNS).index(alert.severity))
        number = _count(worst.severity, counts.pop(worst.severity))
        also = [_count(severity, counts[severity]) for severity in NOUNS if counts[severity]]
        also_text = f"Also {' and '.join(also)}." if also else ""
        text = f"{number}: {sentence(worst.witnesses) or worst.title}"
        return Headline(worst.severity, text, " ".join(filter(None, (also_text, detail))))
    agreed = [v for v in verdicts if v.verdict == "ok" and v.rule not in OF_THE_WATCHING]
    if not agreed:
        waiting = run.state == "running"
        text = "Nothing could be compared" + (" yet" if waiting else "")
        return Headline("unknown", text, detail)
    so_far = " so far" if not run.settled else ""
    return Headline("good", f"No contradiction found{so_far}", detail)


def _count(severity: str, number: int) -> str:
    return count(number, NOUNS[severity], PLURALS.get(severity, ""))


def _checked(verdicts: Sequence[Verdict]) -> str:
    counts = Counter(verdict.verdict for verdict in verdicts)
    tested = counts["ok"] + counts["alert"]
    if not tested:
        return f"None of {count(len(verdicts), 'rule')} found what it needs."
    untested = counts["not_testable"]
    text = f"{tested} of {count(len(verdicts), 'rule')} compared their witnesses"
    return f"{text}; {untested} could not be tested." if untested else f"{text}."


def _set_aside(alerts: Sequence[Alert]) -> str:
    counts = Counter(alert.state for alert in alerts)
    parts = [f"{counts[state]} {state}" for state in ("muted", "resolved") if counts[state]]
    return f"{' and '.join(parts)}, not counted here.".capitalize() if parts else ""
