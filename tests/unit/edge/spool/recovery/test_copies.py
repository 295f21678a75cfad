"""A spool that is copied: both go on, and no sequence of the one is one of the other."""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.log.encode import prediction_body
from edge.records import Prediction
from edge.spool import superblock as superblocks
from edge.spool.caps import SpoolLimits
from edge.spool.directories import fork_directories
from edge.spool.entries import Row
from edge.spool.lineage import MAX_OPENINGS
from edge.spool.spool import Spool
from edge.spool.superblock import FileLocation, SuperblockFile


@contextmanager
def opened(folder: Path) -> Iterator[Spool]:
    spool = Spool(folder, "gate-1", SpoolLimits(1 << 40, 0.0, 0), lambda _: None)
    try:
        yield spool
    finally:
        spool.close()


def log(spool: Spool, *names: str) -> None:
    spool.append([prediction_body(Prediction(name, "m"), 0.0) for name in names])


def pending(folder: Path) -> list[tuple[str, int]]:
    """Return the contents of a spool: its spool_id and sequences."""
    with opened(folder) as spool:
        identity = spool.identity
        entries = spool.read(identity.spool_id, identity.acknowledged, 100, 1 << 20)
        assert all(isinstance(entry, Row) for entry in entries)
        return [(identity.spool_id, entry.sequence) for entry in entries]


@pytest.fixture
def original(tmp_path: Path) -> Path:
    with opened(tmp_path / "left") as spool:
        log(spool, "a", "b", "c")
        spool.acknowledge(spool.identity.spool_id, 1)
    return tmp_path / "left"


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "right"))


def test_the_copy_goes_on_under_a_name_of_its_own(original: Path, copy: Path) -> None:
    before = pending(original)
    for folder in (original, copy):
        with opened(folder) as spool:
            log(spool, "new")
    (fork,) = fork_directories(copy)
    assert pending(fork) == before
    spool_id = before[0][0]
    assert pending(original) == [*before, (spool_id, 4)]
    ((other, first),) = pending(copy)
    assert (other != spool_id, first) == (True, 1)
    with opened(fork) as spool:
        assert spool.sent_through == 3  # by the original


def test_it_is_parted_once(copy: Path) -> None:
    for _ in range(3):
        pending(copy)
    assert len(fork_directories(copy)) == 1


def test_a_spool_that_is_moved_goes_on(original: Path, tmp_path: Path) -> None:
    before = pending(original)
    assert pending(original.rename(tmp_path / "elsewhere")) == before


def test_a_copy_of_an_empty_spool_leaves_nothing_behind(original: Path, tmp_path: Path) -> None:
    with opened(original) as spool:
        old = spool.identity.spool_id
        spool.acknowledge(old, 3)
    copy = Path(shutil.copytree(original, tmp_path / "right"))
    with opened(copy) as spool:
        assert spool.identity.spool_id != old
    assert fork_directories(copy) == []


def test_a_copy_where_files_have_but_one_name(
    original: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("not on this file system")

    before = pending(original)
    monkeypatch.setattr(os, "link", refuse)
    pending(copy)
    (fork,) = fork_directories(copy)
    assert pending(fork) == before


@pytest.mark.parametrize("step", range(6))
def test_a_process_that_is_killed_while_it_parts_a_copy_loses_nothing(
    original: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    before, calls = pending(original), 0
    with monkeypatch.context() as patch:
        for owner, name in ((os, "link"), (os, "fsync"), (Path, "rename"), (Path, "mkdir")):
            real = getattr(owner, name)

            def stop(
                *arguments: object, _real: Callable[..., object] = real, **more: object
            ) -> object:
                nonlocal calls
                calls += 1
                if calls > step:
                    raise KeyboardInterrupt
                return _real(*arguments, **more)

            patch.setattr(owner, name, stop)
        with pytest.raises(KeyboardInterrupt):
            pending(copy)
    assert pending(copy) == []
    # It may have been parted twice: then the server has the second one's for duplicates.
    assert {tuple(pending(fork)) for fork in fork_directories(copy)} == {tuple(before)}


@pytest.mark.slow
def test_a_copy_that_cannot_be_parted_yet_does_not_go_on_as_it_is(copy: Path) -> None:
    with opened(copy.parent / "left") as spool:
        spool_id = spool.identity.spool_id
    with closing(sqlite3.connect(copy / "spool.db", isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM predictions").fetchone()
        with pytest.raises(OSError, match="another process is reading the spool"), opened(copy):
            pass
    with opened(copy) as spool:
        assert spool.identity.spool_id != spool_id


@pytest.mark.parametrize("change", [{"machine": "another"}, {"device": 99}])
def test_the_same_inode_elsewhere_is_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    monkeypatch.setattr(superblocks, "location_of", lambda _: FileLocation(7, 7, "machine"))
    original = tmp_path / "left"
    with opened(original) as spool:
        log(spool, "a", "b")
        first = spool.identity.spool_id
    with opened(original) as spool:
        assert spool.identity.spool_id == first
    monkeypatch.setattr(
        superblocks, "location_of", lambda _: FileLocation(7, 7, "machine")._replace(**change)
    )
    with opened(original) as spool:
        assert spool.identity.spool_id != first
        assert spool.identity.pending == 0
    assert len(fork_directories(original)) == 1


def test_a_note_of_an_earlier_version_says_no_more_than_the_inode(original: Path) -> None:
    superblock = SuperblockFile(original).read()
    assert superblock is not None
    assert superblocks.location_of(original / "spool.db") == superblock.location
    assert not superblocks.is_elsewhere(
        replace(superblock, location=FileLocation(superblock.location.inode)), superblock.location
    )


def test_openings_beyond_what_a_lineage_names_are_parted(tmp_path: Path) -> None:
    names = set()
    for number in range(2 * MAX_OPENINGS):
        with opened(tmp_path / "spool") as spool:
            spool.append([b"%d" % number])
            names.add(spool.identity.spool_id)
    assert len(names) == 2
    (fork,) = fork_directories(tmp_path / "spool")
    with opened(fork) as spool:
        assert spool.identity.pending == MAX_OPENINGS
