"""Where an SQLite file should not lie."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import psutil

# File systems of other machines: their locks do not hold what SQLite needs of them.
# Source: sqlite.org/faq.html, question 5, and sqlite.org/wal.html ("all processes on one host").
NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p", "ceph", "glusterfs", "lustre"}
NETWORK |= {"beegfs", "gpfs", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.juicefs"}


class Mount(NamedTuple):
    """A folder, and the kind of file system that begins there."""

    mountpoint: str
    fstype: str


def network_file_system(path: Path, mounts: Iterable[Mount] | None = None) -> str | None:
    """The kind of network file system on which `path` lies; None where it lies on none."""
    if mounts is None:
        mounts = [Mount(p.mountpoint, p.fstype) for p in psutil.disk_partitions(all=True)]
    place = path.resolve()
    above = [m for m in mounts if place.is_relative_to(m.mountpoint)]
    if not above:
        return None
    kind = max(above, key=lambda m: len(m.mountpoint)).fstype
    return kind if kind in NETWORK else None
