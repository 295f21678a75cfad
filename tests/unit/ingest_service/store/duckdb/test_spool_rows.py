"""Item 22 of issue 11: the cost of a commit is independent of the number of spools."""

import contextlib
import random
import statistics
import time
import uuid
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_service.receive.group_writer import GroupWriter
from ingest_service.store.duckdb import spool_rows
from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.duckdb.spool_rows import FAR, MAX_RANGES, Range, SpoolRows, join_rows
from ingest_service.store.protocol import SpoolKey
from servicekit.errors import SightlineError
from tests.unit.ingest_service.samples import NOW, message, prediction, spool
from tests.unit.ingest_service.store_conformance import BeforeCommit, commit, watermark

MANY = 1_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.duckdb"


def fill(path: Path, count: int) -> None:
    """Create a store with the rows of `count` spools."""
    with (
        contextlib.closing(DuckDBStore(path)) as store,
        contextlib.closing(store._cursor()) as cursor,
    ):
        cursor.execute(
            "INSERT INTO watermarks"
            " (device_id, spool_id, committed_through, duplicates, updated_at)"
            f" SELECT 'd' || i % 100, uuid()::VARCHAR, 1, 0, now() FROM range({count}) AS t(i)"
        )
        # Their only prediction was deleted: the books must balance when the store is opened.
        cursor.execute("INSERT INTO expired SELECT device_id, spool_id, 1, 0 FROM watermarks")


def commit_seconds(store: DuckDBStore, of: SpoolKey, sequence: int) -> float:
    writer = GroupWriter(store, lambda: NOW + timedelta(seconds=sequence))
    prepared = writer.prepare([message(prediction(sequence), of=of)])
    began = time.perf_counter()
    (outcome,) = writer.commit(prepared)
    assert outcome.accepted == 1
    return time.perf_counter() - began


@pytest.mark.slow
def test_a_commit_does_not_grow_with_the_number_of_spools(tmp_path: Path) -> None:
    few, many = tmp_path / "few.duckdb", tmp_path / "many.duckdb"
    fill(few, 10)
    fill(many, MANY)
    seconds: dict[tuple[str, str], list[float]] = {}
    with (
        contextlib.closing(DuckDBStore(few)) as small,
        contextlib.closing(DuckDBStore(many)) as large,
    ):
        for store in (small, large):  # load the index
            commit_seconds(store, spool(1), 1)
        for sequence in range(2, 32):
            for name, store in (("small", small), ("large", large)):
                new = SpoolKey("evil", str(uuid.uuid4()))
                for kind, of, at in (("new", new, 1), ("known", spool(1), sequence)):
                    taken = commit_seconds(store, of, at)
                    seconds.setdefault((name, kind), []).append(taken)
    for kind in ("new", "known"):
        of_few, of_many = (statistics.median(seconds[name, kind]) for name in ("small", "large"))
        assert of_many < 1.6 * of_few, (kind, of_few, of_many)


@pytest.mark.slow
def test_positions_are_right_wherever_their_rows_are(path: Path) -> None:
    fill(path, 3 * FAR)
    chance = random.Random(1)
    spools = [spool(number) for number in range(12)]
    expected = dict.fromkeys(spools, 0)
    store = DuckDBStore(path)
    for _ in range(60):
        group = chance.sample(spools, chance.randint(1, len(spools)))
        for of in group:
            expected[of] += 1
        parts = [message(prediction(expected[of]), of=of, stream=n) for n, of in enumerate(group)]
        commit(store, *parts)
        if chance.random() < 0.2:
            store.close()
            store = DuckDBStore(path)
    assert {of: watermark(store, of) for of in spools} == expected
    with contextlib.closing(store._cursor()) as cursor:
        counts = cursor.execute("SELECT count(*), count(DISTINCT spool_id) FROM watermarks")
        assert counts.fetchall() == [(3 * FAR + 12, 3 * FAR + 12)]
    store.close()


def test_a_spool_of_a_transaction_that_failed_is_new_again(path: Path) -> None:
    def fail() -> NoReturn:
        raise RuntimeError("power")

    with contextlib.closing(DuckDBStore(path)) as store:
        commit(store, message(prediction(1), of=spool(1)))
        writer = GroupWriter(BeforeCommit(store, fail), lambda: NOW)
        prepared = writer.prepare([message(prediction(1), of=spool(2))])
        with pytest.raises(RuntimeError, match="power"):
            writer.commit(prepared)
        commit(store, message(prediction(1), of=spool(3)), message(prediction(2), of=spool(1)))
        commit(store, message(prediction(1), of=spool(2)), message(prediction(2), of=spool(3)))
        assert [watermark(store, spool(number)) for number in (1, 2, 3)] == [2, 1, 2]


def test_a_row_that_is_not_where_it_should_be_is_noticed_and_nothing_is_lost(path: Path) -> None:
    with contextlib.closing(DuckDBStore(path)) as store:
        commit(store, message(prediction(1), of=spool(1)))
        store._spools.learn(spool(1), 7 * FAR)
        with pytest.raises(SightlineError) as caught:
            commit(store, message(prediction(2), of=spool(1)))
        assert caught.value.retryable
        assert watermark(store, spool(1)) == 1
        commit(store, message(prediction(2), of=spool(1)))
        assert watermark(store, spool(1)) == 2


def test_spools_that_share_a_hash_are_kept_apart(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_rows, "_hash", lambda _: 7)
    monkeypatch.setattr(spool_rows, "_HASHES", "SELECT 7::UBIGINT AS hash FROM watermarks")
    with contextlib.closing(DuckDBStore(path)) as store:
        for sequence in (1, 2):
            commit(store, *(message(prediction(sequence), of=spool(n), stream=n) for n in range(3)))
    with contextlib.closing(DuckDBStore(path)) as store:
        assert [watermark(store, spool(number)) for number in range(4)] == [2, 2, 2, 0]


def test_the_table_s_hashes_are_those_of_the_process(path: Path) -> None:
    odd = SpoolKey("é \N{SNOWMAN} '", str(uuid.UUID(int=5)))
    with contextlib.closing(DuckDBStore(path)) as store:
        commit(store, message(prediction(1), of=odd))
        with contextlib.closing(store._cursor()) as cursor:
            assert SpoolRows().missing(cursor, [odd, spool(1)]) == {spool(1)}


@given(st.lists(st.integers(0, 100 * FAR), unique=True, max_size=60))
def test_ranges_cover_the_rows_and_stay_few(rows: Sequence[int]) -> None:
    ranges = join_rows(rows)
    assert len(ranges) <= MAX_RANGES
    assert all(any(first <= row <= last for first, last in ranges) for row in rows)
    assert {row for part in ranges for row in part} <= set(rows)


def test_rows_that_are_near_are_one_range() -> None:
    assert join_rows([5, 1, FAR, 3 * FAR]) == [Range(1, FAR), Range(3 * FAR, 3 * FAR)]
