import contextlib
import os
import resource
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from ingest_service.store.duckdb import file_store as duckdb_store
from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.duckdb.migrations import VERSIONS
from ingest_service.store.duckdb.opening import StoreOpenError
from ingest_service.store.protocol import PredictionStore
from servicekit.errors import SightlineError
from tests.unit.ingest_service.figures_conformance import FiguresConformance
from tests.unit.ingest_service.follow_conformance import FollowConformance
from tests.unit.ingest_service.record_conformance import RecordConformance
from tests.unit.ingest_service.samples import message, predictions, spool
from tests.unit.ingest_service.store_conformance import (
    PredictionStoreConformance,
    commit,
    everything,
    watermark,
)


class TestDuckDBStore(
    RecordConformance, FollowConformance, FiguresConformance, PredictionStoreConformance
):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> Callable[[], PredictionStore]:
        return lambda: DuckDBStore(tmp_path / "test.duckdb")

    def query(self, store: PredictionStore, sql: str) -> list[tuple[Any, ...]]:
        assert isinstance(store, DuckDBStore)
        with contextlib.closing(store._cursor()) as cursor:
            rows: list[tuple[Any, ...]] = cursor.execute(sql).fetchall()
            return rows


@contextlib.contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """Simulate a full disk: no file of this process may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.duckdb"


def test_a_full_disk_fails_the_group_and_nothing_else(path: Path) -> None:
    store = DuckDBStore(path)
    commit(store, message(*predictions(1, 5)))
    size = path.with_suffix(".duckdb.wal").stat().st_size
    for _ in range(2):
        with no_file_beyond(size + 100), pytest.raises(SightlineError) as caught:
            commit(store, message(*predictions(6, 500)))
        assert (caught.value.code.name, caught.value.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
        assert watermark(store) == 5
        assert len(everything(store)) == 5
    commit(store, message(*predictions(6, 500)))
    store.close()
    assert len(everything(DuckDBStore(path))) == 500


def test_a_log_without_its_file_is_kept(path: Path) -> None:
    log = path.with_suffix(".duckdb.wal")
    log.write_bytes(b"the only copy")
    with pytest.raises(StoreOpenError, match="is gone, and its log"):
        DuckDBStore(path)
    assert log.read_bytes() == b"the only copy"
    log.write_bytes(b"")
    DuckDBStore(path).close()


@pytest.mark.slow
def test_no_byte_of_a_file_keeps_it_from_saying_what_is_wrong(path: Path) -> None:
    store = DuckDBStore(path)
    commit(store, message(*predictions(1, 2000)))
    store.close()
    sound = path.read_bytes()
    for position in range(10, len(sound), len(sound) // 50):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 1]) + sound[position + 1 :])
        with contextlib.suppress(StoreOpenError, SightlineError):
            DuckDBStore(path).close()


def test_a_disk_that_is_full_at_a_checkpoint_is_outlived(path: Path) -> None:
    """DuckDB then declares the database unusable, although the COMMIT is durable."""
    store = DuckDBStore(path)
    commit(store, message(*predictions(1, 5)))
    with contextlib.closing(store._cursor()) as cursor:
        cursor.execute("SET checkpoint_threshold = '1KB'")

    def fill() -> None:
        for start in range(6, 100_000, 500):
            commit(store, message(*predictions(start, start + 499)))

    with no_file_beyond(path.stat().st_size + 4096), pytest.raises(SightlineError) as caught:
        fill()
    assert caught.value.code.name == "UNAVAILABLE"
    assert isinstance(caught.value.__cause__, duckdb.FatalException), "not the fault that is meant"
    through = watermark(store)
    assert [stored.position.sequence for stored in everything(store)] == list(range(through, 0, -1))
    commit(store, message(*predictions(1, through + 3)))
    assert watermark(store) == through + 3
    store.close()


def test_a_broken_statement_is_internal_and_tells_the_caller_no_sql(path: Path) -> None:
    store = DuckDBStore(path)
    with contextlib.closing(store._cursor()) as cursor:
        cursor.execute("DROP TABLE watermarks CASCADE")
    with pytest.raises(SightlineError) as caught:
        watermark(store)
    assert (caught.value.code.name, caught.value.reason) == ("INTERNAL", "STORE_FAILED")
    assert "watermarks" not in caught.value.message
    store.close()


def test_a_file_that_another_process_has_open_is_refused(path: Path) -> None:
    program = (
        f"import duckdb; c = duckdb.connect({str(path)!r}); print('open', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "open\n"
        with pytest.raises(StoreOpenError, match=rf"another process has it open .*{other.pid}"):
            DuckDBStore(path)
        other.communicate("\n")


@pytest.mark.parametrize("where", ["no/such/folder/test.duckdb", "file/test.duckdb"])
def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / where
    with pytest.raises(StoreOpenError) as caught:
        DuckDBStore(path)
    assert str(caught.value) == (
        f"database: {path} cannot be opened: {path.parent} is no folder: create it, or choose "
        "another path"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreOpenError, match="cannot be opened"):
        DuckDBStore(tmp_path / "test.duckdb")


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_bytes(b"precious" * 1000)
    with pytest.raises(StoreOpenError, match="not a valid DuckDB"):
        DuckDBStore(path)
    assert path.read_bytes() == b"precious" * 1000


def test_a_file_of_a_newer_version_is_refused_and_left_alone(path: Path) -> None:
    DuckDBStore(path).close()
    newer = len(VERSIONS) + 1
    with duckdb.connect(path) as connection:
        connection.execute("INSERT INTO schema_version VALUES (?, now())", [newer])
    with pytest.raises(
        StoreOpenError, match=f"version {newer}, .* supports versions up to {len(VERSIONS)}"
    ):
        DuckDBStore(path)
    with duckdb.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM predictions").fetchall() == [(0,)]


def test_a_migration_that_fails_leaves_the_file_as_it_was(path: Path) -> None:
    with duckdb.connect(path) as connection:
        connection.execute("CREATE TABLE gaps (somebody VARCHAR)")  # another program's
    with pytest.raises(StoreOpenError, match="gaps"):
        DuckDBStore(path)
    with duckdb.connect(path) as connection:
        tables = connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()
    assert sorted(tables) == [("gaps",), ("schema_version",)]


def test_a_file_is_migrated_once(path: Path) -> None:
    for _ in range(2):
        store = DuckDBStore(path)
        with contextlib.closing(store._cursor()) as cursor:
            versions = cursor.execute("SELECT version FROM schema_version").fetchall()
        assert versions == [(version,) for version in range(1, len(VERSIONS) + 1)]
        store.close()


def test_positions_of_many_spools_are_forgotten_and_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duckdb_store, "_REMEMBERED", 5)
    with contextlib.closing(DuckDBStore(path)) as store:
        for sequence in (1, 2):
            for number in range(9):
                commit(store, message(*predictions(sequence, sequence), of=spool(number)))
                assert len(store._positions) <= 5
        assert [watermark(store, spool(number)) for number in range(9)] == [2] * 9


def test_each_opening_of_a_spool_counts_to_what_is_remembered(path: Path) -> None:
    with contextlib.closing(DuckDBStore(path)) as store:
        for sequence in range(1, 8):
            opening = str(uuid.UUID(int=sequence))
            commit(store, message(*predictions(sequence, sequence), generation=opening))
        (known,) = store._positions.values()
        assert store._openings == len(known.generations) == 7
