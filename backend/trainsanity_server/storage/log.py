"""Reads the log of packets."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from trainsanity.wire import WireError, decode
from trainsanity_server.storage.models import PacketRow, RunRow
from trainsanity_server.storage.points import Tail

TAIL_BYTES = 16 * 1024 * 1024  # of packets, read at once
ALL = 2**31 - 1  # packets


def read_tail(
    session: Session, run_id: str, first_seq: int, *, limit: int, most_bytes: int = TAIL_BYTES
) -> Tail:
    """Packets that are not compacted, and what of them is damaged."""
    own = PacketRow.run_id == run_id, PacketRow.seq >= first_seq
    sizes = select(PacketRow.seq, func.length(PacketRow.body)).where(*own)
    size, next_seq = 0, first_seq
    for seq, length in session.execute(sizes.order_by(PacketRow.seq).limit(limit)):
        if size and size + (length or 0) > most_bytes:
            break
        size, next_seq = size + (length or 0), seq + 1
    bodies = select(PacketRow.seq, PacketRow.body).where(*own, PacketRow.seq < next_seq)
    packets, damage, unreadable = [], [], []
    for seq, body in session.execute(bodies.order_by(PacketRow.seq)):
        try:
            packets.append(decode(body))
        except WireError as error:
            damage.append(f"packet {seq} cannot be read: {error}")
            unreadable.append(seq)
    return Tail(packets, next_seq, size, damage, unreadable)


def loose_tails(session: Session, run_id: str) -> Iterator[Tail]:
    """Packets whose samples are not in chunks yet, some megabytes at a time."""
    at = session.scalar(select(RunRow.compacted_seq).where(RunRow.id == run_id)) or 0
    while True:
        tail = read_tail(session, run_id, at, limit=ALL)
        if tail.next_seq == at:
            return
        at = tail.next_seq
        yield tail
