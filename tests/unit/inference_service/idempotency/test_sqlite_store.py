"""SQLite as a store of claims: as every store, and its own bounds and faults."""

import functools
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from inference_service.idempotency.sqlite_store import SqliteStore
from inference_service.idempotency.store import ClaimOutcome, ClaimStoreError, Record
from tests.unit.inference_service.idempotency.conformance import (
    ANSWER,
    KEY,
    OTHER,
    PRINT,
    ClaimStoreConformance,
    Open,
    SharedStoreConformance,
    claim,
    numbered,
    prune_all,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "claims.sqlite"


class TestInAFile(SharedStoreConformance):
    @pytest.fixture
    def opening(self, path: Path) -> Open:
        return functools.partial(SqliteStore, str(path))


class TestPrivate(ClaimStoreConformance):
    @pytest.fixture
    def opening(self) -> Open:
        return functools.partial(SqliteStore, "")


def fill(store: SqliteStore, numbers: range, size: int, until: float = 100.0) -> None:
    with store.transaction():
        for number in numbers:
            key = numbered(number)
            claim(store, b"a", key=key)
            outcome = ClaimOutcome(True, os.urandom(size))
            store.settle(key, owner=b"a", outcome=outcome, until=until + number)


def test_beyond_its_bound_the_oldest_outcomes_go_and_never_a_pending_claim(path: Path) -> None:
    with closing(SqliteStore(str(path), max_bytes=1_000_000)) as store:
        claim(store, b"a", key=OTHER, until=10)
        for start in range(0, 3000, 500):
            fill(store, range(start, start + 500), 1000)
            prune_all(store, now=0)
            assert store.size().bytes <= 1_000_000
        assert claim(store, b"b", key=OTHER) == Record(PRINT, 10.0, None)
        kept = [n for n in range(3000) if claim(store, b"b", key=numbered(n)) is not None]
    assert kept == list(range(3000 - len(kept), 3000))
    assert len(kept) >= 250


def test_a_bound_that_pending_claims_alone_pass_is_left_passed() -> None:
    with closing(SqliteStore("", max_bytes=1)) as store:
        for number in range(600):
            claim(store, b"a", key=numbered(number))
        prune_all(store, now=0)
        assert store.size().rows == 600


def test_room_is_given_back(path: Path) -> None:
    with closing(SqliteStore(str(path))) as store:
        fill(store, range(3000), 2000, until=10)
        assert path.stat().st_size > 6_000_000
        prune_all(store, now=1e9)
        assert store.size().rows == 0
        assert path.stat().st_size < 1_000_000


def test_an_older_database_gives_room_back_as_well(path: Path) -> None:
    with closing(sqlite3.connect(path)) as older:
        older.execute("PRAGMA journal_mode = WAL")
        older.executescript(
            "CREATE TABLE claims (key BLOB PRIMARY KEY, fingerprint BLOB NOT NULL,"
            " owner BLOB NOT NULL, until REAL NOT NULL, ok INTEGER, payload BLOB);"
            "CREATE INDEX claims_until ON claims (until);"
        )
        row = (KEY, PRINT, b"a", 1e9, 1, ANSWER.payload)
        older.execute("INSERT INTO claims VALUES (?, ?, ?, ?, ?, ?)", row)
        older.commit()
    with closing(SqliteStore(str(path))) as store:
        assert claim(store, b"b") == Record(PRINT, 1e9, ANSWER)
        fill(store, range(3000), 2000, until=10)
        prune_all(store, now=1e6)
        assert path.stat().st_size < 1_000_000
        assert claim(store, b"b") == Record(PRINT, 1e9, ANSWER)


def test_a_key_whose_time_is_over_is_free_before_it_is_forgotten() -> None:
    with closing(SqliteStore("")) as store:
        fill(store, range(1), 10, until=20)
        assert claim(store, b"b", key=numbered(0), now=20, until=30) is None
        assert claim(store, b"c", key=numbered(0), now=20) == Record(PRINT, 30.0, None)


def older_database(path: Path, *untils: float) -> None:
    """Make a database as it was when outcomes were kept by the wall clock."""
    with closing(sqlite3.connect(path)) as older:
        older.executescript(
            "CREATE TABLE claims (key BLOB PRIMARY KEY, fingerprint BLOB NOT NULL,"
            " owner BLOB NOT NULL, until REAL NOT NULL, ok INTEGER, payload BLOB);"
        )
        for number, until in enumerate(untils):
            row = (numbered(number), PRINT, b"a", until, 1, ANSWER.payload)
            older.execute("INSERT INTO claims VALUES (?, ?, ?, ?, ?, ?)", row)
        older.commit()


@pytest.mark.parametrize("ahead", [-1e6, 0.0, 86_400.0 * 60])
def test_outcomes_of_an_older_database_outlive_a_start_with_a_wrong_clock(
    path: Path, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    now = time.time()
    older_database(path, now + 100, now + 86_400)
    monkeypatch.setattr(time, "time", lambda: now + ahead)
    with closing(SqliteStore(str(path))) as store:
        begun = store.time()
        assert begun == min(now + ahead, now + 100)
        assert claim(store, b"b", key=numbered(1), now=begun) is not None


def test_a_clock_that_is_set_moves_the_store_s_clock_by_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(SqliteStore(str(path))) as store:
        begun = store.time()
    monkeypatch.setattr(time, "time", lambda: begun + 86_400 * 60)
    with closing(SqliteStore(str(path))) as store:
        assert store.time() == begun


def test_a_held_key_is_read_while_another_process_writes(path: Path) -> None:
    with closing(SqliteStore(str(path))) as first, closing(SqliteStore(str(path))) as second:
        claim(first, b"a")
        with first.transaction():
            claim(first, b"a", key=OTHER)
            assert claim(second, b"b") == Record(PRINT, 10.0, None)


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"no database, but long enough to be one " * 50)
    with pytest.raises(ClaimStoreError, match=r"claims\.sqlite.*not a database"):
        SqliteStore(str(path))


def test_a_path_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClaimStoreError, match="nowhere"):
        SqliteStore(str(tmp_path / "nowhere" / "claims.sqlite"))


