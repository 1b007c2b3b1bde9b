"""The catalogue of rules, and each rule explained."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from trainsanity.rules import Severity, all_rules
from trainsanity_server.errors import NotFoundError
from trainsanity_server.pages.render import render

router = APIRouter(prefix="/rules", include_in_schema=False)


@router.get("", name="page_rules")
def rules(request: Request) -> Response:
    by_severity = [
        (severity, [rule for rule in all_rules() if rule.severity == severity])
        for severity in Severity
    ]
    return render(
        request,
        "pages/rules.html",
        groups=[(severity, found) for severity, found in by_severity if found],
    )


@router.get("/{slug}", name="page_rule")
def rule(request: Request, slug: str) -> Response:
    found = next((rule for rule in all_rules() if rule.id == slug), None)
    if found is None:
        raise NotFoundError(f"there is no rule called {slug!r}; the catalogue lists all of them")
    return render(
        request,
        "pages/rule.html",
        here="/rules",
        rule=found,
        parts=found.explanation(),
        thresholds=found.thresholds(),
    )
