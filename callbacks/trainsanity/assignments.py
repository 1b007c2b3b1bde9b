"""Who assigns to Keras variables, as long as anybody wants to know."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from keras.src.backend.common.variables import Variable

from trainsanity.overheard import Function, Overheard


def _telling(original: Function, listeners: Sequence[Function]) -> Function:
    @functools.wraps(original)
    def assign(self: Any, value: Any) -> Any:
        for listener in tuple(listeners):
            listener(self)
        return original(self, value)

    return assign


# Calls `listener(variable)` before every assignment. A class is wrapped, as copies of a variable
# would carry a wrapper of its own along.
assignments = Overheard(Variable, "assign", _telling)
