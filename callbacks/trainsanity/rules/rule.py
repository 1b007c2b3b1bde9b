"""What a rule is: a pure function from the evidence of a run to findings."""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    from trainsanity.rules.history import RunHistory, RunView


class Severity(enum.StrEnum):
    """How bad a finding is. `critical` is kept for proven contradictions of two measurements."""

    CRITICAL = "critical"
    WARNING = "warning"
    ADVICE = "advice"

    @property
    def rank(self) -> int:
        """0 for the worst."""
        return list(Severity).index(self)


class NotTestable(Exception):  # noqa: N818 - an answer of a rule, not an error
    """The run does not carry what the rule needs; the text says what is missing, for people."""


@dataclass(frozen=True)
class Witness:
    """One number that testifies.

    Attributes:
        name: who says so: a signal's name, or words ("declared output shape").
        value: the number; NaN and infinities are honest values. Text where the fact is no number.
        unit: of the value, e.g. "1" (a share or plain number), "s", "MiB", "positions".
    """

    name: str
    value: float | str
    unit: str = "1"


@dataclass(frozen=True)
class Finding:
    """Two witnesses disagree about one subject.

    Attributes:
        subject: what it is about: a layer, metric, variable or output; one alert per subject.
        title: one line of up to about 80 characters that names subject and trouble.
        message: plain words with both numbers, where, since when, how sure.
        witnesses: two or more; the first is what was shown or declared, the second what is true.
        suggestion: what to change, in the imperative.
        first_step, last_step: first and last step at which they disagreed, in what was looked at.
        count: at how many of the steps looked at they disagreed; 1 for an audit.
        severity: where milder than the rule's own.
        certainty: the tolerance and by how much it was exceeded.
        replaces: subjects of which the same was told before it was known where it comes from.
    """

    subject: str
    title: str
    message: str
    witnesses: tuple[Witness, ...]
    suggestion: str
    first_step: int = 0
    last_step: int = 0
    count: int = 1
    severity: Severity | None = None
    certainty: str = ""
    replaces: tuple[str, ...] = ()

    def after(self, earlier: Finding) -> Finding:
        """One finding of two windows: these words, the steps of both."""
        return replace(
            self,
            first_step=min(earlier.first_step, self.first_step),
            last_step=max(earlier.last_step, self.last_step),
            count=self.counted_after(earlier.count, earlier.last_step),
        )

    def counted_after(self, count: int, last_step: int) -> int:
        """Of how many steps is known, if it was `count` up to `last_step` before.

        A rule counts the steps that are new to it. One that counts more steps than there can be new
        ones speaks of the whole run, and what was counted before is in its count.
        """
        may_be_new = self.count <= self.last_step - last_step
        return count + self.count if may_be_new else max(count, self.count)


class Threshold(NamedTuple):
    """A number that a rule goes by, and the comment that says what it means."""

    name: str
    value: Any
    meaning: str


@dataclass(frozen=True)
class Rule:
    """Base of all rules: subclass it as a frozen dataclass in a file named after the trouble.

    The docstring is the catalogue's text: a first line that says what is wrong, then paragraphs
    that begin with `Compares:`, `Why:`, `Try:` and `Source:`. Fields of the dataclass are
    thresholds, each with a default and a comment that gives its unit.

    `check` may be called any number of times while a run goes on; each call shows the samples that
    are new (`view.rows`), whole-run totals, and audits. It must not keep state, so that a past run
    can be judged again, and must not depend on how the samples were cut into packets.
    """

    id: ClassVar[str]  # the slug of the contract
    severity: ClassVar[Severity]
    # Signals as "quantity/witness" (with * for any quantity) or audits as "audit:name".
    needs: ClassVar[tuple[str, ...]]
    # Advice about training health, off by a switch.
    heuristic: ClassVar[bool] = False
    # The alert resolves when a later check no longer finds its subject.
    heals: ClassVar[bool] = False
    # A faulty history and a healthy one, as near as possible.
    fires_on: ClassVar[Callable[[], RunHistory]]
    quiet_on: ClassVar[Callable[[], RunHistory]]

    def check(self, run: RunView) -> Iterable[Finding]:
        """Compares witnesses.

        Returns:
            Findings; none where the witnesses agree.

        Raises:
            NotTestable: the run does not carry the witnesses.
        """
        raise NotImplementedError

    def findings(self, run: RunView) -> list[Finding]:
        """All that `check` finds. What it has found before it came to something that the run does
        not carry, or not yet, stands: an audit is shown to it as new only once.

        Raises:
            NotTestable: it has found nothing.
        """
        found: list[Finding] = []
        try:
            for finding in self.check(run):
                found.append(finding)
        except NotTestable:
            if not found:
                raise
        return found

    def thresholds(self) -> list[Threshold]:
        """The fields with the comment behind each, or above it."""
        meanings, above = {}, ""
        for line in inspect.getsource(type(self)).splitlines():
            if comment := re.match(r"    # (.+)", line):
                above = f"{above} {comment[1]}".strip()
            else:
                if field := re.match(r"    (\w+): [^#]+(?:# *(.+))?$", line):
                    meanings[field[1]] = field[2] or above
                above = ""
        return [
            Threshold(name, value, meanings.get(name, "")) for name, value in vars(self).items()
        ]

    @classmethod
    def explanation(cls) -> dict[str, str]:
        """The docstring in parts: `summary`, `compares`, `why`, `try`, `source`."""
        text = inspect.getdoc(cls) or ""
        parts = {"summary": ""}
        key = "summary"
        for paragraph in re.split(r"\n\s*\n|\n(?=(?:Compares|Why|Try|Source): )", text):
            words = " ".join(paragraph.split())
            heading = re.match(r"(Compares|Why|Try|Source): ", words)
            if heading:
                key = heading.group(1).lower()
                words = words[heading.end() :]
            parts[key] = f"{parts[key]} {words}".strip() if key in parts else words
        return parts
