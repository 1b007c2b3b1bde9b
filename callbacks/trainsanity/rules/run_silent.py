from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trainsanity.rules.comparison import number
from trainsanity.rules.history import RunFacts, RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness


@dataclass(frozen=True)
class RunSilent(Rule):
    """A run stopped reporting without saying that it ended.

    Compares: the time by which the run promised to report again with the time that has passed.

    Why: the process may have been killed (out of memory, a reboot, a lost node), and a queue
    waits for nothing.

    Try: look at the machine. What the run has not sent yet is in its spool; `trainsanity sync`
    sends it.

    Source: the run's own promise, which follows its usual interval; the alert resolves by
    itself when the run speaks again.
    """

    id = "run-silent"
    severity = Severity.WARNING
    heals = True
    needs = ()

    grace: float = 15.0  # s, for the network, and for the clock of a busy machine

    @staticmethod
    def fires_on() -> RunHistory:
        return history(facts=RunFacts(last_seen_at=1000.0, silent_after=60.0, now=1300.0, step=90))

    @staticmethod
    def quiet_on() -> RunHistory:
        """A long validation, of which the run has warned."""
        return history(facts=RunFacts(last_seen_at=1000.0, silent_after=600.0, now=1300.0, step=90))

    def check(self, run: RunView) -> Iterator[Finding]:
        facts = run.facts
        if facts.now <= 0 or facts.last_seen_at <= 0:
            raise NotTestable("judged without a clock")
        silence = facts.now - facts.last_seen_at
        if facts.ended or silence <= facts.silent_after + self.grace:
            return
        yield Finding(
            subject="run",
            title=f"No word for {_time(silence)}; promised within {_time(facts.silent_after)}",
            message=(
                f"The run last reported at step {facts.step:,} and promised to report again within "
                f"{_time(facts.silent_after)}; {_time(silence)} have passed. It was killed, hangs, "
                "or cannot reach the server. This alert resolves when it speaks again."
            ),
            witnesses=(
                Witness("promised", facts.silent_after, "s"),
                Witness("silent for", silence, "s"),
            ),
            suggestion="Look at the process; `trainsanity sync` sends what it has spooled.",
            first_step=facts.step,
            last_step=facts.step,
            certainty=f"{number(self.grace)} s more than promised are allowed.",
        )


def _time(seconds: float) -> str:
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{number(seconds / size, 2)} {unit}"
    return f"{number(round(seconds))} s"
