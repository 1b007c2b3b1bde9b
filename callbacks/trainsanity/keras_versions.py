"""The versions of Keras whose training can be watched; both ends are tested."""

from __future__ import annotations

# 3.7 gave compiled losses and metrics the form in which the callback looks at them.
LOWEST_KERAS = (3, 7)
NEWEST_KERAS = (3, 15)  # the newest minor version that the tests run on


def minor_version(version: str) -> tuple[int, ...]:
    """(3, 15) of "3.15.1"."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def why_too_old(version: str) -> str | None:
    """Why training by this version of Keras cannot be watched, and what to do; None where it
    can.
    """
    if minor_version(version) >= LOWEST_KERAS:
        return None
    lowest = ".".join(map(str, LOWEST_KERAS))
    return (
        f"Keras {lowest} or newer is needed to watch training. Received: keras {version}. "
        f'Training goes on without evidence; pip install --upgrade "keras>={lowest}" gives some.'
    )
