"""The metrics of the ingest service, from a real store."""

import contextlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from ingest_service.metrics import (
    FORGET_SECONDS,
    CommitMetrics,
    DeviceTimes,
    UpkeepMetrics,
    register_sizes,
)
from ingest_service.receive.group_writer import GroupWriter
from ingest_service.receive.rules import REASONS
from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.duckdb.maintenance import DuckDBMaintenance
from ingest_service.store.housekeeping import Duties, Housekeeping
from ingest_service.store.protocol import LedgerCheck
from servicekit.errors import SightlineError
from tests.pages import text
from tests.unit.ingest_service.samples import (
    NOW,
    gap,
    message,
    prediction,
    predictions,
    spool,
)
from tests.unit.ingest_service.store_conformance import BeforeCommit, MovableClock, commit

START = NOW.timestamp()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DuckDBStore]:
    with contextlib.closing(DuckDBStore(tmp_path / "x.duckdb")) as opened:
        yield opened


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"sightline_ingest_{name}", labels)


def test_what_a_group_commits_is_counted(store: DuckDBStore, registry: CollectorRegistry) -> None:
    devices = DeviceTimes(registry, 10, (), lambda: START)
    writer = GroupWriter(store, lambda: NOW, observer=CommitMetrics(registry, devices))
    assert value(registry, "predictions_total") == 0
    assert value(registry, "gap_sequences_total", reason="spool_bytes") == 0
    assert value(registry, "rejected_total", reason="SOURCE_REQUIRED") == 0
    assert value(registry, "last_commit_timestamp_seconds") == 0
    undated = prediction(4)
    undated.ClearField("captured_at")
    group = [
        message(*predictions(1, 3), undated, gap(5, 9)),
        message(*predictions(1, 2), gap(3, 7, reason=99), of=spool(2), stream=1),
    ]
    for _ in range(2):
        writer.commit(writer.prepare(group))
    assert value(registry, "predictions_total") == 5
    assert value(registry, "duplicates_total") == 6
    assert value(registry, "rejected_total", reason="CAPTURED_AT_REQUIRED") == 1
    assert value(registry, "gap_sequences_total", reason="dropped_oldest") == 5
    assert value(registry, "gap_sequences_total", reason="other") == 5  # of a newer contract
    assert value(registry, "commit_seconds_count") == 2
    assert value(registry, "group_predictions_sum") == 12
    assert value(registry, "last_commit_timestamp_seconds") == START
    seen = "device_last_received_timestamp_seconds"
    assert {value(registry, seen, device=of.device_id) for of in (spool(1), spool(2))} == {START}


def test_a_group_that_fails_is_counted(store: DuckDBStore, registry: CollectorRegistry) -> None:
    def fail() -> None:
        raise SightlineError(None, "STORE_UNAVAILABLE", "no")  # type: ignore[arg-type]

    metrics = CommitMetrics(registry, DeviceTimes(registry, 10, (), lambda: START))
    writer = GroupWriter(BeforeCommit(store, fail), lambda: NOW, observer=metrics)
    with pytest.raises(SightlineError):
        writer.commit(writer.prepare([message(*predictions(1, 3))]))
    assert value(registry, "commit_failures_total") == 1
    assert value(registry, "predictions_total") == 0
    assert value(registry, "commit_seconds_count") == 0


def test_every_rule_has_a_series_and_is_on_the_page() -> None:
    table = [line for line in text("reference/errors.md").splitlines() if line.startswith("| `")]
    first = next(i for i, line in enumerate(table) if "IMAGE_ID_REQUIRED" in line)
    last = next(i for i, line in enumerate(table) if "TRACE_ID_MALFORMED" in line)
    rules = [name for line in table[first : last + 1] for name in line.split("|")[1].split("`")]
    assert set(REASONS) == {name for name in rules if name.isupper()}


def test_devices_beyond_the_bound_are_counted_and_hide_none(registry: CollectorRegistry) -> None:
    now = START
    devices = DeviceTimes(registry, 3, [("a", now), ("b", now - 100)], lambda: now)
    seen = "device_last_received_timestamp_seconds"
    devices.received(["c", "d", "a"], now + 1)
    assert [value(registry, seen, device=name) for name in "abcd"] == [
        now + 1,
        now - 100,
        now + 1,
        None,
    ]
    assert value(registry, "device_series_refused_total") == 1
    now += FORGET_SECONDS - 50
    devices.received(["d"], now)
    assert [value(registry, seen, device=name) for name in "bd"] == [None, now]
    now += FORGET_SECONDS + 1
    assert [value(registry, seen, device=name) for name in "abcd"] == [None] * 4


