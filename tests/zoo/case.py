"""One silent failure made again, and its healthy twin."""

from __future__ import annotations

import fnmatch
import importlib
import pkgutil
import time
from collections.abc import Callable
from dataclasses import dataclass

import keras
from tests.zoo import bugs
from tests.zoo.study import BUGS

from trainsanity.rules import Finding
from trainsanity.spooled import Judgement, SpooledRun


@dataclass(frozen=True)
class Case:
    """A failure that a user can have, trained for real.

    Attributes:
        bugs: ids in the study, or of a founding case, that are this failure.
        title: what is wrong, in one line.
        rule: slug of the rule that has to speak.
        subject: shell pattern of what the finding has to be about: a layer, metric, variable ...
        in_words: the rule compares words (shapes, flags, names, hashes), not two numbers.
        faulty, healthy: train the model with the failure, and one as near as possible without.
        advice: the rule speaks as advice, as it is a matter of taste.
        caught: False where no rule finds it today; then `not_reachable` says why.
        not_reachable: what of the original failure lies outside this case.
        live: the installed Keras has this failure; nothing had to be put in.
    """

    bugs: tuple[str, ...]
    title: str
    rule: str
    subject: str
    faulty: Callable[[], SpooledRun]
    healthy: Callable[[], SpooledRun]
    in_words: bool = False
    advice: bool = False
    caught: bool = True
    not_reachable: str = ""
    live: bool = False

    @property
    def name(self) -> str:
        return self.faulty.__module__.rpartition(".")[2]


@dataclass(frozen=True)
class Outcome:
    """What the rules said about both runs."""

    case: Case
    found: list[Finding]  # of the named rule, on the named subject
    others: list[str]  # other rules that spoke about the faulty run at warning or above
    twin: list[str]  # what was said about the twin at warning or above
    seconds: float

    @property
    def is_caught(self) -> bool:
        return bool(self.found)

    @property
    def is_twin_silent(self) -> bool:
        return not self.twin

    @property
    def first_step(self) -> int | None:
        return min((finding.first_step for finding in self.found), default=None)


def run(case: Case) -> Outcome:
    """Trains both and judges them."""
    begun = time.perf_counter()
    faulty, healthy = _judged(case.faulty), _judged(case.healthy)
    seconds = time.perf_counter() - begun
    spoke = {rule.id for rule, _ in faulty.at_least("warning")}
    return Outcome(
        case=case,
        found=_found(case, faulty),
        others=sorted(spoke - {case.rule}),
        twin=[f"{rule.id}: {finding.message}" for rule, finding in healthy.at_least("warning")],
        seconds=seconds,
    )


def _judged(train: Callable[[], SpooledRun]) -> Judgement:
    """Each run begins with a clean session and one seed."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(7)
    return train().judge()


def _found(case: Case, judgement: Judgement) -> list[Finding]:
    least = "advice" if case.advice else "warning"
    return [
        finding
        for rule, finding in judgement.at_least(least)
        if rule.id == case.rule and fnmatch.fnmatchcase(finding.subject, case.subject)
    ]


def all_cases() -> list[Case]:
    """The `CASE` of every file under `bugs`, in the order of the study."""
    names = [module.name for module in pkgutil.iter_modules(bugs.__path__)]
    cases = [importlib.import_module(f"{bugs.__name__}.{name}").CASE for name in names]
    order = {bug: place for place, bug in enumerate(BUGS)}
    return sorted(cases, key=lambda case: order[case.bugs[0]])
