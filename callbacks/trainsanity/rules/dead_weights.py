from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trainsanity.rules.comparison import maps, measured, merged, number, whole
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.rules.variables import Variable, by_subject, named, variables
from trainsanity.wire import Audit

APPLIED = "learning_rate/applied"


@dataclass(frozen=True)
class DeadWeights(Rule):
    """Trainable weights that do not learn.

    Compares: the `trainable` flag of each weight and how far it moved in an epoch of many
    updates with a learning rate above 0; beside it, whether and how large a gradient reached
    it.

    Why: a head without a loss, a layer behind a broken gradient, or a backbone unfrozen after
    compile keeps its random or old weights, and the rest of the network learns around it.

    Try: check which output each loss goes to; compile again after changing `trainable`.

    Source: TensorFlow issues 37887 (loss on the wrong output), 27455 (no gradient through an
    activation).
    """

    id = "dead-weights"
    severity = Severity.WARNING
    needs = ("audit:weights",)

    # Optimizer updates in the epoch: zero-initialised branches (LoRA, ReZero) need one or two
    # before a gradient gets through; five times that.
    updates: int = 10
    # Epochs in a row, where a gradient exists and is exactly 0: a task may rest for one epoch.
    resting_epochs: int = 2

    @staticmethod
    def fires_on() -> RunHistory:
        """Two heads, and the loss list gives one of them nothing."""
        head = _WEIGHT | {"path": "head/kernel", "layer": "head", "moved": 0.0, "gradient": False}
        return history(audits=[("weights", 50, {"variables": [_WEIGHT, head], "updates": 50})])

    @staticmethod
    def quiet_on() -> RunHistory:
        """The same head, frozen; and an embedding of which only unseen rows were looked at."""
        head = _WEIGHT | {"path": "head/kernel", "moved": 0.0, "trainable": False}
        table = _WEIGHT | {
            "path": "ids/embeddings",
            "class": "Embedding",
            "size": 640,
            "moved": 0.0,
        }
        facts = {"variables": [_WEIGHT, head, table], "updates": 50, "sampled": 64}
        return history(audits=[("weights", 50, facts)])

    def check(self, run: RunView) -> list[Finding]:
        measured(run, "weights")
        usable = [a for a in run.audits("weights") if self._usable(run, a)]
        if not usable:
            raise NotTestable(
                f"no epoch yet with at least {self.updates} updates at a learning rate above 0 "
                "in which any weight moved"
            )
        new = run.new_audits("weights")
        found: list[Finding] = []
        for at, audit in enumerate(usable):
            if audit in new:
                found += self._check(run, audit, usable[max(0, at - self.resting_epochs + 1) : at])
        return merged(found)

    def _usable(self, run: RunView, audit: Audit) -> bool:
        rate = run.totals(APPLIED).max if run.has(APPLIED) else 1.0
        # Where nothing at all moves, no weight is dead beside the others: a loss of exactly 0
        # (a hinge that is satisfied), or a learning rate of 0.
        anything = any((v.moved or 0.0) > 0.0 for v in variables(audit.facts) if v.training)
        return (whole(audit.facts, "updates") or 0) >= self.updates and rate > 0 and anything

    def _check(self, run: RunView, audit: Audit, before: list[Audit]) -> Iterator[Finding]:
        every = variables(audit.facts)
        still = [v for v in every if _is_still(v, audit)]
        milder = Severity.ADVICE if _own_step(run) else None
        cut_off = [v for v in still if not v.in_optimizer or v.connected is False]
        for subject, group in by_subject(cut_off).items():
            yield self._cut_off(audit, subject, group, milder)
        if len(before) < self.resting_epochs - 1:
            return
        earlier = [{v.path for v in variables(a.facts) if _is_still(v, a)} for a in before]
        lasting = [
            v for v in still if v not in cut_off and all(v.path in paths for paths in earlier)
        ]
        moving = {v.layer for v in every if v.training and v not in lasting}
        for subject, group in by_subject(v for v in lasting if not v.gradient_largest).items():
            beside = all(v.layer in moving for v in group)
            yield self._zero(run, audit, subject, group, milder, beside=beside)
        for subject, group in by_subject(v for v in lasting if v.gradient_largest).items():
            yield self._stuck(audit, subject, group)

    def _cut_off(
        self, audit: Audit, subject: str, group: list[Variable], severity: Severity | None
    ) -> Finding:
        unknown = not any(v.in_optimizer for v in group)
        cause = (
            "The optimizer does not know them: they were created or unfrozen after compile()."
            if unknown
            else "No path leads from the loss to them: their output has no loss, or the graph is "
            "cut (an integer operation, numpy, stop_gradient)."
        )
        return self._finding(
            audit,
            subject,
            group,
            "get no gradient",
            cause,
            "Call compile() again after unfreezing."
            if unknown
            else "Check which output each loss belongs to; freeze the layer if it is not needed.",
            Witness("in the optimizer", "no")
            if unknown
            else Witness("connected to the loss", "no"),
            severity,
        )

    def _zero(
        self,
        run: RunView,
        audit: Audit,
        subject: str,
        group: list[Variable],
        severity: Severity | None,
        *,
        beside: bool,
    ) -> Finding:
        """
        Args:
            beside: other weights of the same layers move, so a gradient reaches these layers.
        """
        dead = _dead_layers(run)
        if beside:
            cause = (
                "Other weights of the layer move, so a gradient reaches it: what these add cancels "
                "out further on (a bias before a difference), or a constraint holds them."
            )
        elif dead:
            cause = (
                f"Every unit of {', '.join(dead[:3])} is 0 for all samples looked at, which stops "
                "all gradients there."
            )
        else:
            cause = (
                "A gradient arrives and is 0 everywhere: a loss weight of 0, a custom gradient, "
                "or an operation that is flat (round, sign, argmax)."
            )
        known = all(v.gradient_largest == 0.0 for v in group)
        return self._finding(
            audit,
            subject,
            group,
            "get a gradient of exactly 0" if known else "never move, though connected to the loss",
            cause,
            "Look at the layers between these weights and the loss, the nearest first.",
            Witness("largest gradient", 0.0) if known else Witness("connected to the loss", "yes"),
            Severity.ADVICE if dead or beside else severity,
        )

    def _stuck(self, audit: Audit, subject: str, group: list[Variable]) -> Finding:
        largest = max(v.gradient_largest or 0.0 for v in group)
        return self._finding(
            audit,
            subject,
            group,
            f"do not move, with gradients of {number(largest)}",
            "The update is rounded away (half-precision weights, a tiny learning rate), undone by "
            "a constraint, or never applied.",
            "Keep the weights in float32 (a mixed_* policy), and check constraints and train_step.",
            Witness("largest gradient", largest),
            Severity.ADVICE,
        )

    def _finding(
        self,
        audit: Audit,
        subject: str,
        group: list[Variable],
        what: str,
        cause: str,
        suggestion: str,
        gradient: Witness,
        severity: Severity | None,
    ) -> Finding:
        updates = whole(audit.facts, "updates") or 0
        return Finding(
            subject=subject,
            title=f"{subject}: trainable weights {what}",
            message=(
                f"{named(group)} are trainable, but moved by 0 in {updates:,} updates up to step "
                f"{audit.step:,}: they {what}. {cause}"
            ),
            witnesses=(
                Witness("trainable flag", "True"),
                Witness(f"{group[0].path} largest movement", 0.0),
                gradient,
            ),
            suggestion=suggestion,
            first_step=audit.step,
            last_step=audit.step,
            severity=severity,
            certainty=f"Movement is exactly 0 over {updates:,} updates; {self.updates} are needed.",
        )


