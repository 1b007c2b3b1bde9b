"""A spool gives back what it was given, whatever happened to its process."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainsanity import identity
from trainsanity.errors import SpoolBusy, SpoolClosed, SpoolDamaged, SpoolError
from trainsanity.spool import MAGIC, Spool, Writer, spools

RUN = "01a1fb97-f0e9-7e2c-92ec-36dbc0880b6c"
RECORDS = [b"first", b"x" * 100_000, b"\0" * 9, b"last"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / f"{RUN}.spool"


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Spool]:
    with contextlib.closing(Spool(path)) as spool:
        yield spool


def filled(path: Path) -> None:
    with opened(path) as spool:
        assert [spool.append(record) for record in RECORDS] == [0, 1, 2, 3]


def contents(path: Path) -> list[bytes]:
    with opened(path) as spool:
        return [spool.read(seq) for seq in range(spool.next_seq)]


def test_gives_back_what_was_appended(path: Path) -> None:
    filled(path)
    assert contents(path) == RECORDS


def test_reads_in_any_order_while_it_is_written(path: Path) -> None:
    with opened(path) as spool:
        for number, record in enumerate(RECORDS):
            spool.append(record)
            for seq in random.Random(number).sample(range(number + 1), number + 1):
                assert spool.read(seq) == RECORDS[seq]


def test_has_nothing_beyond_its_end(path: Path) -> None:
    with opened(path) as spool:
        spool.append(b"only")
        with pytest.raises(IndexError, match="0 to 0, not 1"):
            spool.read(1)


def test_goes_on_where_an_earlier_process_stopped(path: Path) -> None:
    filled(path)
    with opened(path) as spool:
        assert spool.is_reopened
        assert spool.append(b"more") == 4
    assert contents(path) == [*RECORDS, b"more"]


def test_remembers_what_the_server_has(path: Path) -> None:
    with opened(path) as spool:
        for record in RECORDS:
            spool.append(record)
        spool.acknowledge(3)
        spool.note_acknowledged()
    with opened(path) as spool:
        assert spool.acknowledged == 3
        assert spool.pending == 1


@pytest.mark.parametrize("note", ["", "[]", '{"next_seq": "x"}', '{"next_seq": -5}', "\x00"])
def test_sends_all_again_when_the_note_is_no_use(path: Path, note: str) -> None:
    filled(path)
    path.with_suffix(".ack").write_text(note)
    with opened(path) as spool:
        assert spool.acknowledged == 0


def test_believes_no_note_beyond_its_end(path: Path) -> None:
    filled(path)
    path.with_suffix(".ack").write_text('{"next_seq": 99}')
    with opened(path) as spool:
        assert spool.pending == 0


def test_cuts_a_torn_last_record_wherever_it_tore(path: Path) -> None:
    filled(path)
    whole = path.read_bytes()
    last = 8 + len(RECORDS[-1])
    for cut in range(1, last):
        path.write_bytes(whole[:-cut])
        assert contents(path) == RECORDS[:-1]
        assert path.stat().st_size == len(whole) - last
        assert not path.with_suffix(".damaged").exists()


def test_begins_anew_when_its_process_died_in_the_first_line(path: Path) -> None:
    with opened(path):
        pass
    header = path.read_bytes()
    for length in range(len(header)):
        path.write_bytes(header[:length])
        with opened(path) as spool:
            assert not spool.is_reopened
            spool.append(b"fresh")
        assert contents(path) == [b"fresh"]


def test_keeps_aside_what_no_killed_process_leaves(path: Path) -> None:
    """A power cut can leave a changed record in the middle."""
    filled(path)
    data = bytearray(path.read_bytes())
    data[-(8 + len(RECORDS[-1])) - 1] ^= 0xFF  # the end of the third record
    path.write_bytes(data)

    assert contents(path) == RECORDS[:2]
    kept = path.with_suffix(".damaged").read_bytes()
    assert kept.endswith(b"last")


def test_takes_zeros_at_the_end_for_damage(path: Path) -> None:
    filled(path)
    with open(path, "ab") as file:
        file.write(b"\0" * 4096)
    assert contents(path) == RECORDS


def test_notices_a_record_that_changes_under_it(path: Path) -> None:
    with opened(path) as spool:
        spool.append(b"first")
        with open(path, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"X")
        with pytest.raises(SpoolDamaged, match="packet 0"):
            spool.read(0)


def test_leaves_other_files_alone(path: Path) -> None:
    path.write_bytes(b"my thesis, only copy\n" * 100)
    with pytest.raises(SpoolError, match="no spool"):
        Spool(path)
    assert path.read_bytes() == b"my thesis, only copy\n" * 100


def test_is_opened_by_one_at_a_time(path: Path) -> None:
    with opened(path):
        with pytest.raises(SpoolBusy, match=r"another process"):
            Spool(path)
        code = "import sys; from trainsanity.spool import *; Spool(Path(sys.argv[1]))"
        other = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
        assert "SpoolBusy" in other.stderr
    with opened(path):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_lets_go_although_a_forked_process_still_has_its_files_open(path: Path) -> None:
    spool = Spool(path)
    ready, go_on = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(ready, 1)
        os._exit(0)
    try:
        spool.close()
        Spool(path).close()
    finally:
        os.write(go_on, b".")
        os.waitpid(child, 0)
        os.close(ready)
        os.close(go_on)


def test_says_that_it_was_closed(path: Path) -> None:
    spool = Spool(path)
    spool.close()
    for use in (lambda: spool.append(b"x"), lambda: spool.read(0), spool.note_acknowledged):
        with pytest.raises(SpoolClosed, match=str(path)):
            use()


def test_deletes_itself_but_not_what_was_set_aside(path: Path) -> None:
    spool = Spool(path)
    spool.append(b"good")
    spool.note_acknowledged()
    kept = spool.set_aside(b"bad")
    spool.delete()

    assert list(path.parent.iterdir()) == [kept]
    assert kept.read_bytes().startswith(MAGIC)
    assert kept.read_bytes().endswith(b"bad")


def test_is_as_before_when_the_disk_is_full(path: Path) -> None:
    """A limit on the size of files fails a write half-way, as a full disk does."""
    code = f"""
