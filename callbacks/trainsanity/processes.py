"""Processes that train one model together: each measures its part, the first one reports for all.

No process ever waits for another one in training. Rows travel in packets through the key-value
store that the processes have met in, carried by a thread of ours: setting a key waits for nobody,
and only keys that are there are read. Who has no callback, is slower or has died is missing in the
evidence, which says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from trainsanity.boundary import Boundary
from trainsanity.epoch_mean import EpochMeans
from trainsanity.run import Run
from trainsanity.stream import CloseReport

if TYPE_CHECKING:
    from trainsanity.link import Link

OF_THE_FIRST = "losses, metrics and counts are of the first process's part of each batch: "
MOST_PROCESSES = 64  # a store that all ask for more would have much to do
NOT_YET = OF_THE_FIRST + "the others have handed in nothing yet"
NO_PLACE = OF_THE_FIRST + "this torch has no store that can be used beside training"
TOO_MANY = (
    f"{OF_THE_FIRST}more than {MOST_PROCESSES} processes would burden the store of the process "
    "group"
)


class NoStream:
    """In place of the stream, in a process that reports nothing by itself."""

    run_url = ""
    alerts: tuple[dict[str, Any], ...] = ()

    def samples(self, *measured: Any) -> None: ...
    def declare(self, signal: Any) -> None: ...
    def audit(self, name: str, step: int, facts: Mapping[str, Any]) -> None: ...
    def pump(self) -> None: ...
    def close(self, state: str) -> CloseReport | None:
        return None


def link(
    run: Run, probes: Iterable[Any], boundary: Boundary, on_beat: Callable[[], None]
) -> Link | None:
    """Begins to speak with the other processes; None where they cannot meet, with the reason in
    `run.not_testable`.
    """
    # Most trainings have one process, and need not wait for these to be imported.
    from trainsanity.gathering import Gathering
    from trainsanity.handing_in import HandingIn

    place = run.backend.meeting_place()
    if place is None or run.processes > MOST_PROCESSES:
        run.not_testable["processes"] = NO_PLACE if place is None else TOO_MANY
        return None
    spoken = run, place, boundary, on_beat
    made: Link
    if isinstance(run.stream, NoStream):
        made = HandingIn(*spoken, process=run.backend.process())
    else:
        means = [probe for probe in probes if isinstance(probe, EpochMeans)]
        made = Gathering(*spoken, run_id=run.stream.run_id, probes=means)
    made.start()
    return made
