from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from trainsanity.rules.comparison import maps, measured, merged, number, whole
from trainsanity.rules.epoch_losses import epoch_losses
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.rules.variables import Variable, by_subject, named, variables
from trainsanity.wire import Audit

APPLIED = "learning_rate/applied"


@dataclass(frozen=True)
class _Epoch:
    """The weights over one epoch, and the loss that was shown for it; 0 where none was."""

    audit: Audit
    variables: list[Variable]
    loss: float
    is_new: bool

    @property
    def step(self) -> int:
        return self.audit.step

    @property
    def moves(self) -> bool:
        return any((v.moved or 0.0) > 0.0 for v in self.variables if v.training)

    @functools.cached_property
    def still(self) -> set[str]:
        return {v.path for v in self.variables if _is_still(v, self.audit)}

    @functools.cached_property
    def is_flat(self) -> bool:
        """Whether all weights get a gradient of 0, at a loss other than 0: one of 0 is a hinge that
        is satisfied.
        """
        trained = [v for v in self.variables if v.training and v.in_optimizer]
        reached = [v for v in trained if v.connected is not False]
        known = [v.gradient_largest for v in reached if v.gradient_largest is not None]
        unknown_move = any(v.moved for v in reached if v.gradient_largest is None)
        return self.loss != 0 and bool(known) and not any(known) and not unknown_move


