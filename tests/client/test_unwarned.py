"""Warnings of ours are kept quiet, those of the user are not, and the filters stay as they are."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from trainsanity import unwarned
from trainsanity.boundary import Boundary


class Training:
    """Something that may own the filter."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.boundary = Boundary(lambda part, error, text: self.failures.append(text))
        unwarned.begin(self)

    def warn(self) -> Any:
        return self.boundary.call("probe", _warn)

    def end(self) -> None:
        unwarned.end(self)


def _warn() -> str:
    warnings.warn("is this yours?", DeprecationWarning, stacklevel=1)
    return "went on"


@pytest.mark.filterwarnings("error")
def test_ours_end_no_probe_where_warnings_are_errors_and_the_users_still_do() -> None:
    training = Training()
    assert training.warn() == "went on"
    with pytest.raises(DeprecationWarning):
        _warn()
    with pytest.raises(DeprecationWarning), ThreadPoolExecutor(1) as other:
        other.submit(_warn).result()
    training.end()
    assert training.failures == []


@pytest.mark.filterwarnings("always")
def test_what_a_function_of_the_users_warns_of_is_shown() -> None:
    training = Training()
    with pytest.warns(DeprecationWarning, match="yours"):
        training.boundary.call("on_alert", unwarned.theirs, _warn)
    training.end()


def test_the_filters_are_as_before_in_whatever_order_trainings_end() -> None:
    before = list(warnings.filters)
    first, second = Training(), Training()
    first.end()
    assert second.warn() == "went on"
    second.end()
    second.end()
    assert list(warnings.filters) == before


@pytest.mark.filterwarnings("default")
def test_what_was_shown_once_is_not_shown_again(recwarn: pytest.WarningsRecorder) -> None:
    for _ in range(3):
        training = Training()
        training.warn()
        _warn()
        training.end()
    assert len(recwarn) == 1
