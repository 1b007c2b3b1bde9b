"""The probes of a run, called through the boundary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from trainsanity.boundary import Boundary
from trainsanity.errors import CannotAudit
from trainsanity.probes.probe import Probe


class Listeners:
    """Calls the probes that override a hook; those that do not cost nothing."""

    def __init__(self, probes: list[Probe], boundary: Boundary) -> None:
        self._probes = probes
        self._boundary = boundary
        self._hooks: dict[str, list[tuple[Probe, Callable[..., Any]]]] = {}
        self._turns: dict[tuple[str, bool], list[tuple[Probe, Callable[..., Any]]]] = {}

    def hearing(self, hook: str) -> list[Probe]:
        """The probes that override a hook."""
        return [probe for probe, _ in self._overriding(hook)]

    def tell(self, hook: str, *args: Any) -> None:
        for probe, method in self._overriding(hook):
            self._boundary.call(probe.name, self._hear_out, probe, method, *args)

    def tell_of_step(self, hook: str, step: int) -> None:
        """As `tell`, before and after every step: probes make no audit there that they could
        refuse.
        """
        for probe, method in self._overriding(hook):
            self._boundary.call(probe.name, method, step)

    def tell_one(self, probe: Probe, hook: str, *args: Any) -> None:
        self._boundary.call(probe.name, self._hear_out, probe, getattr(probe, hook), *args)

    def ask(self, hook: str, *args: Any, every_batch: bool | None = None) -> Iterator[Any]:
        """What each probe returns; nothing for one that is off or fails.

        Args:
            every_batch: asks only the probes that see every batch, or only the others; None: all.
        """
        for probe, method in self._with_turn(hook, every_batch):
            yield self._boundary.call(probe.name, method, *args, default={})

    def of_many(self, hook: str) -> list[Callable[..., Any]]:
        """Methods of probes that may be shown many batches as one, to be called as they are."""
        return [method for probe, method in self._of_every(hook) if not probe.only_inputs]

    def of_inputs(self) -> list[Probe]:
        """The probes that look at nothing but the inputs of a batch."""
        return [probe for probe, _ in self._of_every("trace_loss") if probe.only_inputs]

    def _of_every(self, hook: str) -> list[tuple[Probe, Callable[..., Any]]]:
        """Those that see every batch and are not off."""
        pairs = self._with_turn(hook, every_batch=True)
        return [pair for pair in pairs if pair[0].name not in self._boundary.off]

    def _with_turn(
        self, hook: str, every_batch: bool | None
    ) -> list[tuple[Probe, Callable[..., Any]]]:
        if every_batch is None:
            return self._overriding(hook)
        key = (hook, every_batch)
        if key not in self._turns:
            heard = self._overriding(hook)
            self._turns[key] = [pair for pair in heard if pair[0].every_batch is every_batch]
        return self._turns[key]

    def _hear_out(self, probe: Probe, method: Callable[..., Any], *args: Any) -> None:
        try:
            method(*args)
        except CannotAudit as reason:
            probe.run.refuse(probe, str(reason))

    def _overriding(self, hook: str) -> list[tuple[Probe, Callable[..., Any]]]:
        if hook not in self._hooks:
            plain = getattr(Probe, hook)
            self._hooks[hook] = [
                (probe, getattr(probe, hook))
                for probe in self._probes
                if getattr(type(probe), hook) is not plain
            ]
        return self._hooks[hook]
