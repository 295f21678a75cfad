"""The background thread that updates rollups, expires old predictions and exports."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from ingest_service.store.protocol import PredictionStore
from ingest_service.store.retention_clock import ClockReading, judge, read_uptime, to_time, to_us
from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)

ROLLUP_SECONDS = 0.15
"""Time between two updates of the rollups, s. Queries read newer predictions row by row."""
EXPIRE_SECONDS = 600.0
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


class Housekeeping:
    """A thread that maintains a store, from construction until `close`.

    Args:
        store: the store to maintain.
        duties: the tasks besides updating rollups.
        now: the server's wall clock, UTC.

    Attributes:
        held_seconds: how far the wall clock is ahead of the time that retention uses, s; 0: it is
            trusted.
    """

    def __init__(self, store: PredictionStore, duties: Duties, now: Callable[[], datetime]) -> None:
        self._maintenance = store.maintenance()
        self._duties = duties
        self._now = now
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
            _Step(self._update_rollups, ROLLUP_SECONDS),
            _Step(self._export, self._duties.export_seconds),
            _Step(self._expire, EXPIRE_SECONDS),
        ]
        while not self._closing.is_set():
            for step in steps:
                step.run_if_due()
            self._closing.wait(ROLLUP_SECONDS)

    def _update_rollups(self) -> None:
        self._maintenance.update_rollups(self._now())

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

    def __init__(self, work: Callable[[], object], every: float) -> None:
        self._work = work
        self._name = work.__name__.strip("_")
        self._every = every
        self._due = 0.0

    def run_if_due(self) -> None:
        """Do the work if it is due. After a failure, retry when it is due next."""
        if time.monotonic() < self._due:
            return
        try:
            self._work()
        except (SightlineError, OSError) as error:
            if getattr(error, "reason", "") != "CANCELLED":
                logger.warning("%s failed: %s", self._name, error)
        except Exception:  # a bug in one task must not stop the others, which share the thread
            logger.exception("%s failed", self._name)
        # Set after the work: a task that takes longer than its interval must not starve the others.
        self._due = time.monotonic() + self._every
