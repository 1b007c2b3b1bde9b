from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainsanity.rules.comparison import merged, text
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity, Witness
from trainsanity.wire import Audit


@dataclass(frozen=True)
class ProbeFailed(Rule):
    """A probe of trainsanity was switched off.

    Compares: the probes that were on when the run began with those that still are.

    Why: what that probe measured is not checked any more. No alert then means nothing.

    Try: report it with the traceback, which the run's audits show; training itself is not
    touched.

    Source: our own; a monitor that fails silently is what this product exists to find.
    """

    id = "probe-failed"
    severity = Severity.ADVICE
    needs = ()

    @staticmethod
    def fires_on() -> RunHistory:
        facts = {"probe": "mask_flow", "error": "KeyError: 'add_1'", "traceback": "..."}
        return history(audits=[("probe_failed", 7, facts)])

    @staticmethod
    def quiet_on() -> RunHistory:
        return history(loss__reported=[0.9])

    def check(self, run: RunView) -> list[Finding]:
        audits = run.new_audits("probe_failed") if run.has_audit("probe_failed") else []
        return merged(_finding(audit, audit.facts) for audit in audits)


ERROR_LENGTH = 240  # characters of an error's text; the audit has all of it


def _finding(audit: Audit, facts: Mapping[str, Any]) -> Finding:
    probe, error = text(facts, "probe") or "?", text(facts, "error") or "an unknown error"
    lost = text(facts, "lost")
    cost = f"Training lost {lost} and goes on" if lost else "Training goes on untouched"
    if len(error) > ERROR_LENGTH:  # TensorFlow tells where an operation was made, then what it did
        error = f"{error[: ERROR_LENGTH // 2]} ... {error[-ERROR_LENGTH // 2 :]}"
    return Finding(
        subject=probe,
        title=f"Probe {probe} is off since step {audit.step:,}",
        message=(
            f"trainsanity switched its probe {probe} off at step {audit.step:,}, after it failed "
            f"with {error}. {cost}; what this probe measures is not checked from here on."
        ),
        witnesses=(
            Witness(f"{probe} at the begin", "on"),
            Witness(f"{probe} since step {audit.step:,}", "off"),
        ),
        suggestion="Report it, with the traceback under Audits; rules that need it say so.",
        first_step=audit.step,
        last_step=audit.step,
        certainty="The probe itself raised.",
    )
