"""Fingerprints of packets: what is sent again is recognised, also long after it was packed."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from trainsanity_server.storage.models import DigestsRow, PacketRow

SIZE = 16  # bytes


def digest_of(session: Session, run_id: str, seq: int) -> bytes | None:
    """Of a packet that was stored."""
    loose = select(PacketRow.digest).where(PacketRow.run_id == run_id, PacketRow.seq == seq)
    return session.scalar(loose) or _packed(session, run_id, seq)


def _packed(session: Session, run_id: str, seq: int) -> bytes | None:
    query = (
        select(DigestsRow)
        .where(DigestsRow.run_id == run_id, DigestsRow.first_seq <= seq)
        .order_by(DigestsRow.first_seq.desc())
        .limit(1)
    )
    row = session.scalar(query)
    if row is None:
        return None
    at = (seq - row.first_seq) * SIZE
    return row.digests[at : at + SIZE] or None


def forget_packets(
    session: Session, run_id: str, first_seq: int, next_seq: int, *, keep: Sequence[int] = ()
) -> None:
    """Deletes packets and keeps their digests.

    Args:
        keep: packets that stay, because what is in them could not be read.
    """
    own = (PacketRow.run_id == run_id, PacketRow.seq >= first_seq, PacketRow.seq < next_seq)
    digests = session.scalars(select(PacketRow.digest).where(*own).order_by(PacketRow.seq))
    row = {"run_id": run_id, "first_seq": first_seq, "digests": b"".join(digests)}
    session.execute(insert(DigestsRow.__table__), [row])
    session.execute(delete(PacketRow).where(*own, PacketRow.seq.not_in(keep)))
