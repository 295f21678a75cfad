"""Item 15 of issue 11: a wrong wall clock alone never deletes predictions."""

import contextlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_service.store import housekeeping as housekeeping_module
from ingest_service.store.duckdb.commit_clock import CommitClock
from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.housekeeping import Duties, Housekeeping
from ingest_service.store.retention_clock import (
    SLACK_US,
    ClockRecord,
    Uptime,
    judge,
    read_uptime,
    to_us,
)
from tests.unit.ingest_service.samples import NOW, message, prediction, spool, timestamp
from tests.unit.ingest_service.store_conformance import commit, stats

HOUR, DAY = 3600 * 10**6, 24 * 3600 * 10**6
BOOT = Uptime("boot-1", 1000.0)
START = to_us(NOW)
DAYS_AHEAD = timedelta(days=60)


def later(seconds: float, boot: str = "boot-1") -> Uptime:
    return Uptime(boot, BOOT.seconds + seconds)


def record(slack: int = SLACK_US) -> ClockRecord:
    return ClockRecord(START, BOOT, slack)


def test_time_that_passed_while_the_machine_was_up_is_trusted_however_long() -> None:
    days = 200
    reading = judge(record(0), START + days * DAY, later(days * 86_400))
    assert (reading.trusted_us, reading.jump_us) == (START + days * DAY, 0)


def test_a_jump_of_days_is_not_trusted_and_time_goes_on_meanwhile() -> None:
    ahead = 60 * DAY
    first = judge(record(), START + ahead, later(0))
    assert (first.trusted_us, first.jump_us) == (START, ahead)
    second = judge(first.record, START + ahead + HOUR, later(3600))
    assert (second.trusted_us, second.jump_us) == (START + HOUR, ahead)
    back = judge(second.record, START + 2 * HOUR, later(7200))
    assert (back.trusted_us, back.jump_us) == (START + 2 * HOUR, 0)


def test_a_restart_of_the_machine_explains_no_more_than_a_day() -> None:
    assert judge(record(), START + DAY, later(10**9, "boot-2")).jump_us == 0
    held = judge(record(), START + DAY + 1, later(10**9, "boot-2"))
    assert (held.trusted_us, held.jump_us) == (START, DAY + 1)


def test_a_clock_that_creeps_ahead_uses_the_slack_up() -> None:
    state, wall = record(), START
    for _ in range(50):
        wall += 20 * HOUR
        state = judge(state, wall, later(0)).record
    assert state.reached_us <= START + SLACK_US


def test_the_slack_grows_again_with_the_time_that_passes() -> None:
    used = judge(record(), START + DAY, later(0)).record
    assert used.slack_us == 0
    assert judge(used, used.reached_us + 2 * DAY, later(86_400)).jump_us == 0


def test_a_confirmed_clock_is_trusted_up_to_the_confirmed_time_only() -> None:
    wall = START + 60 * DAY
    good = judge(record(), wall, later(0), confirmed_until_us=wall + DAY)
    assert (good.trusted_us, good.jump_us) == (wall, 0)
    assert judge(record(), wall, later(0), confirmed_until_us=wall - 1).jump_us > 0
    assert judge(good.record, wall + 3 * DAY, later(0), confirmed_until_us=wall + DAY).jump_us > 0


def test_a_clock_that_was_behind_needs_no_confirmation_when_it_is_right_again() -> None:
    state = judge(record(), 0, later(60)).record  # 1970
    assert state.reached_us == START
    assert judge(state, START + 2 * HOUR, later(7200)).jump_us == 0


@given(
    st.lists(
        st.tuples(st.integers(-400 * DAY, 400 * DAY), st.integers(0, 10 * 86_400), st.booleans()),
        max_size=30,
    )
)
def test_no_clock_deletes_more_than_uptime_and_slack_allow(
    steps: list[tuple[int, int, bool]],
) -> None:
    """For every clock: trusted <= start + time up + a day + a day for each day up."""
    state, boot, up, total = record(), 1, BOOT.seconds, 0
    for wall, passed, reboots in steps:
        boot, up = (boot + 1, 0.0) if reboots else (boot, up + passed)
        total += 0 if reboots else passed
        reading = judge(state, START + wall, Uptime(f"boot-{boot}", up))
        state = reading.record
        assert reading.trusted_us <= START + 2 * total * 10**6 + SLACK_US
        assert reading.trusted_us <= START + wall


def test_the_uptime_is_that_of_the_kernel() -> None:
    first, second = read_uptime(), read_uptime()
    assert first.boot == second.boot != ""
    assert 0 <= second.seconds - first.seconds < 60


# -- In a store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.duckdb"


class MaintainedStore:
    """A store whose housekeeping uses a wall clock of the test's choice."""

    def __init__(self, store: DuckDBStore, now: Callable[[], datetime], **duties: object) -> None:
        self.housekeeping = Housekeeping(store, Duties(retain_days=30, **duties), now)  # type: ignore[arg-type]
        self.store = store

    def expire(self) -> int:
        """Run the task like the thread, and return the number of stored predictions."""
        self.housekeeping._expire()
        return stats(self.store).total_predictions

    def __enter__(self) -> "MaintainedStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.housekeeping.close()