@dataclass(frozen=True)
class DeadWeights(Rule):
    """Trainable weights that do not learn.

    Compares: the `trainable` flag of each weight and how far it moved in an epoch of many
    updates with a learning rate above 0; beside it, whether and how large a gradient reached
    it. Where all gradients are exactly 0: the loss, which is not.

    Why: a head without a loss, a layer behind a broken gradient, a relu at the end that is 0
    from the start, or a backbone unfrozen after
    compile keeps its random or old weights, and the rest of the network learns around it.

    Try: check which output each loss goes to; compile again after changing `trainable`.

    Source: TensorFlow issues 37887 (loss on the wrong output), 27455 (no gradient through an
    activation).
    """

    id = "dead-weights"
    severity = Severity.WARNING
    needs = ("audit:weights",)

    # Optimizer updates in epochs in a row: zero-initialised branches (LoRA, ReZero) need one or two
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
        epochs = self._epochs(run)
        # Where nothing at all moves, no weight is dead beside the others.
        moving = [e for e in epochs if e.moves]
        if max(_updates(moving), _updates(e for e in epochs if e.is_flat)) < self.updates:
            raise NotTestable(
                f"no {self.updates} updates yet at a learning rate above 0 in epochs in which any "
                "weight moved, or none could"
            )
        found: list[Finding] = []
        for at, epoch in enumerate(moving):
            if epoch.is_new and not epoch.is_flat:
                found += self._check(run, moving[: at + 1])
        for at, epoch in enumerate(epochs):
            streak = _streak(epochs[: at + 1], lambda e: e.is_flat)
            if epoch.is_new and self._lasts(streak):
                found.append(self._nothing_learns(run, streak))
        return merged(found)

    def _epochs(self, run: RunView) -> list[_Epoch]:
        """New epochs with updates, and as many before them as can matter."""
        if run.has(APPLIED) and not run.totals(APPLIED).max > 0:
            return []
        new = run.new_audits("weights")
        audits = [a for a in run.audits("weights") if whole(a.facts, "updates")]
        shown = run.has_audit("epoch")
        losses = {e.step: e.loss for e in epoch_losses(run)} if shown else {}
        return [
            _Epoch(a, variables(a.facts), losses.get(a.step, 0.0), a in new)
            for a in audits[-len(new) - self.updates :]
        ]

    def _lasts(self, streak: list[_Epoch]) -> bool:
        return len(streak) >= self.resting_epochs and _updates(streak) >= self.updates

    def _check(self, run: RunView, epochs: list[_Epoch]) -> Iterator[Finding]:
        every = epochs[-1].variables
        streaks = _still_since(epochs)
        still = [v for v in every if _updates(streaks.get(v.path, [])) >= self.updates]
        milder = Severity.ADVICE if _own_step(run) else None
        cut_off = [v for v in still if not v.in_optimizer or v.connected is False]
        for subject, group in by_subject(cut_off).items():
            yield self._cut_off(streaks[group[0].path], subject, group, milder)
        lasting = [v for v in still if v not in cut_off and self._lasts(streaks[v.path])]
        moving = {v.layer for v in every if v.training and v not in lasting}
        for subject, group in by_subject(v for v in lasting if not v.gradient_largest).items():
            beside = all(v.layer in moving for v in group)
            streak = streaks[group[0].path]
            yield self._zero(run, streak, subject, group, milder, beside=beside)
        for subject, group in by_subject(v for v in lasting if v.gradient_largest).items():
            yield self._stuck(streaks[group[0].path], subject, group)

    def _nothing_learns(self, run: RunView, streak: list[_Epoch]) -> Finding:
        """The loss is not 0, and no weight at all gets a gradient."""
        updates, dead, loss = _updates(streak), _dead_layers(run), streak[-1].loss
        ends = [end for end in ("outputs/min", "outputs/max") if run.has(end)]
        values = {run.totals(end).max for end in ends} | {run.totals(end).min for end in ends}
        if dead:
            where = f"Every unit of {', '.join(dead[:3])} is 0 for all samples looked at."
        elif len(values) == 1:
            where = f"Every output has been {number(values.pop())} since training began."
        else:
            where = "An activation is at its flat end, or an operation is flat (round, argmax)."
        return Finding(
            subject=dead[-1] if dead else "model",
            title="Nothing learns: the gradient of every weight is exactly 0",
            message=(
                f"The loss is {number(loss)}, and in {updates:,} updates up to step "
                f"{streak[-1].step:,} no trainable weight got a gradient other than 0. {where}"
            ),
            witnesses=(Witness("loss", loss), Witness("largest gradient", 0.0)),
            suggestion="Look between the last weights and the loss; take relu off the last layer, "
            "or start it where its units are above 0.",
            first_step=streak[0].step,
            last_step=streak[-1].step,
            severity=Severity.ADVICE if _own_step(run) else None,
            certainty=f"Every gradient is exactly 0 in {updates:,} updates; {self.updates} are "
            "needed.",
        )

    def _cut_off(
        self, streak: list[_Epoch], subject: str, group: list[Variable], severity: Severity | None
    ) -> Finding:
        unknown = not any(v.in_optimizer for v in group)
        cause = (
            "The optimizer does not know them: they were created or unfrozen after compile()."
            if unknown
            else "No path leads from the loss to them: their output has no loss, or the graph is "
            "cut (an integer operation, numpy, stop_gradient)."
        )
        return self._finding(
            streak,
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
        streak: list[_Epoch],
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
        elif not all(v.connected for v in group):
            cause = "Whether a gradient arrives was not measured."
        else:
            cause = (
                "A gradient arrives and is 0 everywhere: a loss weight of 0, a custom gradient, "
                "or an operation that is flat (round, sign, argmax)."
            )
            if run.facts.backend == "jax":
                cause += (
                    " On JAX so does a weight that no path leads to from the loss: an output "
                    "without a loss, stop_gradient."
                )
        known = all(v.gradient_largest == 0.0 for v in group)
        connected = all(v.connected for v in group)
        found = "never move, though connected to the loss" if connected else "never move"
        return self._finding(
            streak,
            subject,
            group,
            "get a gradient of exactly 0" if known else found,
            cause,
            "Look at the layers between these weights and the loss, the nearest first.",
            Witness("largest gradient", 0.0)
            if known
            else Witness("connected to the loss", "yes" if connected else "not measured"),
            Severity.ADVICE if dead or beside else severity,
        )

    def _stuck(self, streak: list[_Epoch], subject: str, group: list[Variable]) -> Finding:
        largest = max(v.gradient_largest or 0.0 for v in group)
        return self._finding(
            streak,
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
        streak: list[_Epoch],
        subject: str,
        group: list[Variable],
        what: str,
        cause: str,
        suggestion: str,
        gradient: Witness,
        severity: Severity | None,
    ) -> Finding:
        step, updates = streak[-1].step, _updates(streak)
        return Finding(
            subject=subject,
            title=f"{subject}: trainable weights {what}",
            message=(
                f"{named(group)} are trainable, but moved by 0 in {updates:,} updates up to step "
                f"{step:,}: they {what}. {cause}"
            ),
            witnesses=(
                Witness("trainable flag", "True"),
                Witness(f"{group[0].path} largest movement", 0.0),
                gradient,
            ),
            suggestion=suggestion,
            first_step=step,
            last_step=step,
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


def _updates(epochs: Iterable[_Epoch]) -> int:
    return sum(whole(epoch.audit.facts, "updates") or 0 for epoch in epochs)


def _streak(epochs: list[_Epoch], holds: Callable[[_Epoch], bool]) -> list[_Epoch]:
    """The last epochs in a row of which something holds."""
    return list(itertools.takewhile(holds, reversed(epochs)))[::-1]


def _still_since(epochs: list[_Epoch]) -> dict[str, list[_Epoch]]:
    """Path of a weight that stands still now -> the epochs in a row in which it has."""

    def since(path: str) -> list[_Epoch]:
        return _streak(epochs, lambda epoch: path in epoch.still)

    return {path: since(path) for path in epochs[-1].still}


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
