"""The spool's own clock, by which its predictions age.

It shows a time like any other when the spool is new, and from then on only what passes by the
steady clock of the machine counts, so that it makes no difference to it who sets the wall clock, in
which direction and how often. While the machine is off it stands still: no clock that a device has
can be trusted to say how long that was.
"""

import time
from collections.abc import Callable

from edge.spool.superblock import SpoolClockReading, Superblock, boot_id


class SpoolClock:
    """Counts seconds since the spool was made, on top of what the wall clock said then.

    Args:
        steady: seconds since the machine was started, that nobody sets.
        superblock: what was noted last. None: nothing was.
        latest: what it said when the last prediction was spooled, for want of a note. None: it is
            not known either.
        start: what it says when neither is known, in seconds, > 0.
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
        # What was noted has a checksum, which the times of predictions have not.
        known = (_age_at_start(superblock, steady()), latest, max(1.0, start))
        self._offset = next(one for one in known if one is not None) - steady()

    def now(self) -> float:
        """Return what it shows, in seconds."""
        return self._steady() + self._offset

    def reading(self) -> SpoolClockReading:
        """Return what it shows, for a note."""
        steady = self._steady()
        return SpoolClockReading(steady + self._offset, steady, self._boot)


def _age_at_start(superblock: Superblock | None, steady: float) -> float | None:
    if superblock is None:
        return None
    passed = max(0.0, steady - superblock.reading.steady) if superblock.is_of_this_boot else 0.0
    return superblock.reading.age + passed
