"""The spool's own clock, which measures the age of its predictions.

It starts at the wall clock's time when the spool is created. From then on it advances only with the
machine's monotonic clock, so that setting the wall clock does not change it. It stands still while
the machine is off: no clock on a device reliably tells how long that was.
"""

import time
from collections.abc import Callable

from edge.spool.superblock import SpoolClockReading, Superblock, boot_id


class SpoolClock:
    """A clock that adds the seconds since the spool was created to the wall clock's time then.

    Args:
        superblock: the last superblock. None: there is none.
        latest: reading when the last prediction was spooled, used without a superblock. None: not
            known.
        start: reading to start from if neither is known, in seconds, > 0.
        steady: monotonic clock of the machine, in seconds since it was started.
    """

    def __init__(
        self,
        superblock: Superblock | None,
        latest: float | None,
        start: float,
        *,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._steady = steady
        self._boot = boot_id()
        # The superblock has a checksum, the times of predictions have none: so it comes first.
        candidates = (_age_at_start(superblock, steady()), latest, max(1.0, start))
        self._offset = next(age for age in candidates if age is not None) - steady()

    def now(self) -> float:
        """Return the current reading in seconds."""
        return self._steady() + self._offset

    def reading(self) -> SpoolClockReading:
        """Return the current reading in the form that the superblock records."""
        steady = self._steady()
        return SpoolClockReading(steady + self._offset, steady, self._boot)


def _age_at_start(superblock: Superblock | None, steady: float) -> float | None:
    if superblock is None:
        return None
    elapsed = max(0.0, steady - superblock.reading.steady) if superblock.is_of_this_boot else 0.0
    return superblock.reading.age + elapsed