import pathlib, resource, sys
from trainsanity.spool import Spool
spool = Spool(pathlib.Path({str(path)!r}))
spool.append(b"before")
size = spool.path.stat().st_size
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
for _ in range(3):
    try:
        spool.append(b"x" * 1000)
    except OSError as error:
        print(type(error).__name__)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
assert spool.path.stat().st_size == size
assert spool.append(b"after") == 1
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["OSError"] * 3
    assert contents(path) == [b"before", b"after"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_refuses_records_that_no_reader_would_take(path: Path) -> None:
    with opened(path) as spool:
        for payload in (b"", b"x" * (8 * 1024 * 1024 + 1)):
            with pytest.raises(ValueError, match=f"Received: {len(payload)} bytes"):
                spool.append(payload)
        assert spool.next_seq == 0


def test_knows_whether_its_writer_is_gone() -> None:
    here = Writer.here(RUN)
    assert not here.is_gone()
    assert Writer(RUN, here.pid, here.started - 100.0, here.host).is_gone()  # the pid is used again
    assert not Writer(RUN, 2**22 + 1, 0.0, "another-host").is_gone()


def test_lists_the_oldest_run_first(tmp_path: Path) -> None:
    ids = [identity.new_run_id() for _ in range(3)]
    ids.sort()
    for run_id in reversed(ids):
        (tmp_path / f"{run_id}.spool").write_bytes(struct.pack("<I", 0))
    (tmp_path / "notes.txt").touch()
    assert [path.stem for path in spools(tmp_path)] == ids
