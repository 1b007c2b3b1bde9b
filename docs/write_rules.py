"""Writes docs/rules.md from the rules themselves: `make docs`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainsanity.rules import Rule, all_rules

PAGE = Path(__file__).parent / "rules.md"
HEADING = """# Rules

Written from the rules by `make docs`; `trainsanity rules SLUG` prints the same.
[Verdicts and alerts explained](verdicts.md) tells what the severities mean.
"""


def page() -> str:
    """The whole page."""
    rules = all_rules()
    return "\n".join([HEADING, *_overview(rules), *(line for r in rules for line in _section(r))])


def _overview(rules: tuple[Rule, ...]) -> Iterator[str]:
    yield "| rule | severity | what is wrong |"
    yield "| --- | --- | --- |"
    for rule in rules:
        summary = rule.explanation()["summary"].replace("|", "\\|")
        yield f"| [`{rule.id}`](#{rule.id}) | {rule.severity} | {summary} |"


def _section(rule: Rule) -> Iterator[str]:
    parts = rule.explanation()
    yield f"\n## {rule.id}\n"
    yield f"*{rule.severity}.* {parts.pop('summary')}"
    for heading, words in parts.items():
        yield f"\n**{heading.capitalize()}**: {words}"
    yield f"\n**Needs**: {', '.join(f'`{need}`' for need in rule.needs)}"
    if thresholds := rule.thresholds():
        yield "\n**Thresholds**:\n"
        for each in thresholds:
            yield f"- `{each.name} = {each.value}`: {each.meaning}"


if __name__ == "__main__":
    PAGE.write_text(page() + "\n", encoding="utf-8")
    print(f"{PAGE}: {len(all_rules())} rules")
