from __future__ import annotations

from dataclasses import dataclass

from trainsanity.rules.comparison import measured, merged, number, text, whole
from trainsanity.rules.difference import Difference
from trainsanity.rules.history import RunFacts, RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.wire import Audit


@dataclass(frozen=True)
class Nondeterminism(Rule):
    """Two replicas from one seed end with different weights.

    Compares: the weights of two short trainings of a copy of the model, from the same seed and
    on the same batches, where `Expect(deterministic=True)` was declared.

    Why: results cannot be repeated, and a change that you measure may be chance.

    Try: seed every generator (`keras.random.SeedGenerator(seed)`), and call
    keras.utils.set_random_seed and keras.config's or the backend's switch for deterministic
    kernels.

    Source: TensorFlow issue 38197.
    """

    id = "nondeterminism"
    severity = Severity.CRITICAL
    needs = ("audit:replicas",)

    @staticmethod
    def fires_on() -> RunHistory:
        return _example("a1b2", largest=1e-3)

    @staticmethod
    def quiet_on() -> RunHistory:
        return _example("77f0", largest=0.0)

    def check(self, run: RunView) -> list[Finding]:
        if not run.expects("deterministic", False):
            raise NotTestable("determinism was not declared with Expect(deterministic=True)")
        return merged(_finding(a) for a in measured(run, "replicas") if _differ(a))


def _differ(audit: Audit) -> bool:
    hashes = audit.facts.get("hashes")
    return isinstance(hashes, (list, tuple)) and len(hashes) == 2 and hashes[0] != hashes[1]


def _finding(audit: Audit) -> Finding:
    hashes, difference = audit.facts["hashes"], Difference.of(audit.facts)
    steps = whole(audit.facts, "steps") or 0
    first = text(audit.facts, "first_variable")
    apart = f" They differ by up to {number(difference.largest)}." if difference else ""
    return Finding(
        subject="weights",
        title=f"Two replicas from one seed differ after {steps:,} steps",
        message=(
            f"Determinism was declared, but two copies of the model, trained for {steps:,} steps "
            f"from one seed on the same batches, ended with different weights.{apart}"
            + (f" The first to part is {first}." if first else "")
            + " A layer draws from a generator without a seed, or a kernel adds in any order."
        ),
        witnesses=(
            Witness("hash of the first replica", str(hashes[0])),
            Witness("hash of the second replica", str(hashes[1])),
        ),
        suggestion="Seed the generator of the layer named, or switch on deterministic kernels.",
        first_step=audit.step,
        last_step=audit.step,
        certainty="Deterministic training is bit-identical, so any difference counts.",
    )


def _example(second_hash: str, largest: float) -> RunHistory:
    facts = {
        "steps": 5,
        "hashes": ["77f0", second_hash],
        "difference": {"largest": largest, "scale": 1.0, "elements": 640, "dtype": "float32"},
        "first_variable": "dense/kernel",
    }
    return history(facts=RunFacts(expect={"deterministic": True}), audits=[("replicas", 5, facts)])
