"""The ledger and the last streams of a DuckDB file, through readmission, backup and migration."""

import contextlib
from datetime import timedelta
from pathlib import Path

import duckdb
import pytest

from ingest_service.read.records import find
from ingest_service.receive.ptars_decoder import PtarsDecoder
from ingest_service.receive.readmission import Correction, recheck
from ingest_service.store.duckdb import migrations
from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.duckdb.fleet import split
from ingest_service.store.duckdb.rejected import RejectedFilter
from servicekit.errors import SightlineError
from tests.unit.ingest_service.record_conformance import (
    ACCOUNT,
    HOUR,
    RecordConformance,
    devices,
    ledger,
    opened,
    with_history,
)
from tests.unit.ingest_service.samples import (
    NOW,
    message,
    prediction,
    predictions,
    spool,
    timestamp,
)
from tests.unit.ingest_service.store_conformance import MovableClock, commit
from tests.unit.ingest_service.stores import leave

MIGRATION = Path(migrations.__file__).parent / "schema_5.sql"
"""The version that added the tables `devices` and `spool_sums`."""


class Audit(RecordConformance):
    """The comparison with the view `ledger`, outside the conformance tests."""

    def query(self, store: DuckDBStore, sql: str) -> list[tuple[object, ...]]:  # type: ignore[override]
        with contextlib.closing(store._cursor()) as cursor:
            rows: list[tuple[object, ...]] = cursor.execute(sql).fetchall()
            return rows


def check(store: DuckDBStore) -> None:
    Audit().assert_ledger_is_the_view(store)


def test_the_ledger_balances_through_readmission(tmp_path: Path) -> None:
    clock, future = MovableClock(), timestamp(NOW + 90 * HOUR)
    with contextlib.closing(DuckDBStore(tmp_path / "a.duckdb")) as store:
        rejected = message(prediction(1), prediction(2, captured_at=future))
        commit(store, rejected, now=clock)
        clock.time += 91 * HOUR
        store.maintenance().update_rollups(clock.time)
        assert [r.rejected for r in ledger(store)[0]] == [1]
        with store.transaction() as transaction:
            batch = recheck(
                transaction.rejected(RejectedFilter(), None),
                PtarsDecoder(),
                clock.time,
                Correction(0.0, False),
            )
            transaction.readmit(batch.predictions, clock.time)
        for _ in range(2):
            ((record,), _) = ledger(store)
            assert (record.accepted, record.rejected, record.rejected_by_reason) == (2, 0, ())
            check(store)
            store.maintenance().update_rollups(clock.time, everything=True)


def test_a_backup_has_the_same_ledger_and_devices(tmp_path: Path) -> None:
    clock = MovableClock()
    with contextlib.closing(DuckDBStore(tmp_path / "a.duckdb")) as store:
        commit(store, opened(spool(3), prediction(1), account=ACCOUNT), now=clock)
        with_history(store, clock, 6, 1)
        store.maintenance().update_rollups(clock.time)
        with_history_again = message(*predictions(2, 5), of=spool(3))
        commit(store, with_history_again, now=clock)
        store.maintenance().update_rollups(clock.time, everything=True)
        store.backup(tmp_path / "b.duckdb", lambda _done, _total: None)
        expected = ledger(store), devices(store, now=clock.time)
    with contextlib.closing(DuckDBStore(tmp_path / "b.duckdb")) as store:
        assert (ledger(store), devices(store, now=clock.time)) == expected
        check(store)


def test_a_file_of_an_older_version_gets_its_sums(tmp_path: Path) -> None:
    path, clock = tmp_path / "a.duckdb", MovableClock()
    with contextlib.closing(DuckDBStore(path)) as store:
        with_history(store, clock, 8, 2)
        store.maintenance().update_rollups(clock.time)
        store.maintenance().expire(clock.time - 3 * HOUR, exported_only=False)
        commit(store, opened(spool(1), opened_at=clock.time, client="camera"), now=clock)
        expected = ledger(store), devices(store, "gate-1", now=clock.time)
    with duckdb.connect(str(path)) as connection:
        connection.execute("DROP TABLE devices; DROP TABLE spool_sums")
        connection.execute(MIGRATION.read_text())
    with contextlib.closing(DuckDBStore(path)) as store:
        assert (ledger(store), devices(store, "gate-1", now=clock.time)) == expected
        check(store)
        assert any(device.stream and device.stream.client for device in devices(store))


def test_a_crash_loses_nothing_but_the_last_streams(tmp_path: Path) -> None:
    path, clock = tmp_path / "a.duckdb", MovableClock()
    with contextlib.closing(DuckDBStore(path)) as store:
        commit(store, opened(spool(1), prediction(1), account=ACCOUNT))
        store.maintenance().update_rollups(clock.time)
        commit(store, opened(spool(2), prediction(1), account=ACCOUNT))
        copy = leave(path, tmp_path / "crashed")
    with contextlib.closing(DuckDBStore(copy)) as store:
        first, second = devices(store)
        assert first.stream is not None
        assert first.stream.account == ACCOUNT
        assert second.stream is None
        assert second.last_received_us is not None
        check(store)


def test_a_row_that_vanished_is_lost_and_not_expired(tmp_path: Path) -> None:
    with contextlib.closing(DuckDBStore(tmp_path / "a.duckdb")) as store:
        commit(store, message(*predictions(1, 3), of=spool(1)))
        with contextlib.closing(store._cursor()) as cursor:
            cursor.execute("DELETE FROM predictions WHERE sequence = 2")
        with contextlib.closing(store.reader()) as reader:
            with pytest.raises(SightlineError) as caught:
                find(reader, spool(1), 2)
            assert find(reader, spool(1), 3).HasField("prediction")
        assert (caught.value.code.name, caught.value.reason) == ("DATA_LOSS", "SEQUENCE_LOST")
        ((record,), total) = ledger(store)
        assert (record.accepted, record.balanced, total.balanced) == (2, False, False)


def test_the_table_has_a_row_for_each_device_however_many_streams(tmp_path: Path) -> None:
    with contextlib.closing(DuckDBStore(tmp_path / "a.duckdb")) as store:
        maintenance = store.maintenance()
        for number in range(1, 4):
            at = NOW + timedelta(minutes=number)
            streams = (opened(spool(n), stream=n, opened_at=at) for n in range(1, number + 1))
            commit(store, *streams)
            maintenance.update_rollups(NOW, everything=True)
        rows = Audit().query(store, "SELECT device_id, minute(opened_at) FROM devices ORDER BY 1")
        assert rows == [("gate-1", 3), ("gate-2", 3), ("gate-3", 3)]
        assert not store._streams.waiting()


@pytest.mark.parametrize(
    ("commits", "whole", "rest"),
    [
        ((0, 100), (10, 30), [(0, 10), (30, 100)]),
        ((10, 30), (10, 30), []),
        ((11, 30), (20, 30), [(11, 20)]),
        ((10, 29), (10, 20), [(20, 29)]),
        ((12, 19), None, [(12, 19)]),
        ((40, 50), None, [(40, 50)]),
    ],
)
def test_blocks_within_a_range_of_commits(
    commits: tuple[int, int], whole: tuple[int, int] | None, rest: list[tuple[int, int]]
) -> None:
    blocks = [(10, 20), (20, 30)]
    assert split(commits, [b for b in blocks if b[1] > commits[0]]) == (whole, rest)
