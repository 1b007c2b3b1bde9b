"""All probes, found by walking this folder: one file is one probe."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from trainsanity.probes.probe import Probe

# Files of this folder that hold what several probes share.
NO_PROBES = {"probe", "weighting"}


@functools.cache
def all_probes() -> tuple[type[Probe], ...]:
    """Every probe class, sorted by file name."""
    found: list[type[Probe]] = []
    for module_info in pkgutil.iter_modules(__path__):
        if module_info.name in NO_PROBES:
            continue
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        found.extend(
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, Probe)
            and value is not Probe
            and value.__module__ == module.__name__
        )
    return tuple(found)
