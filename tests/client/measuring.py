"""What a training loop does to a stream, and what is then found in a spool."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from trainsanity import wire
from trainsanity.sender import Patience
from trainsanity.spool import Spool
from trainsanity.spool_writer import Pace
from trainsanity.stream import RunStream
from trainsanity.wire import Packet

QUICK = Pace(packet_seconds=0.02)
IMPATIENT = Patience(first=0.01, most=0.02, refused=0.02, last_attempt=0.5, look=0.01)
NAMES = ("loss/reported", "loss/recomputed")


def measure(stream: RunStream, first: int, last: int) -> None:
    """Two signals at every step from first to last, one call a step, as a training loop does."""
    for step in range(first, last + 1):
        stream.samples(NAMES, [step], np.array([[step], [step / 2]], np.float32))
        stream.step = step
        stream.pump()


def spooled(path: Path) -> list[Packet]:
    """All packets of a spool that nobody has open."""
    with contextlib.closing(Spool(path)) as spool:
        return [wire.decode(spool.read(seq)) for seq in range(spool.next_seq)]


def steps_of(packets: list[Packet]) -> list[int]:
    """Steps of all samples, in order; checks that each sample carries the values `measure` gave."""
    steps: list[int] = []
    for packet in packets:
        for block in packet.blocks:
            assert block.names == NAMES
            np.testing.assert_array_equal(block.values, [block.steps, block.steps / 2])
            steps += block.steps.tolist()
    return steps
