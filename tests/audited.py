"""Audits in tests: every one of them, however busy the machine is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from trainsanity import sample_audits


@pytest.fixture(scope="module", autouse=True)
def unhurried_audits() -> Iterator[None]:
    """A user's training gives audits little time; what a test looks for must have been audited."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_audits, "LAST_SECONDS", 300.0)
        patch.setattr(sample_audits, "MOST_SECONDS", 300.0)
        yield
