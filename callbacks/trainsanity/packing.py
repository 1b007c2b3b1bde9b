"""What was measured and is not in a packet yet, and how it is cut into packets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainsanity.wire import Audit, Block, Signal

Floats = NDArray[np.floating[Any]]
Steps = NDArray[np.int64]

# What a packet needs besides its evidence, and a name or an audit besides its text; generous.
_AROUND = 64  # bytes


@dataclass
class Load:
    """The evidence of one packet."""

    signals: list[Signal] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    audits: list[Audit] = field(default_factory=list)
    size: int = 0  # bytes, never less than what the packet will hold

    @property
    def points(self) -> int:
        return sum(block.points for block in self.blocks)


class Pending:
    """Evidence that waits for the next packet, in the order of its arrival."""

    def __init__(self) -> None:
        self.size = 0  # bytes, about
        self._signals: list[Signal] = []
        self._blocks: list[list[Block]] = []  # those in one list are joined
        self._latest: dict[tuple[str, ...], list[Block]] = {}
        self._audits: list[tuple[Audit, int]] = []

    def __bool__(self) -> bool:
        return bool(self._signals or self._blocks or self._audits)

    def add_signal(self, signal: Signal) -> None:
        self._signals.append(signal)
        self.size += _signal_size(signal)

    def add_audit(self, audit: Audit, size: int) -> None:
        """Takes an audit whose facts need `size` bytes."""
        self._audits.append((audit, size))
        self.size += size

    def add_block(self, block: Block) -> None:
        joined = self._latest.get(block.names)
        if joined is not None and joined[-1].steps[-1] < block.steps[0]:
            joined.append(block)
            self.size += block.steps.nbytes + block.values.nbytes
            return
        # New names, or the run went back in its steps (another attempt from a checkpoint).
        self._latest[block.names] = [block]
        self._blocks.append(self._latest[block.names])
        self.size += _block_size(block)

    @property
    def has_audits(self) -> bool:
        return bool(self._audits)

    @property
    def points(self) -> int:
        return sum(block.points for joined in self._blocks for block in joined)

    def loads(self, most: int) -> Iterator[Load]:
        """Everything, in loads of at most `most` bytes (one audit may be larger by itself)."""
        load = Load()
        for kind, item, size in self._pieces(most):
            if load.size and load.size + size > most:
                yield load
                load = Load()
            getattr(load, kind).append(item)
            load.size += size
        if load.size:
            yield load

    def _pieces(self, most: int) -> Iterator[tuple[str, Any, int]]:
        for signal in self._signals:
            yield "signals", signal, _signal_size(signal)
        for joined in self._blocks:
            for block in _split(_join(joined), most):
                yield "blocks", block, _block_size(block)
        for audit, size in self._audits:
            yield "audits", audit, size


def _join(blocks: list[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    return Block(
        blocks[0].names,
        np.concatenate([block.steps for block in blocks]),
        np.concatenate([block.values for block in blocks], axis=1),
    )


def _split(block: Block, most: int) -> Iterable[Block]:
    """The same samples in blocks of at most `most` bytes, cut along steps, else along names."""
    rows, names = len(block.steps), len(block.names)
    if _block_size(block) <= most or (rows == 1 and names == 1):
        return [block]
    if rows > 1:
        cut = rows // 2
        halves = [
            Block(block.names, block.steps[:cut], block.values[:, :cut]),
            Block(block.names, block.steps[cut:], block.values[:, cut:]),
        ]
    else:
        cut = names // 2
        halves = [
            Block(block.names[:cut], block.steps, block.values[:cut]),
            Block(block.names[cut:], block.steps, block.values[cut:]),
        ]
    return [piece for half in halves for piece in _split(half, most)]


def _block_size(block: Block) -> int:
    names = sum(len(name.encode()) + 5 for name in block.names)
    return names + block.steps.nbytes + block.values.nbytes + _AROUND


def _signal_size(signal: Signal) -> int:
    return len((signal.name + signal.unit + signal.label).encode()) + _AROUND
