"""Blocks of many packets as few long ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from trainsanity.wire import Block


def gathered(blocks: Iterable[Block]) -> list[Block]:
    """Blocks of the same names joined, in order; a new one begins where steps go back."""
    stretches: dict[tuple[str, ...], list[list[Block]]] = {}
    for block in blocks:
        if not len(block.steps):
            continue
        own = stretches.setdefault(block.names, [[]])
        if own[-1] and block.steps[0] <= own[-1][-1].steps[-1]:
            own.append([])
        own[-1].append(block)
    return [_joined(stretch) for own in stretches.values() for stretch in own]


def _joined(blocks: Sequence[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    return Block(
        blocks[0].names,
        np.concatenate([block.steps for block in blocks]),
        np.concatenate([block.values for block in blocks], axis=1),
    )


def within(block: Block, first_step: int, last_step: int) -> Block:
    """The samples at these steps, both ends included."""
    start, end = np.searchsorted(block.steps, [first_step, last_step + 1])
    return Block(block.names, block.steps[start:end], block.values[:, start:end])
