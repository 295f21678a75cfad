"""Decides which failures are told in full, when the same one comes again and again.

Pure: the time comes in. A disk that is full fails each commit, and a traceback for each would hide
what else goes on, and fill the disk again as soon as there is room.
"""

from collections.abc import Hashable
from dataclasses import dataclass

WINDOW_SECONDS = 60.0
"""How long a failure that was told is only counted when it comes again."""
_MOST = 256
"""Different failures that are remembered; what is more is told each time."""


@dataclass(slots=True)
class _Told:
    since: float
    again: int = 0


class Repeats:
    """The failures of the last minute, and how often each came again."""

    def __init__(self, window: float = WINDOW_SECONDS) -> None:
        """Remember nothing yet.

        Args:
            window: seconds, > 0, for which a failure that was told is only counted.
        """
        self._window = window
        self._told: dict[Hashable, _Told] = {}

    def is_new(self, key: Hashable, now: float) -> bool:
        """Return True if a failure is to be told, and count it otherwise.

        Args:
            key: what makes it the same failure.
            now: seconds of a clock that never goes back.
        """
        told = self._told.get(key)
        if told is None or now - told.since >= self._window:
            if len(self._told) < _MOST or told is not None:
                self._told[key] = _Told(now)
            return True
        told.again += 1
        return False

    def over(self, now: float) -> list[tuple[Hashable, int]]:
        """Return the failures whose time is over, with how often they came again (> 0).

        They are forgotten, so that the next one is told in full.
        """
        over = [key for key, told in self._told.items() if now - told.since >= self._window]
        counts = [(key, self._told.pop(key).again) for key in over]
        return [(key, again) for key, again in counts if again]
