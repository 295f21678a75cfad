"""Item 22 of issue 11: statistics without a filter read one row per key, whatever is sent."""

import contextlib
import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from ingest_service.store.duckdb import totals
from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.protocol import Filter
from tests.unit.ingest_service.samples import message, spool
from tests.unit.ingest_service.store_conformance import (
    MovableClock,
    commit,
    stats,
    update_rollups,
    varied,
)
from tests.unit.ingest_service.stores import make_of_schema

_HOSTILE = """
import contextlib, json, sys, time
from datetime import UTC, datetime
from pathlib import Path
from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.protocol import Filter

ROWS = '''
    INSERT INTO predictions
    SELECT {device}, '', i, to_timestamp(1.79e9 + i // 20000), to_timestamp(1.7e9 + {hours} * 3600),
        NULL, '', 0, 0, 'm' || {model}, '', 'device', NULL, 0.001 * (1 + i % 9000),
        [{{'class_id': 1, 'class_name': 'c' || {cls}, 'confidence': 0.5, 'box': NULL,
           'track_id': NULL}}], i % 2 = 0, MAP {{}}, ''
    FROM range(300_000) AS t(i)
'''
FRIENDLY = {"device": "'d' || i % 8", "hours": 0, "model": "i % 3", "cls": "i % 80"}
HOSTILE = {"device": "'evil'", "hours": "i % 20000", "model": "i % 5000", "cls": "i * 7 % 20000"}

def seconds(name, keys):
    with contextlib.closing(DuckDBStore(Path(sys.argv[1]) / name)) as store:
        with contextlib.closing(store._cursor()) as cursor:
            cursor.execute(ROWS.format(**keys))
        store.maintenance().update_rollups(datetime.now(UTC), everything=True)
        taken = []
        for which in (Filter(), Filter(), Filter(), Filter(device_ids=("evil",))):
            with contextlib.closing(store.reader()) as reader:
                began = time.process_time()
                found = reader.stats(which)
                taken.append(time.process_time() - began)
                if which == Filter():
                    assert found.total_predictions == 300_000
        return taken
print(json.dumps([seconds("friendly", FRIENDLY), seconds("hostile", HOSTILE)]))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.duckdb"


def rows(store: DuckDBStore, sql: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(store._cursor()) as cursor:
        result: list[tuple[Any, ...]] = cursor.execute(sql).fetchall()
        return result


def counted(store: DuckDBStore, query: str) -> list[tuple[Any, ...]]:
    """Return the keys of a query with their counts, in the order of statistics."""
    return sorted(rows(store, f"{query} GROUP BY 1"), key=lambda row: (-row[1], row[0]))


def assert_as_the_rows_say(store: DuckDBStore) -> None:
    """Compare statistics without a filter with the rows, by independent SQL."""
    result = stats(store)
    counts = "count(*), count(*) FILTER (defect_detected) FROM predictions"
    for column, listed in (
        ("device_id", result.by_device),
        ("model_name", result.by_model),
        ("source", result.by_source),
    ):
        assert [tuple(count) for count in listed] == counted(store, f"SELECT {column}, {counts}")
    detections = "(SELECT unnest(detections) AS d FROM predictions)"
    by_class = counted(store, f"SELECT d.class_name, count(*) FROM {detections}")
    assert [(count.key, count.total) for count in result.by_class] == by_class
    captured = "epoch_us(min(captured_at)), epoch_us(max(captured_at))"
    assert rows(store, f"SELECT {counts.replace('FROM', f', {captured} FROM')}") == [
        (
            result.total_predictions,
            result.defects_detected,
            result.first_captured_us,
            result.last_captured_us,
        )
    ]
    assert result.total_detections == sum(count.total for count in result.by_class)


@pytest.mark.slow
def test_one_device_with_many_keys_slows_no_statistics_down(tmp_path: Path) -> None:
    # CPU seconds. In a process of its own: DuckDB could wait for ever, and no interrupt ended it.
    done = subprocess.run(
        [sys.executable, "-c", _HOSTILE, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        timeout=100,
    )
    friendly, hostile = json.loads(done.stdout)
    assert min(hostile[:3]) < 5 * min(friendly[:3]), (friendly, hostile)


@pytest.mark.slow
@pytest.mark.parametrize("appended", [0, 7, totals.APPENDED])
def test_totals_are_those_of_the_rows(
    path: Path, monkeypatch: pytest.MonkeyPatch, appended: int
) -> None:
    """This holds after commits, new and merged blocks, retention, restarts and compaction."""
    monkeypatch.setattr(totals, "APPENDED", appended)
    store, clock = DuckDBStore(path), MovableClock()
    for number in range(1, 21):
        commit(store, message(*varied(number, 30), of=spool(number)), now=clock)
        if number % 2:
            update_rollups(store)
        clock.time += timedelta(minutes=17)
        if number % 5 == 0:
            before = clock.time - timedelta(hours=2)
            store.maintenance().expire(before, exported_only=False)
        if number % 7 == 0:
            store.close()
            store = DuckDBStore(path)
        assert_as_the_rows_say(store)
    assert stats(store).total_predictions < 600, "retention has deleted some"
    (largest,) = rows(
        store, "SELECT max(n) FROM (SELECT count(*) AS n FROM totals GROUP BY kind, name)"
    )
    if appended == 0:
        assert rows(store, "SELECT count(*) FROM totals WHERE total = 0 AND run > 0") == [(0,)]
        assert largest[0] < 20
    store.close()


class CountingCursor:
    """A cursor that counts the statements which it runs."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection) -> None:
        self.count = 0
        self._cursor = cursor

    def execute(self, query: str, *values: object) -> duckdb.DuckDBPyConnection:
        self.count += 1
        return self._cursor.execute(query, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


def test_the_totals_of_a_block_take_one_statement(path: Path) -> None:
    """It is planned anew, and there is a block for each 25 000 predictions."""
    with contextlib.closing(DuckDBStore(path)) as store:
        commit(store, message(*varied(1, 40)), now=MovableClock())
        update_rollups(store)
        kept = "SELECT kind, name, total, defects, detections FROM totals ORDER BY ALL"
        before = rows(store, kept)
        assert {kind for kind, *_ in before} == set(totals.KINDS)
        with contextlib.closing(store._cursor()) as cursor:
            cursor.execute("DELETE FROM totals")
            rollups = cursor.execute("SELECT * FROM rollups").to_arrow_table()
            counting: Any = CountingCursor(cursor)
            totals.add_block(counting, rollups)
        assert rows(store, kept) == before
        assert counting.count == 1


def test_everything_that_expires_leaves_no_total(path: Path) -> None:
    with contextlib.closing(DuckDBStore(path)) as store:
        clock = MovableClock()
        commit(store, message(*varied(1, 30)), now=clock)
        update_rollups(store)
        store.maintenance().expire(clock.time + timedelta(days=1), exported_only=False)
        result = stats(store)
        assert (result.total_predictions, result.by_model, result.by_class) == (0, [], [])
        assert (result.inference_seconds, result.first_captured_us) == (None, None)


def test_a_file_of_version_2_gets_its_totals(path: Path) -> None:
    with contextlib.closing(DuckDBStore(path)) as store:
        clock = MovableClock()
        for number in (1, 2, 3):
            commit(store, message(*varied(number, 40), of=spool(number)), now=clock)
            clock.tick()
            if number < 3:
                update_rollups(store)
        before = stats(store)
    old = path.with_name("old.duckdb")
    make_of_schema(old, path, 2)
    with contextlib.closing(DuckDBStore(old)) as store:
        assert stats(store) == before
        assert_as_the_rows_say(store)
        update_rollups(store)
        assert_as_the_rows_say(store)


def test_filters_and_totals_agree(path: Path) -> None:
    with contextlib.closing(DuckDBStore(path)) as store:
        clock = MovableClock()
        for number in (1, 2):
            commit(store, message(*varied(number, 40), of=spool(number)), now=clock)
            clock.tick()
            update_rollups(store)
        every = Filter(device_ids=(spool(1).device_id, spool(2).device_id))
        assert stats(store) == stats(store, every)
