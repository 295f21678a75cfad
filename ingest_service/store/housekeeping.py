"""Keeps the store in shape in the background: sums often, retention and exports by and by."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from ingest_service.store.protocol import Store
from ingest_service.store.retention_clock import Reading, judge, read_uptime, to_time, to_us
from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)

ROLLUP_SECONDS = 0.15
"""Time between two looks at what was committed, s: what has no sums yet is read row by row."""
EXPIRE_SECONDS = 600.0
REMINDER_SECONDS = 86_400.0
"""Time between two lines that say that retention waits for an operator, s."""


@dataclass(frozen=True, slots=True)
class Duties:
    """What there is to do besides sums."""

    retain_days: int = 0
    """0: for ever."""
    export_dir: Path | None = None
    export_seconds: float = 3600.0
    confirmed_until: datetime | None = None
    """An operator vouches for the wall clock up to this time, UTC."""


class Housekeeping:
    """A thread that keeps a store in shape, from its making until `close`.

    Args:
        store: what is kept.
        duties: what to do besides sums.
        now: the server's wall clock, UTC.

    Attributes:
        held_seconds: how far the wall clock is beyond the time that retention goes by, s; 0: it is
            trusted.
    """

    def __init__(self, store: Store, duties: Duties, now: Callable[[], datetime]) -> None:
        self._maintenance = store.maintenance()
        self._duties = duties
        self._now = now
        self.held_seconds = 0.0
        self._reminded = -REMINDER_SECONDS
        self._closing = threading.Event()
        # Before anything is committed: a first commit may carry the time of a clock that is wrong.
        _Step(self._read_clock, EXPIRE_SECONDS).run_if_due()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the step that runs, which goes on after the next start, and the thread."""
        self._closing.set()
        while self._thread.is_alive():
            self._maintenance.interrupt()  # again: one between two queries of a step is lost
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
        # Without retention too: the day it is switched on, the store must know the time.
        reading = self._read_clock()
        if not self._duties.retain_days:
            return
        before = self._oldest_kept(to_time(reading.trusted_us))
        if count := self._maintenance.expire(before, exported_only=self._exported_only):
            logger.info("deleted %d predictions received before %s", count, before)

    def _read_clock(self) -> Reading:
        wall, confirmed = self._now(), self._duties.confirmed_until
        until = None if confirmed is None else to_us(confirmed)
        uptime = read_uptime()
        reading = self._maintenance.read_clock(lambda note: judge(note, to_us(wall), uptime, until))
        if reading.jump_us:
            self._remind(wall, reading)
        elif self.held_seconds:
            logger.warning("the clock is trusted again: retention goes by it")
            self._reminded = -REMINDER_SECONDS
        self.held_seconds = reading.jump_us / 1e6
        return reading

    def _remind(self, wall: datetime, reading: Reading) -> None:
        if time.monotonic() - self._reminded < REMINDER_SECONDS:
            return
        self._reminded = time.monotonic()
        held = 0
        if self._duties.retain_days:
            before = self._oldest_kept(wall)
            held = self._maintenance.expirable(before, exported_only=self._exported_only)
        logger.error(
            "the clock says %s, which is %s more than the time that passed explains: retention goes"
            " by %s until it is confirmed. By the clock it would delete %d predictions. Set the"
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
    """One duty and when it is due next."""

    def __init__(self, work: Callable[[], object], every: float) -> None:
        self._work = work
        self._name = work.__name__.strip("_")
        self._every = every
        self._due = 0.0

    def run_if_due(self) -> None:
        """Do the work if its time has come. What fails is tried again when it is due next."""
        if time.monotonic() < self._due:
            return
        try:
            self._work()
        except (SightlineError, OSError) as error:
            if getattr(error, "reason", "") != "CANCELLED":
                logger.warning("%s failed: %s", self._name, error)
        except Exception:  # a bug in one duty must not end the others: they share the thread
            logger.exception("%s failed", self._name)
        # Only now: a duty that takes longer than its interval must not crowd out the others.
        self._due = time.monotonic() + self._every