@pytest.fixture(autouse=True)
def _seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the thread's own expiry, so that only the test expires predictions."""
    monkeypatch.setattr(housekeeping_module.Housekeeping, "_run", lambda _: None)


def fill(store: DuckDBStore, received: datetime) -> None:
    stamp = prediction(1, captured_at=timestamp(received))
    commit(store, message(stamp, of=spool(1)), now=lambda: received)
    store.maintenance().update_rollups(received, everything=True)


def restarted(path: Path, received: datetime) -> DuckDBStore:
    """Create a store with one row whose clock record is current."""
    store = DuckDBStore(path)
    fill(store, received)
    with MaintainedStore(store, lambda: received) as kept:
        assert kept.expire() == 1
    store.close()
    return DuckDBStore(path)


def test_one_start_with_the_clock_60_days_ahead_deletes_nothing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    real = datetime.now(UTC)
    store = restarted(path, real)
    with (
        caplog.at_level(logging.ERROR, "ingest_service.store.housekeeping"),
        MaintainedStore(store, lambda: real + DAYS_AHEAD) as kept,
    ):
        # The first commit has the wrong time, and must not confirm it.
        commit(store, message(prediction(1), of=spool(2)), now=lambda: real + DAYS_AHEAD)
        store.maintenance().update_rollups(real + DAYS_AHEAD, everything=True)
        assert kept.expire() == 2
        assert kept.housekeeping.held_seconds == pytest.approx(DAYS_AHEAD.total_seconds(), abs=60)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "would delete 1 predictions" in line
    assert f"--retain-confirm-until {(real + timedelta(days=61)).date()}" in line
    with MaintainedStore(store, lambda: real) as kept:
        assert kept.expire() == 2
        assert kept.housekeeping.held_seconds == 0
    store.close()


def test_a_jump_while_the_service_runs_deletes_nothing(path: Path) -> None:
    real, ahead = datetime.now(UTC), [timedelta()]
    store = DuckDBStore(path)
    fill(store, real)
    with MaintainedStore(store, lambda: real + ahead[0]) as kept:
        assert kept.expire() == 1
        ahead[0] = DAYS_AHEAD
        assert kept.expire() == 1
    store.close()


def test_a_store_that_was_off_for_60_days_waits_for_an_operator(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = datetime.now(UTC)
    store = restarted(path, real - DAYS_AHEAD)
    # The machine was off, too: it does not know for how long.
    monkeypatch.setattr(housekeeping_module, "read_uptime", lambda: Uptime("another", 60.0))
    with MaintainedStore(store, lambda: real) as kept:
        assert kept.expire() == 1
    with MaintainedStore(store, lambda: real, confirmed_until=real + timedelta(days=1)) as kept:
        assert kept.expire() == 0
    with MaintainedStore(store, lambda: real) as kept:  # the confirmation is kept
        assert kept.housekeeping.held_seconds == 0
    store.close()


def test_a_file_that_was_never_kept_goes_by_its_last_commit(path: Path) -> None:
    real = datetime.now(UTC)
    with contextlib.closing(DuckDBStore(path)) as store:
        fill(store, real)
        with MaintainedStore(store, lambda: real + DAYS_AHEAD) as kept:
            assert kept.expire() == 1


def test_rejected_rows_are_kept_as_well(path: Path) -> None:
    real = datetime.now(UTC)
    with contextlib.closing(DuckDBStore(path)) as store:
        commit(store, message(prediction(1, model_name="")), now=lambda: real)
        with MaintainedStore(store, lambda: real + DAYS_AHEAD) as kept:
            kept.expire()
        assert stats(store).rejected == 1


def test_a_warning_each_hour_while_received_at_is_ahead(caplog: pytest.LogCaptureFixture) -> None:
    steady = [0.0]
    clock = CommitClock(to_us(NOW + DAYS_AHEAD), lambda: steady[0])
    for steady[0] in (0, 60, 3599, 3600, 7300):
        assert clock.tick(NOW) > NOW + DAYS_AHEAD
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert "60 days" in lines[0]
    assert "received_at stays at" in lines[0]
    assert clock.seconds_ahead(NOW) == pytest.approx(DAYS_AHEAD.total_seconds(), abs=1)
    clock.tick(NOW + DAYS_AHEAD + timedelta(seconds=1))
    assert "caught up" in caplog.messages[-1]


def test_rows_get_sums_while_the_clock_is_behind_them(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise exports would stop for as long as the clock was ahead before."""
    steady = [0.0]
    monkeypatch.setattr("ingest_service.store.duckdb.maintenance.time.monotonic", lambda: steady[0])
    with contextlib.closing(DuckDBStore(path)) as store:
        commit(store, message(prediction(1)), now=lambda: NOW + DAYS_AHEAD)
        maintenance = store.maintenance()
        for steady[0], blocks in ((0.0, 0), (3599.0, 0), (3600.0, 1)):
            maintenance.update_rollups(NOW)
            with contextlib.closing(store._cursor()) as cursor:
                assert cursor.execute("SELECT count(*) FROM blocks").fetchall() == [(blocks,)]
