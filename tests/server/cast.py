"""The people of the play: a healthy run, a diverging one, one that fell silent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from trainsanity import wire
from trainsanity.wire import Audit, Block, Packet, Signal
from trainsanity_server.storage.ids import new_id

STEPS = 25  # of a packet


class Training:
    """A run that writes its packets one after the other, as a client does."""

    def __init__(self, name: str = "tagger", *, time: float = 1_000_000.0, **header: Any) -> None:
        self.id = new_id()
        self.seq = 0
        self.step = 0
        self.time = time
        self.header: Mapping[str, Any] | None = {
            "project": "nlp",
            "name": name,
            "tags": ["test"],
            "kind": "fit",
            "started_at": time,
            "keras_version": "3.15.1",
            "backend": "tensorflow",
            "config": {"units": 8},
            "expect": {},
            "environment": {"host": "here"},
            **header,
        }
        self.signals: Sequence[Signal] = ()

    def declares(self, **units: str) -> None:
        """Units by signal; `__` in a name stands for `/`."""
        self.signals = [Signal(k.replace("__", "/"), unit) for k, unit in units.items()]

    def packet(
        self,
        *,
        state: str = "running",
        audits: Sequence[Audit] = (),
        silent_after: float = 60.0,
        dtype: str = "f4",
        **columns: ArrayLike,
    ) -> Packet:
        """The next packet: one block with these columns, from the next step on."""
        blocks = [self._block(columns, dtype)] if columns else []
        if blocks:
            self.step = int(blocks[0].steps[-1])
        packet = Packet(
            self.id,
            self.seq,
            self.time,
            step=self.step,
            state=state,
            silent_after=silent_after,
            run=self.header,
            signals=self.signals,
            blocks=blocks,
            audits=audits,
        )
        self.seq, self.time = self.seq + 1, self.time + 1.0
        self.header, self.signals = None, ()
        return packet

    def _block(self, columns: Mapping[str, ArrayLike], dtype: str) -> Block:
        values = np.array(list(columns.values()), dtype)
        steps = np.arange(values.shape[1], dtype=np.int64) + self.step + 1
        return Block(tuple(name.replace("__", "/") for name in columns), steps, values)


def falling(first_step: int, steps: int = STEPS) -> np.ndarray:
    return 2.0 / np.sqrt(np.arange(first_step, first_step + steps))


def healthy(
    packets: int = 4, *, ended: bool = True, **header: Any
) -> tuple[Training, list[Packet]]:
    """Loss falls, accuracy is what it seems."""
    run = Training("healthy", **header)
    run.declares(loss__reported="1", accuracy__reported="1", accuracy__recomputed="1")
    written = [_good(run) for _ in range(packets)]
    if ended:
        written.append(run.packet(state="finished"))
    return run, written


def _good(run: Training, *, gap: float = 0.0) -> Packet:
    accuracy = np.linspace(0.5, 0.9, STEPS)
    return run.packet(
        loss__reported=falling(run.step + 1),
        accuracy__reported=accuracy + gap,
        accuracy__recomputed=accuracy,
    )


def lying(packets: int = 4, *, ended: bool = True) -> tuple[Training, list[Packet]]:
    """Accuracy is reported 0.3 too high, from the second packet on."""
    run = Training("lying")
    written = [_good(run, gap=0.3 if i else 0.0) for i in range(packets)]
    if ended:
        written.append(run.packet(state="finished"))
    return run, written


def diverging(packets: int = 3) -> tuple[Training, list[Packet]]:
    """Loss becomes NaN in the last packet, and the run fails."""
    run = Training("diverging")
    written = [_good(run) for _ in range(packets - 1)]
    loss = falling(run.step + 1)
    loss[10:] = np.nan
    accuracy = np.full(STEPS, 0.5)
    columns = {"accuracy__reported": accuracy, "accuracy__recomputed": accuracy}
    written.append(run.packet(state="failed", loss__reported=loss, **columns))
    return run, written


def silent() -> tuple[Training, list[Packet]]:
    """Reports twice, promises to speak again within 30 s, and is never heard of again."""
    run = Training("silent")
    loss = falling(1)
    return run, [
        run.packet(loss__reported=loss, silent_after=30.0),
        run.packet(loss__reported=loss, silent_after=30.0),
    ]


def encoded(packets: Sequence[Packet]) -> list[bytes]:
    return [wire.encode(packet) for packet in packets]
