"""Item 14: tests that the store starts after a power failure with holes in unconfirmed commits."""

import random
from pathlib import Path

import duckdb
import pytest

from ingest_service.store.duckdb.commit_record import commit_record_path, log_path
from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.duckdb.opening import StoreOpenError
from tests.faults.power import PAGE, lose_pages
from tests.unit.ingest_service.stores import checkpoint, leave, log, opened, sequences

ROUNDS = 12
"""Number of different losses or damages that a test tries."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.duckdb"


def interrupted(path: Path, folder: Path, rows: int) -> tuple[Path, int]:
    """Return the files after a last COMMIT that was not synced, and the synced bytes of the log."""
    with opened(path) as store:
        log(store, 1, 10)
        checkpoint(store)
        log(store, 11, 300)
        confirmed = log_path(path).stat().st_size
        record = commit_record_path(path).read_bytes()
        log(store, 301, 300 + rows)
        left = leave(path, folder)
    commit_record_path(left).write_bytes(record)
    return left, confirmed


@pytest.mark.parametrize("has_record", [True, False])
@pytest.mark.parametrize("rows", [1, 40, 2000])
def test_a_hole_in_the_unconfirmed_tail_is_set_aside(
    path: Path, tmp_path: Path, rows: int, has_record: bool
) -> None:
    left, confirmed = interrupted(path, tmp_path / "left", rows)
    database, whole = left.read_bytes(), log_path(left).read_bytes()
    record_path = commit_record_path(left)
    record, chance = record_path.read_bytes(), random.Random(rows)
    for _ in range(ROUNDS):
        for file in left.parent.iterdir():
            file.unlink()
        left.write_bytes(database)
        damaged = lose_pages(whole, confirmed, chance)
        log_path(left).write_bytes(damaged)
        if has_record:
            record_path.write_bytes(record)
        with opened(left) as store:
            stored = sequences(store)
            assert stored in (list(range(1, 301)), list(range(1, 301 + rows)))
            aside = list(left.parent.glob("*.wal.tail-*"))
            if len(stored) > 300 or len(damaged) == confirmed:
                assert not aside
            else:
                assert [file.read_bytes() for file in aside] == [damaged[confirmed:]]
            log(store, stored[-1] + 1, stored[-1] + 5)


def test_duckdb_alone_does_not_start_with_a_hole(path: Path, tmp_path: Path) -> None:
    """Check the premise: if DuckDB started by itself, cutting its log would be wrong."""
    left, confirmed = interrupted(path, tmp_path / "left", 2000)
    whole = bytearray(log_path(left).read_bytes())
    page = (confirmed // PAGE + 1) * PAGE
    whole[page : page + PAGE] = bytes(PAGE)
    log_path(left).write_bytes(bytes(whole))
    with pytest.raises(duckdb.IOException, match="checksum"):
        duckdb.connect(str(left))


@pytest.mark.parametrize("has_record", [True, False])
def test_damage_of_what_was_confirmed_is_refused(
    path: Path, tmp_path: Path, has_record: bool
) -> None:
    left, confirmed = interrupted(path, tmp_path / "left", 500)
    whole, chance = log_path(left).read_bytes(), random.Random(14)
    if not has_record:
        commit_record_path(left).unlink()
    for _ in range(ROUNDS):
        at = chance.randrange(100, confirmed)
        damaged = whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]
        log_path(left).write_bytes(damaged)
        with pytest.raises(StoreOpenError, match="its log is damaged at byte"):
            DuckDBStore(left)
        assert log_path(left).read_bytes() == damaged
        if not has_record:
            commit_record_path(left).unlink()


def test_the_last_commit_that_was_noted_is_never_set_aside(path: Path, tmp_path: Path) -> None:
    """Check that the commit record protects the last confirmed transaction of the log."""
    with opened(path) as store:
        log(store, 1, 300)
        confirmed = log_path(path).stat().st_size
        log(store, 301, 800)
        left = leave(path, tmp_path / "left")
    whole = bytearray(log_path(left).read_bytes())
    page = (confirmed // PAGE + 1) * PAGE
    whole[page : page + PAGE] = bytes(PAGE)
    log_path(left).write_bytes(bytes(whole))
    with pytest.raises(StoreOpenError, match=r"within what was committed.*--trust-database"):
        DuckDBStore(left)
    with opened(left, trust=True) as store:
        assert sequences(store) == list(range(1, 301))
    assert list(left.parent.glob("*.wal.tail-*"))


def test_wrong_bytes_are_no_missing_ones(path: Path, tmp_path: Path) -> None:
    """Check that, without a commit record, wrong bytes are treated as damage of a commit."""
    left, confirmed = interrupted(path, tmp_path / "left", 500)
    commit_record_path(left).unlink()
    whole = bytearray(log_path(left).read_bytes())
    whole[confirmed + 100] ^= 1
    log_path(left).write_bytes(bytes(whole))
    with pytest.raises(StoreOpenError, match="its log is damaged at byte"):
        DuckDBStore(left)


def test_a_log_that_never_came_to_the_disk(path: Path, tmp_path: Path) -> None:
    with opened(path) as store:
        log(store, 1, 10)
        checkpoint(store)
        record = commit_record_path(path).read_bytes()
        log(store, 11, 500)
        left = leave(path, tmp_path / "left")
    size = log_path(left).stat().st_size
    log_path(left).write_bytes(bytes(size))
    commit_record_path(left).write_bytes(record)
    with opened(left) as again:
        assert sequences(again) == list(range(1, 11))
