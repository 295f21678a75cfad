"""Rollups of figures in a DuckDB file: their bins, their portions, and those of older files."""

import contextlib
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from ingest_service.store.duckdb import rollups
from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.duckdb.migrations import VERSIONS
from ingest_service.store.duckdb.rollup_sql import BIN
from ingest_service.store.duckdb.rollup_sums import ROWS, bins_of, merge, sum_up
from ingest_service.store.protocol import Filter
from tests.unit.ingest_service.figures_conformance import (
    HOUR_US,
    assert_confidences,
    assert_series,
    assert_versions,
    log_figures,
    read,
)
from tests.unit.ingest_service.naive_figures import Logged
from tests.unit.ingest_service.samples import NOW, message, prediction, spool
from tests.unit.ingest_service.store_conformance import commit, stats, update_rollups
from tests.unit.ingest_service.stores import make_of_schema

WITHOUT = VERSIONS.index("schema_6.sql")
"""The last version whose rollups have no confidences."""
FIRST_WITH_BLOCKS = 2


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.duckdb"


def rows(store: DuckDBStore, sql: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(store._cursor()) as cursor:
        result: list[tuple[Any, ...]] = cursor.execute(sql).fetchall()
        return result


def old_blocks(store: DuckDBStore) -> int:
    ((count,),) = rows(store, "SELECT count(*) FROM blocks WHERE has_confidences IS NOT TRUE")
    return int(count)


def assert_some(store: DuckDBStore, logged: Logged) -> None:
    """Compare one figure of each kind with plain Python."""
    assert_series(store, logged, Filter(), HOUR_US)
    assert_versions(store, logged, Filter())
    assert_confidences(store, logged, Filter())


@pytest.mark.slow
@pytest.mark.parametrize("number", range(FIRST_WITH_BLOCKS, WITHOUT + 1))
def test_blocks_of_an_older_file_are_read_by_rows_until_they_are_summed_up_again(
    path: Path, number: int
) -> None:
    with contextlib.closing(DuckDBStore(path)) as store:
        logged, clock = log_figures(store, number, sums=True, groups=18)
        expected = stats(store)
    old = path.with_name("old.duckdb")
    make_of_schema(old, path, number)
    with contextlib.closing(DuckDBStore(old)) as store:
        before = old_blocks(store)
        assert before > 3
        assert_some(store, logged)
        left = before
        maintenance = store.maintenance()
        while left:
            maintenance.update_rollups(clock.time)
            assert old_blocks(store) == left - 1, "one block at a time"
            left -= 1
            if left == before // 2:
                assert_some(store, logged)
        assert_some(store, logged)
        assert stats(store) == expected
        assert rows(store, "SELECT count(*) FROM blocks") == [(before,)]


def test_a_block_that_is_merged_with_an_older_one_is_summed_up_again(path: Path) -> None:
    with contextlib.closing(DuckDBStore(path)) as store:
        logged, _ = log_figures(store, 3, sums=True, groups=3)
    old = path.with_name("old.duckdb")
    make_of_schema(old, path, WITHOUT)
    with contextlib.closing(DuckDBStore(old)) as store:
        with contextlib.closing(store._cursor()) as cursor:
            update_rollups(store)
            blocks = rollups.all_blocks(cursor)
            assert [block.has_confidences for block in blocks] == [False, True, True]
            cursor.execute("BEGIN")
            rollups.merge_blocks(cursor, blocks)
            cursor.execute("COMMIT")
        assert old_blocks(store) == 1
        assert_versions(store, logged, Filter())
        update_rollups(store)
        assert old_blocks(store) == 0
        assert_versions(store, logged, Filter())


def test_a_block_is_summed_up_in_portions(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = "SELECT * EXCLUDE (classes, times, confidences, cloud_reasons) FROM rollups ORDER BY ALL"
    lists = """
        SELECT list_sort(classes), list_sort(times), list_sort(cloud_reasons),
            list_sort(confidences)
        FROM rollups ORDER BY device_id, captured_hour, model_name, model_version, source,
            defect_detected
    """
    with contextlib.closing(DuckDBStore(path)) as store:
        log_figures(store, 4, sums=False, groups=4)
        with contextlib.closing(store._cursor()) as cursor:
            (block,) = rollups.open_blocks(cursor, lambda _: 0, everything=True)
            found = []
            for portion in (50_000, 2048, 7):
                monkeypatch.setattr(rollups, "_PORTION", portion)
                cursor.execute("BEGIN")
                rollups.close_block(cursor, block)
                queries = (kept, lists)
                found.append([cursor.execute(q).to_arrow_table().to_pylist() for q in queries])
                cursor.execute("ROLLBACK")
    assert found[0][0]
    assert found[0] == found[1] == found[2]


def test_nothing_sums_up_to_nothing(path: Path) -> None:
    with contextlib.closing(DuckDBStore(path)) as store:
        with contextlib.closing(store._cursor()) as cursor:
            none = sum_up(cursor.execute(ROWS.format(where="true")).to_arrow_table())
            assert none.num_rows == 0
            assert merge(none).num_rows == 0
            columns = {name for name, *_ in cursor.execute("DESCRIBE rollups").fetchall()}
        assert set(none.column_names) == columns - {"through"}


def test_confidences_are_in_the_bin_that_begins_with_them() -> None:
    edges = np.array([at / 20 for at in range(21)], np.float32)
    below = np.nextafter(edges[1:], np.float32(0))
    assert bins_of(edges).tolist() == [*range(20), 19]
    assert bins_of(below).tolist() == list(range(20))
    many = np.concatenate([edges, below, np.random.default_rng(1).random(1000, np.float32)])
    sql = f"SELECT {BIN} FROM (SELECT {{'confidence': c}} AS d FROM given)"
    with duckdb.connect() as connection:
        connection.register("given", {"c": many})
        assert [row[0] for row in connection.execute(sql).fetchall()] == bins_of(many).tolist()


def test_many_keys_are_numbered_by_hashes(path: Path) -> None:
    """The table of all combinations of their values would be too large."""
    sent = [
        prediction(n, model_name=f"m{n}", model_version=f"v{n}", captured_at={"seconds": n * 4000})
        for n in range(300_000, 300_300)
    ]
    for number, p in enumerate(sent, 1):
        p.sequence = number
    with contextlib.closing(DuckDBStore(path)) as store:
        commit(store, message(*sent, of=spool(1)), now=lambda: NOW)
        update_rollups(store)
        assert rows(store, "SELECT count(*), max(predictions) FROM rollups") == [(300, 1)]
        found = read(store, lambda reader: reader.model_versions(Filter()))
    assert {(v.model_name, v.model_version) for v in found} == {
        (p.model_name, p.model_version) for p in sent
    }
