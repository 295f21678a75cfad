"""The background thread that updates rollups, expires old predictions and exports."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple, Protocol

from ingest_service.store.protocol import LedgerCheck, PredictionStore
from ingest_service.store.retention_clock import ClockReading, judge, read_uptime, to_time, to_us
from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)

ROLLUP_SECONDS = 0.15
"""Time between two updates of the rollups, s. Queries read newer predictions row by row."""
EXPIRE_SECONDS = 600.0
LEDGER_SECONDS = 60.0
"""Time between two checks of the ledger, s."""
TASKS = ("update_rollups", "export", "expire", "check_ledger")
REMINDER_SECONDS = 86_400.0
"""Time between two log lines that retention waits for an operator, s."""


@dataclass(frozen=True, slots=True)
class Duties:
    """The tasks of the thread besides updating rollups."""

    retain_days: int = 0
    """Days to keep predictions; 0: forever."""
    export_dir: Path | None = None
    export_seconds: float = 3600.0
    confirmed_until: datetime | None = None
    """An operator has confirmed the wall clock up to this time, UTC."""


class StepReport(NamedTuple):
    """The report of one run of a task."""

    task: str
    """One of `TASKS`."""
    seconds: float
    """Its duration."""
    ended_at: float
    """The server's wall clock at its end, s since 1970."""
    failed: bool


class Observer(Protocol):
    """An observer of the thread, called on it."""

    def step(self, report: StepReport) -> object:
        """Observe a run of a task. One that `close` interrupted is not reported."""
        ...

    def ledger(self, check: LedgerCheck) -> object:
        """Observe the result of a check of the ledger."""
        ...


class Housekeeping:
    """A thread that maintains a store, from construction until `close`.

    Args:
        store: the store to maintain.
        duties: the tasks besides updating rollups.
        now: the server's wall clock, UTC.
        observer: observes the runs of the tasks; None: nobody does, and the ledger is not checked.

    Attributes:
        held_seconds: how far the wall clock is ahead of the time that retention uses, s; 0: it is
            trusted.
    """

    def __init__(
        self,
        store: PredictionStore,
        duties: Duties,
        now: Callable[[], datetime],
        observer: Observer | None = None,
    ) -> None:
        self._maintenance = store.maintenance()
        self._duties = duties
        self._now = now
        self._observer = observer
        self._is_unbalanced = False
        self.held_seconds = 0.0
        self._reminded = -REMINDER_SECONDS
        self._closing = threading.Event()
        # Before the first commit, whose time may come from a wrong clock.
        _Step(self._read_clock, EXPIRE_SECONDS).run_if_due()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Interrupt the current step and end the thread; the next start resumes the step."""
        self._closing.set()
        while self._thread.is_alive():
            self._maintenance.interrupt()  # again: one between two queries is lost
            self._thread.join(0.05)

    def _run(self) -> None:
        steps = [
            _Step(self._update_rollups, ROLLUP_SECONDS, self._report),
            _Step(self._export, self._duties.export_seconds, self._report),
            _Step(self._expire, EXPIRE_SECONDS, self._report),
            _Step(self._check_ledger, LEDGER_SECONDS, self._report),
        ]
        while not self._closing.is_set():
            for step in steps:
                step.run_if_due()
            self._closing.wait(ROLLUP_SECONDS)

    def _update_rollups(self) -> None:
        self._maintenance.update_rollups(self._now())

    def _check_ledger(self) -> None:
        if self._observer is None:
            return
        check = self._maintenance.check_ledger()
        self._observer.ledger(check)
        if check.unbalanced_devices and not self._is_unbalanced:
            logger.error(
                "the books of %d devices do not balance: %d sequences are not what was committed."
                " `SELECT * FROM ledger WHERE NOT balanced` on a backup names the spools",
                *check,
            )
        self._is_unbalanced = check.unbalanced_devices > 0

    def _report(self, task: str, seconds: float, failed: bool) -> None:
        if self._observer is not None:
            self._observer.step(StepReport(task, seconds, self._now().timestamp(), failed))

    def _export(self) -> None:
        folder = self._duties.export_dir
        if folder is None:
            return
        began = time.monotonic()
        if files := self._maintenance.export(folder, self._now()):
            logger.info("exported %d files in %.1f s", files, time.monotonic() - began)

    def _expire(self) -> None:
        # Also without retention: the store must know the time when retention is enabled later.
        reading = self._read_clock()
        if not self._duties.retain_days:
            return
        before = self._oldest_kept(to_time(reading.trusted_us))
        if count := self._maintenance.expire(before, exported_only=self._exported_only):
            logger.info("deleted %d predictions received before %s", count, before)

    def _read_clock(self) -> ClockReading:
        wall, confirmed = self._now(), self._duties.confirmed_until
        until = None if confirmed is None else to_us(confirmed)
        uptime = read_uptime()
        reading = self._maintenance.read_clock(
            lambda record: judge(record, to_us(wall), uptime, until)
        )
        if reading.jump_us:
            self._remind(wall, reading)
        elif self.held_seconds:
            logger.warning("the clock is trusted again: retention uses it")
            self._reminded = -REMINDER_SECONDS
        self.held_seconds = reading.jump_us / 1e6
        return reading

    def _remind(self, wall: datetime, reading: ClockReading) -> None:
        if time.monotonic() - self._reminded < REMINDER_SECONDS:
            return
        self._reminded = time.monotonic()
        held = 0
        if self._duties.retain_days:
            before = self._oldest_kept(wall)
            held = self._maintenance.expirable(before, exported_only=self._exported_only)
        logger.error(
            "the clock shows %s, which is %s more than the elapsed time explains: retention uses %s"
            " until the clock is confirmed. By the clock it would delete %d predictions. Set the"
            " clock right, or, if it is right, start with --retain-confirm-until %s",
            wall.isoformat(timespec="seconds"),
            timedelta(seconds=reading.jump_us // 10**6),
            to_time(reading.trusted_us).isoformat(timespec="seconds"),
            held,
            (wall + timedelta(days=1)).date(),
        )

    def _oldest_kept(self, now: datetime) -> datetime:
        return now - timedelta(days=self._duties.retain_days)

    @property
    def _exported_only(self) -> bool:
        return self._duties.export_dir is not None


class _Step:
    """A periodic task and the time when it is due next."""

    def __init__(
        self,
        work: Callable[[], object],
        every: float,
        report: Callable[[str, float, bool], object] = lambda _task, _seconds, _failed: None,
    ) -> None:
        self._work = work
        self._report = report
        self._name = work.__name__.strip("_")
        self._every = every
        self._due = 0.0

    def run_if_due(self) -> None:
        """Do the work if it is due. After a failure, retry when it is due next."""
        if time.monotonic() < self._due:
            return
        began = time.monotonic()
        failed: bool | None = True  # None: it was interrupted
        try:
            self._work()
            failed = False
        except (SightlineError, OSError) as error:
            if getattr(error, "reason", "") == "CANCELLED":
                failed = None
            else:
                logger.warning("%s failed: %s", self._name, error)
        except Exception:  # a bug in one task must not stop the others, which share the thread
            logger.exception("%s failed", self._name)
        if failed is not None:
            self._report(self._name, time.monotonic() - began, failed)
        # Set after the work: a task that takes longer than its interval must not starve the others.
        self._due = time.monotonic() + self._every