def damage(path: Path) -> None:
    """Overwrite everything but the first page of a database."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))


def test_a_damaged_file_is_refused_at_the_start(path: Path) -> None:
    with closing(SqliteStore(str(path))) as store:
        fill(store, range(300), 1000)
    damage(path)
    with pytest.raises(ClaimStoreError, match=r"claims\.sqlite .*(damaged|malformed)"):
        SqliteStore(str(path))


def forget_pages(store: SqliteStore) -> None:
    """Make the connection look at the file again."""
    store._database.execute("PRAGMA shrink_memory")


def uses(store: SqliteStore) -> list[Callable[[], object]]:
    return [
        lambda: claim(store, b"a", key=OTHER),
        lambda: store.settle(KEY, owner=b"a", outcome=ANSWER, until=1),
        lambda: store.release(KEY, owner=b"a"),
        lambda: store.renew(KEY, owner=b"a", until=1),
        lambda: store.prune(1.0, 1e9),
        store.size,
        lambda: store.find(KEY, now=0),
        store.pending,
    ]


def test_every_use_reports_a_database_that_broke_and_recovers_once_it_is_put_right(
    path: Path,
) -> None:
    with closing(SqliteStore(str(path))) as store:
        fill(store, range(300), 1000)
        for use in uses(store):
            store._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            whole = path.read_bytes()
            damage(path)
            forget_pages(store)
            with pytest.raises(ClaimStoreError):
                use()
            with pytest.raises(ClaimStoreError):  # and it is no better the next time
                use()
            path.write_bytes(whole)
            use()
            store.release(OTHER, owner=b"a")


@pytest.mark.parametrize("use", range(8))
def test_every_use_reports_a_missing_table(use: int) -> None:
    with closing(SqliteStore("")) as store:
        store._database.execute("DROP TABLE claims")
        with pytest.raises(ClaimStoreError, match="no such table"):
            uses(store)[use]()


def test_a_file_that_was_moved_away_is_made_anew(path: Path) -> None:
    with closing(SqliteStore(str(path))) as first, closing(SqliteStore(str(path))) as second:
        claim(first, b"a")
        for file in path.parent.iterdir():
            file.unlink()
        first.prune(0.0, 1e9)
        second.prune(0.0, 1e9)
        assert claim(first, b"b") is None
        assert claim(second, b"c") == Record(PRINT, 10.0, None)


def test_a_full_disk_is_reported_and_passes() -> None:
    with closing(SqliteStore("")) as store:
        claim(store, b"a")
        pages = store._database.execute("PRAGMA page_count").fetchone()[0]
        store._database.execute(f"PRAGMA max_page_count = {pages}")
        big = ClaimOutcome(ok=True, payload=bytes(1_000_000))
        with pytest.raises(ClaimStoreError, match="full"):
            store.settle(KEY, owner=b"a", outcome=big, until=100)
        store._database.execute("PRAGMA max_page_count = 100000")
        assert store.settle(KEY, owner=b"a", outcome=big, until=100)


def test_a_lock_that_is_not_given_up_is_reported_and_passes(path: Path) -> None:
    with closing(SqliteStore(str(path))) as store, closing(SqliteStore(str(path))) as other:
        store._database.execute("PRAGMA busy_timeout = 1")
        with other.transaction(), pytest.raises(ClaimStoreError, match="locked"):
            claim(store, b"a")
        assert claim(store, b"a") is None
