"""Deduplication of failures in the log. Pure: the time is an argument.

A full disk fails each commit. A traceback for each would hide other messages, and would fill the
disk again as soon as there is space.
"""

from collections.abc import Hashable
from dataclasses import dataclass

WINDOW_SECONDS = 60.0
"""Time for which a failure is only counted after it was reported, s."""
_MAX_FAILURES = 256
"""Maximum number of different failures; further ones are reported each time."""


@dataclass(slots=True)
class _Reported:
    since: float
    again: int = 0


class Repeats:
    """The failures of the last minute, with their repetitions."""

    def __init__(self, window: float = WINDOW_SECONDS) -> None:
        """Start without failures.

        Args:
            window: seconds, > 0, for which a reported failure is only counted.
        """
        self._window = window
        self._reported: dict[Hashable, _Reported] = {}

    def is_new(self, key: Hashable, now: float) -> bool:
        """Return True if a failure must be reported; otherwise count it.

        Args:
            key: identity of the failure.
            now: seconds of a clock that never goes back.
        """
        reported = self._reported.get(key)
        if reported is None or now - reported.since >= self._window:
            if len(self._reported) < _MAX_FAILURES or reported is not None:
                self._reported[key] = _Reported(now)
            return True
        reported.again += 1
        return False

    def over(self, now: float) -> list[tuple[Hashable, int]]:
        """Return the failures whose window is over, with their number of repetitions (> 0).

        They are removed, so that the next one is reported in full.
        """
        over = [
            key for key, reported in self._reported.items() if now - reported.since >= self._window
        ]
        counts = [(key, self._reported.pop(key).again) for key in over]
        return [(key, again) for key, again in counts if again]
