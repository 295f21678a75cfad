"""The clock of commits: the server's wall clock, made strictly increasing."""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

logger = logging.getLogger(__name__)

REMINDER_SECONDS = 3600.0
"""Time between two log lines that `received_at` is ahead of the clock, s."""
_STEP = timedelta(microseconds=1)
_BEHIND = timedelta(seconds=10)


class CommitClock:
    """A strictly increasing clock, which gives each commit its time.

    Rollups, exports and pages rely on the order of these times. While the wall clock is behind the
    last commit because it was set back, each commit is one microsecond later than the one before.
    A warning is logged every hour while this lasts.

    Args:
        last_us: time of the last commit, us since 1970; None: there is none.
        steady: returns the steady clock, s.
    """

    def __init__(self, last_us: int | None, steady: Callable[[], float] = time.monotonic) -> None:
        epoch = datetime(1970, 1, 1, tzinfo=UTC)
        self._last = None if last_us is None else epoch + timedelta(microseconds=last_us)
        self._steady = steady
        self._warned: float | None = None

    def tick(self, now: datetime) -> datetime:
        """Return the time of the next commit.

        Args:
            now: the server's wall clock, UTC.
        """
        if self._last is not None and now <= self._last:
            self._warn(self._last, self._last - now)
            now = self._last + _STEP
        elif self._warned is not None:
            self._warned = None
            logger.warning("the clock has caught up with the last commit: received_at follows it")
        self._last = now
        return now

    def seconds_ahead(self, now: datetime) -> float:
        """Return how far the last commit is ahead of the wall clock, s; 0 if it is not."""
        return 0.0 if self._last is None else max(0.0, (self._last - now).total_seconds())

    def _warn(self, last: datetime, behind: timedelta) -> None:
        steady = self._steady()
        due = self._warned is None or steady - self._warned >= REMINDER_SECONDS
        if behind > _BEHIND and due:
            self._warned = steady
            logger.warning(
                "the clock is %s behind the last commit: it was set back, or was ahead before."
                " received_at stays at %s until the clock has passed that time; nothing is lost,"
                " and retention is late by as much",
                behind,
                last.isoformat(timespec="seconds"),
            )
