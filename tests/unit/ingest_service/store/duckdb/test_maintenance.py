"""Maintenance beside a writer and readers, and on a file of version 1."""

import contextlib
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path

import duckdb
import pytest

from ingest_service.store.duckdb import rollups
from ingest_service.store.duckdb.commit_clock import CommitClock
from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.duckdb.maintenance import DuckDBMaintenance
from ingest_service.store.housekeeping import Duties, Housekeeping
from servicekit.errors import SightlineError
from tests.unit.ingest_service.samples import (
    NOW,
    gap,
    message,
    prediction,
    predictions,
    spool,
    timestamp,
)
from tests.unit.ingest_service.store_conformance import (
    MovableClock,
    commit,
    everything,
    stats,
    update_rollups,
    varied,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.duckdb"


def rows(store: DuckDBStore, sql: str) -> list[tuple[object, ...]]:
    with contextlib.closing(store._cursor()) as cursor:
        rows: list[tuple[object, ...]] = cursor.execute(sql).fetchall()
        return rows


@pytest.mark.slow
def test_sums_and_deletions_run_beside_commits_and_queries(path: Path) -> None:
    store, clock, done = DuckDBStore(path), MovableClock(), threading.Event()
    failures: list[BaseException] = []
    kept: list[int] = []

    def repeat(work: Callable[[], None]) -> None:
        try:
            while not done.is_set():
                work()
        except BaseException as error:
            failures.append(error)
            raise

    def keep() -> None:
        maintenance = store.maintenance()
        maintenance.update_rollups(clock.time, everything=True)
        maintenance.expire(clock.time - timedelta(hours=10), exported_only=False)

    def read() -> None:
        got = stats(store)
        kept.append(got.total_predictions)
        assert got.total_predictions == sum(count.total for count in got.by_device)
        assert got.total_detections == got.total_predictions

    threads = [threading.Thread(target=repeat, args=(work,)) for work in (keep, read)]
    for thread in threads:
        thread.start()
    for start in range(1, 601, 10):
        parts = [
            prediction(sequence, captured_at=timestamp(clock.time))
            for sequence in range(start, start + 9)
        ]
        commit(store, message(*parts, gap(start + 9, start + 9)), now=clock)
        clock.time += timedelta(minutes=20)
    done.set()
    for thread in threads:
        thread.join()
    keep()
    assert not failures
    assert len(everything(store)) == stats(store).total_predictions
    assert 29 * 9 <= stats(store).total_predictions < 35 * 9, "at most an hour late"
    assert rows(store, "SELECT accepted, gap_sequences, balanced FROM ledger") == [
        (60 * 9, 60, True)
    ]
    assert kept
    store.close()


def test_a_file_of_version_1_keeps_its_rows_and_gets_sums(path: Path) -> None:
    store = DuckDBStore(path)
    for number in (1, 2, 3):
        commit(store, message(*varied(number, 40), of=spool(number)))
    before = stats(store)
    store.close()
    old = path.with_name("old.duckdb")
    with duckdb.connect(old) as connection:
        connection.execute(
            resources.files("ingest_service.store.duckdb")
            .joinpath("schema.sql")
            .read_text(encoding="utf-8")
        )
        connection.execute("CREATE TABLE schema_version (version INTEGER, applied_at TIMESTAMPTZ)")
        connection.execute("INSERT INTO schema_version VALUES (1, now())")
        connection.execute(f"ATTACH '{path}' AS new")
        for table in ("predictions", "watermarks", "streams", "gaps", "rejected_predictions"):
            columns = connection.table(table).columns  # the new file has more
            connection.execute(f"INSERT INTO {table} SELECT {', '.join(columns)} FROM new.{table}")
    store = DuckDBStore(old)
    assert stats(store) == before
    update_rollups(store)
    assert rows(store, "SELECT sum(predictions) FROM rollups") == [(120,)]
    assert stats(store).by_class == before.by_class
    assert rows(store, "SELECT count(*) FROM ledger WHERE balanced") == [(3,)]
    commit(store, message(*varied(1, 50), of=spool(1)), now=lambda: NOW - timedelta(hours=9))
    assert stats(store).total_predictions == 130, "its commits come after those of the old file"
    store.close()


def test_blocks_are_closed_when_they_are_full_or_old(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollups, "_ENDS", rollups._ENDS.replace(f"// {rollups.BLOCK}", "// 100"))
    monkeypatch.setattr(rollups, "BLOCK", 100)
    store = DuckDBStore(path)
    maintenance = store.maintenance()
    for start in range(1, 260, 10):
        commit(store, message(*predictions(start, start + 9)))
    maintenance.update_rollups(NOW)
    assert rows(store, "SELECT predictions FROM blocks ORDER BY through") == [(100,), (100,)]
    maintenance.update_rollups(NOW + timedelta(minutes=59))
    assert len(rows(store, "SELECT predictions FROM blocks")) == 2
    maintenance.update_rollups(NOW + timedelta(minutes=61))
    assert rows(store, "SELECT sum(predictions) FROM blocks") == [(260,)]
    assert rows(store, "SELECT sum(predictions) FROM rollups") == [(260,)]
    store.close()


def test_a_keeper_that_is_interrupted_goes_on_later(path: Path) -> None:
    store = DuckDBStore(path)
    commit(store, message(*predictions(1, 5)))
    maintenance = store.maintenance()
    maintenance.interrupt()
    with pytest.raises(SightlineError) as caught:
        maintenance.update_rollups(NOW, everything=True)
    assert caught.value.reason == "CANCELLED"
    update_rollups(store)
    assert rows(store, "SELECT predictions FROM blocks") == [(5,)]
    store.close()


def test_housekeeping_goes_on_after_a_step_that_fails(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")  # no folder can be made under it
    store = DuckDBStore(path)
    old = datetime.now(UTC) - timedelta(days=3)
    stamp = prediction(1)
    stamp.captured_at.FromDatetime(old)
    commit(store, message(stamp), now=lambda: old)
    duties = Duties(export_dir=tmp_path / "file" / "out", export_seconds=0.01)
    housekeeping = Housekeeping(store, duties, lambda: datetime.now(UTC))
    deadline = threading.Event()
    while not rows(store, "SELECT predictions FROM blocks") and not deadline.wait(0.01):
        pass
    housekeeping.close()
    assert rows(store, "SELECT count(*) FROM exports WHERE finished_at IS NOT NULL") == [(0,)]
    store.close()


def test_a_bug_in_one_duty_does_not_end_the_others(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed, again = threading.Event(), threading.Event()

    def fail(*_: object) -> None:
        (again if failed.is_set() else failed).set()
        raise ValueError("a bug")

    monkeypatch.setattr(DuckDBMaintenance, "export", fail)
    store = DuckDBStore(path)
    duties = Duties(export_dir=tmp_path / "out", export_seconds=0.01)
    housekeeping = Housekeeping(store, duties, lambda: datetime.now(UTC))
    assert again.wait(10), "the thread must live on"
    housekeeping.close()
    store.close()


def test_a_clock_that_goes_back_is_followed_again_when_it_has_caught_up() -> None:
    clock = CommitClock(None)
    times = [clock.tick(NOW + timedelta(seconds=at)) for at in (0, 5, -60, -60, 6)]
    offsets = [(time - NOW).total_seconds() for time in times]
    assert offsets == [0, 5, 5.000001, 5.000002, 6]
    assert CommitClock(round(NOW.timestamp() * 1e6)).tick(NOW) > NOW
