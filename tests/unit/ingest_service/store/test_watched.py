import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest

from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.protocol import PredictionStore
from ingest_service.store.watched import STREAK, WatchedStore
from servicekit.errors import SightlineError
from tests.unit.ingest_service.samples import message, predictions
from tests.unit.ingest_service.store.duckdb.test_file_store import no_file_beyond
from tests.unit.ingest_service.store_conformance import commit

SOON, NEVER, PATIENCE = 0.05, 3600.0, 10.0


Watched = Callable[[float], tuple[WatchedStore, "queue.Queue[bool]"]]


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    """Return a factory of stores with a probe interval, and the queue of their reports."""
    stores: list[WatchedStore] = []

    def make(probe_seconds: float) -> tuple[WatchedStore, "queue.Queue[bool]"]:
        store = WatchedStore(DuckDBStore(tmp_path / "test.duckdb"), probe_seconds)
        changes: queue.Queue[bool] = queue.Queue()
        store.on_change = changes.put
        stores.append(store)
        return store, changes

    yield make
    for store in stores:
        store.close()


@contextmanager
def full_disk(tmp_path: Path) -> Iterator[None]:
    with no_file_beyond((tmp_path / "test.duckdb.wal").stat().st_size):
        yield


def fail(store: PredictionStore, times: int) -> None:
    for _ in range(times):
        with pytest.raises(SightlineError, match="cannot be written"):
            commit(store, message(*predictions(6, 500)))


def test_a_store_that_cannot_be_written_says_so_until_it_can(
    watched: Watched, tmp_path: Path
) -> None:
    store, changes = watched(NEVER)
    commit(store, message(*predictions(1, 5)))
    with full_disk(tmp_path):
        fail(store, STREAK - 1)
        assert changes.empty()
        fail(store, 3)
        assert changes.get_nowait() is False
    assert changes.empty()
    commit(store, message(*predictions(6, 10)))
    assert changes.get_nowait() is True


def test_a_single_failure_is_forgotten(watched: Watched, tmp_path: Path) -> None:
    store, changes = watched(NEVER)
    commit(store, message(*predictions(1, 5)))
    for last in range(6, 10):
        with full_disk(tmp_path):
            fail(store, STREAK - 1)
        commit(store, message(*predictions(last, last)))
    assert changes.empty()


def test_a_store_that_nobody_writes_to_is_probed(watched: Watched, tmp_path: Path) -> None:
    store, changes = watched(SOON)
    commit(store, message(*predictions(1, 5)))
    with full_disk(tmp_path):
        fail(store, 1)
        assert changes.get(timeout=PATIENCE) is False
        with pytest.raises(queue.Empty):
            changes.get(timeout=5 * SOON)
    assert changes.get(timeout=PATIENCE) is True


def test_a_little_room_does_not_make_it_ready(watched: Watched, tmp_path: Path) -> None:
    store, changes = watched(SOON)
    commit(store, message(*predictions(1, 5)))
    with no_file_beyond((tmp_path / "test.duckdb.wal").stat().st_size + 1000):
        fail(store, 1)
        assert changes.get(timeout=PATIENCE) is False
        with pytest.raises(queue.Empty):
            changes.get(timeout=5 * SOON)
    assert changes.get(timeout=PATIENCE) is True


def test_what_is_wrong_with_the_messages_is_no_fault_of_the_store(watched: Watched) -> None:
    store, changes = watched(NEVER)
    for _ in range(STREAK):
        with suppress(SightlineError), store.transaction():
            raise SightlineError(grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE", "no")
    assert changes.empty()


def test_a_store_that_is_closed_is_not_probed(watched: Watched, tmp_path: Path) -> None:
    store, _ = watched(NEVER)
    commit(store, message(*predictions(1, 5)))
    with full_disk(tmp_path):
        fail(store, 1)
    store.close()
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):  # cancelled: it ends at once, or else in an hour
            thread.join(PATIENCE)
            assert not thread.is_alive()
