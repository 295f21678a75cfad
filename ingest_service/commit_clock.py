"""The time of commits: the server's wall clock, but never the same twice and never back."""

import logging
from datetime import UTC, datetime, timedelta

logger = logging.getLogger(__name__)

_STEP = timedelta(microseconds=1)
_BEHIND = timedelta(seconds=10)


class CommitClock:
    """Gives each commit a time of its own, in the order of the commits.

    Sums, exports and pages go by it. While the wall clock is behind the last commit, because it was
    set back, commits follow one another by a microsecond.

    Args:
        last_us: time of the last commit, us since 1970; None: there is none.
    """

    def __init__(self, last_us: int | None) -> None:
        epoch = datetime(1970, 1, 1, tzinfo=UTC)
        self._last = None if last_us is None else epoch + timedelta(microseconds=last_us)
        self._warned = False

    def tick(self, now: datetime) -> datetime:
        """Returns the time of the next commit.

        Args:
            now: the server's wall clock, UTC.
        """
        if self._last is not None and now <= self._last:
            self._warn(self._last - now)
            now = self._last + _STEP
        else:
            self._warned = False
        self._last = now
        return now

    def _warn(self, behind: timedelta) -> None:
        if behind > _BEHIND and not self._warned:
            self._warned = True
            logger.warning(
                "the clock is %s behind the last commit: received_at stands still until then",
                behind,
            )
