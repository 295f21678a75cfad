"""Item 11: the files of a store are deleted, replaced or overwritten while it is open."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from ingest_service.store.duckdb.commit_record import log_path
from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.watched import WatchedStore
from servicekit.errors import SightlineError
from tests.unit.edge.samples import eventually
from tests.unit.ingest_service.samples import message, predictions
from tests.unit.ingest_service.store_conformance import commit, watermark
from tests.unit.ingest_service.stores import checkpoint, leave, log, opened, sequences


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "log.duckdb"


@pytest.fixture
def store(path: Path) -> DuckDBStore:
    path.parent.mkdir()
    store = DuckDBStore(path)
    log(store, 1, 5)
    checkpoint(store)
    log(store, 6, 10)
    return store


def delete(path: Path) -> None:
    path.unlink()


def rename(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def rename_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


def replace(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


def overwrite(path: Path) -> None:
    with opened(path.with_name("another.duckdb")) as another:
        log(another, 1, 3)
    shutil.copy(path.with_name("another.duckdb"), path)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def refused(work: Callable[[], object]) -> None:
    with pytest.raises(SightlineError) as caught:
        work()
    error = caught.value
    assert (error.code.name, error.reason) == ("UNAVAILABLE", "STORE_MOVED")
    assert error.retry_after is not None


@pytest.mark.parametrize("harm", [delete, rename, rename_folder, replace, overwrite, empty])
def test_nothing_is_committed_or_read_once_the_database_is_not_there(
    store: DuckDBStore, path: Path, harm: Callable[[Path], None]
) -> None:
    harm(path)
    refused(lambda: log(store, 11, 15))
    refused(lambda: watermark(store))  # or a node would delete its only copy
    refused(store.probe)
    refused(store.check)
    refused(store.close)


@pytest.mark.parametrize("harm", [delete, rename_folder, replace, overwrite])
def test_a_commit_during_which_the_database_goes_is_not_confirmed(
    store: DuckDBStore, path: Path, harm: Callable[[Path], None]
) -> None:
    def commit_and_lose() -> None:
        with store.transaction():
            harm(path)

    refused(commit_and_lose)
    refused(store.close)


def test_a_database_that_is_moved_back_is_written_again(store: DuckDBStore, path: Path) -> None:
    rename_folder(path)
    refused(lambda: log(store, 11, 15))
    path.parent.with_name("elsewhere").rename(path.parent)
    log(store, 11, 15)
    store.close()
    with opened(path) as again:
        assert sequences(again) == list(range(1, 16))


def test_a_store_that_must_open_the_file_anew_makes_no_empty_one(
    store: DuckDBStore, path: Path
) -> None:
    store._forget()
    path.unlink()
    refused(lambda: watermark(store))
    assert not path.exists()


def cut_short(log_file: Path) -> None:
    os.truncate(log_file, 100)


def put_an_old_one(log_file: Path) -> None:
    log_file.with_name("old").write_bytes(log_file.read_bytes()[:200])
    log_file.with_name("old").replace(log_file)


@pytest.mark.parametrize("harm", [delete, rename, cut_short, put_an_old_one])
@pytest.mark.parametrize("is_new", [True, False])
def test_what_a_log_held_that_is_gone_is_kept(
    store: DuckDBStore, path: Path, tmp_path: Path, harm: Callable[[Path], None], is_new: bool
) -> None:
    """A checkpoint writes its content, which is still in memory, before a commit is acknowledged.

    DuckDB opens the log at its first write, so a log of an earlier process may vanish before.
    """
    if not is_new:
        left = leave(path, tmp_path / "left")
        store.close()
        path, store = left, DuckDBStore(left)
    harm(log_path(path))
    log(store, 11, 15)
    log(store, 16, 20)
    left = leave(path, tmp_path / "killed")
    with opened(left) as again:
        assert sequences(again) == list(range(1, 21))


def test_a_log_behind_a_link_that_is_gone_is_noticed(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    link = tmp_path / "sightline.duckdb"
    link.symlink_to(path)
    store = DuckDBStore(link)
    log(store, 1, 10)
    path.with_name(f"{path.name}.wal").unlink()
    log(store, 11, 15)
    left = leave(path, tmp_path / "killed")
    with opened(left) as again:
        assert sequences(again) == list(range(1, 16))
    link.unlink()
    refused(lambda: log(store, 16, 20))
    link.symlink_to(path)
    store.close()


def test_readiness_follows_within_a_second_though_nobody_writes(
    store: DuckDBStore, path: Path
) -> None:
    watched = WatchedStore(store, probe_seconds=0.05)
    changes: list[bool] = []
    watched.on_change = changes.append
    path.rename(path.with_name("elsewhere"))
    assert eventually(lambda: changes == [False], 5)
    path.with_name("elsewhere").rename(path)
    assert eventually(lambda: changes == [False, True], 5)
    watched.close()


def test_one_failed_commit_is_enough(store: DuckDBStore, path: Path) -> None:
    watched = WatchedStore(store, probe_seconds=3600)
    changes: list[bool] = []
    watched.on_change = changes.append
    path.unlink()
    refused(lambda: commit(watched, message(*predictions(11, 15))))
    assert changes == [False]
    refused(watched.close)


def test_what_is_open_can_still_be_saved(store: DuckDBStore, path: Path, tmp_path: Path) -> None:
    path.unlink()
    refused(lambda: log(store, 11, 15))
    store.backup(tmp_path / "saved.duckdb", lambda _done, _of: None)
    with opened(tmp_path / "saved.duckdb") as saved:
        assert sequences(saved) == list(range(1, 11))


@pytest.mark.parametrize(
    "error", [duckdb.FatalException, duckdb.IOException, duckdb.OutOfMemoryException]
)
def test_a_backup_that_fails_is_no_failure_of_the_store(
    store: DuckDBStore, tmp_path: Path, error: type[duckdb.Error]
) -> None:
    """A full disk for the copy is no failure of the database."""
    served = store._root

    def fill_the_disk(_done: int, _of: int) -> None:
        raise error("no space left on the device")

    with pytest.raises(SightlineError, match="no space left") as caught:
        store.backup(tmp_path / "saved.duckdb", fill_the_disk)
    assert caught.value.reason == "BACKUP_FAILED"
    assert str(tmp_path) in caught.value.message
    assert store._root is served, "it was closed and opened anew"
    log(store, 11, 15)
    store.close()