def _is_still(variable: Variable, audit: Audit) -> bool:
    sampled = whole(audit.facts, "sampled")
    whole_seen = sampled is None or (variable.size is not None and sampled >= variable.size)
    if not variable.training or variable.moved != 0.0:
        return False
    # Rows of a table whose ids never came, or inputs that are always 0 (the corner of an image),
    # stand still: a sample may hold nothing else. What holds for all elements settles it.
    all_known = variable.connected is False or variable.gradient_largest == 0.0
    return all_known or whole_seen or not variable.in_optimizer


def _own_step(run: RunView) -> bool:
    """A train_step of the user's may leave out what it likes, such as a teacher."""
    return run.has_audit("compile") and bool(run.audit("compile").facts.get("custom_train_step"))


def _dead_layers(run: RunView) -> list[str]:
    if not run.has_audit("units"):
        return []
    rows = maps(run.audit("units").facts, "layers")
    return [str(r.get("name")) for r in rows if r.get("dead") and r.get("dead") == r.get("units")]


_WEIGHT = {
    "path": "dense/kernel",
    "layer": "dense",
    "class": "Dense",
    "trainable": True,
    "trainable_begin": True,
    "by_nature": True,
    "in_optimizer": True,
    "moved": 0.1,
    "gradient": True,
    "gradient_largest": 0.5,
}