def test_devices_beyond_the_bound_cost_no_search_each(registry: CollectorRegistry) -> None:
    searches = 0

    class Times(dict[str, float]):
        def values(self) -> Any:
            nonlocal searches
            searches += 1
            return super().values()

    devices = DeviceTimes(registry, 1, [("a", START)], lambda: START)
    devices._times = Times(devices._times)
    for number in range(100):
        devices.received([f"invented-{number}"], START + number / 10)
    assert searches == 1
    assert value(registry, "device_series_refused_total") == 100


def test_without_a_place_for_devices_nothing_is_counted(registry: CollectorRegistry) -> None:
    DeviceTimes(registry, 0, [("a", START)], lambda: START).received(["a", "b"], START)
    assert value(registry, "device_last_received_timestamp_seconds", device="a") is None
    assert value(registry, "device_series_refused_total") == 0


def test_devices_are_known_after_a_restart(store: DuckDBStore) -> None:
    for number in (1, 2, 3):
        clock = MovableClock()
        clock.time = NOW + timedelta(seconds=number)
        commit(store, message(*predictions(1, 2), of=spool(number)), now=clock)
    assert store.latest_devices(2) == [
        (spool(number).device_id, START + number) for number in (3, 2)
    ]


def test_the_size_of_the_files_is_read(store: DuckDBStore, registry: CollectorRegistry) -> None:
    register_sizes(registry, store.sizes)
    commit(store, message(*predictions(1, 3)))
    for file in ("database", "log"):
        assert (value(registry, "database_bytes", file=file) or 0) > 100
    store.close()
    assert value(registry, "database_bytes", file="log") == 0


def test_the_ledger_is_checked_by_sums(store: DuckDBStore) -> None:
    maintenance = store.maintenance()
    assert maintenance.check_ledger() == LedgerCheck(0, 0)
    undated = prediction(4)
    undated.ClearField("captured_at")
    huge = gap(10, 2**63 - 1)
    commit(store, message(*predictions(1, 3), undated, gap(5, 9)))
    commit(store, message(*predictions(1, 9), huge, of=spool(2)))
    maintenance.update_rollups(NOW, everything=True)
    commit(store, message(*predictions(10, 12)))
    assert maintenance.check_ledger() == LedgerCheck(0, 0)
    maintenance.expire(NOW + timedelta(days=1), exported_only=False)
    assert maintenance.check_ledger() == LedgerCheck(0, 0)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("DELETE FROM predictions WHERE sequence >= 10", LedgerCheck(1, 3)),  # not summed up yet
        ("DELETE FROM totals WHERE kind = 'device_id'", LedgerCheck(1, 3)),
        ("DELETE FROM rejected_predictions", LedgerCheck(1, 1)),
        ("DELETE FROM gaps", LedgerCheck(1, 5)),
        ("INSERT INTO gaps SELECT * FROM gaps", LedgerCheck(1, 5)),
        ("UPDATE watermarks SET committed_through = 20", LedgerCheck(1, 8)),
    ],
)
def test_books_that_do_not_balance_are_found(
    store: DuckDBStore, damage: str, found: LedgerCheck
) -> None:
    maintenance = store.maintenance()
    undated = prediction(4)
    undated.ClearField("captured_at")
    commit(store, message(*predictions(1, 3), undated, gap(5, 9)))
    maintenance.update_rollups(NOW, everything=True)
    commit(store, message(*predictions(10, 12)))
    with contextlib.closing(store._cursor()) as cursor:
        cursor.execute(damage)
    assert maintenance.check_ledger() == found


def test_upkeep_is_timed_and_its_failures_are_counted(
    store: DuckDBStore,
    registry: CollectorRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failed = threading.Event()
    commit(store, message(*predictions(1, 3)))
    with contextlib.closing(store._cursor()) as cursor:
        cursor.execute("DELETE FROM predictions WHERE sequence = 2")

    def fail(*_: object) -> None:
        if failed.is_set():
            done.set()
        failed.set()
        raise OSError("no such disk")

    done = threading.Event()
    monkeypatch.setattr(DuckDBMaintenance, "export", fail)
    duties = Duties(export_dir=tmp_path / "out", export_seconds=0.0)
    housekeeping = Housekeeping(store, duties, lambda: datetime.now(UTC), UpkeepMetrics(registry))
    assert done.wait(10)
    housekeeping.close()
    last = "upkeep_last_success_timestamp_seconds"
    assert value(registry, last, task="export") == 0
    assert (value(registry, "upkeep_failures_total", task="export") or 0) >= 1
    for task in ("update_rollups", "expire", "check_ledger"):
        assert value(registry, last, task=task) == pytest.approx(
            datetime.now(UTC).timestamp(), abs=60
        )
        assert (value(registry, "upkeep_last_duration_seconds", task=task) or 0) > 0
        assert value(registry, "upkeep_failures_total", task=task) == 0
    assert value(registry, "ledger_unbalanced_devices") == 1
    assert value(registry, "ledger_difference_sequences") == 1
    assert "the books of 1 devices do not balance" in caplog.text
