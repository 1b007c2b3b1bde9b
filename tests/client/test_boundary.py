"""Nothing of ours gets through to the user's training."""

from __future__ import annotations

import pytest

from trainsanity.boundary import Boundary


def test_a_failure_is_told_once_and_the_part_is_off(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    boundary = Boundary(lambda part, error, text: told.append(f"{part}: {error}"))

    results = [boundary.call("masks", int, "no number", default=7) for _ in range(2)]

    assert results == [7, 7]
    assert told == ["masks: invalid literal for int() with base 10: 'no number'"]
    assert len(caplog.messages) == 1
    # The name of the logger goes before it.
    assert caplog.messages[0].startswith("masks failed and is off for the rest of this run; ")
