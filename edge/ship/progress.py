"""How far logging has come: counters, and waiting for them."""

import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from edge.spool.caps import Lost
from edge.spool.entries import GapReason


@dataclass
class Progress:
    """What the threads of one logger tell each other. `changed` guards all of it."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    spooled: int = 0
    """Ordinal of the last prediction that is on the disk or lost."""
    committed: int = 0
    """Ordinal of the last prediction that the server has or that is lost; below 0: of an earlier
    process."""
    delivered: int = 0
    """Predictions that were deleted here because the server has them."""
    sent: int = 0
    """Entries put on the wire, those sent again included."""
    resent: int = 0
    failed_calls: int = 0
    rejected: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    spool_error: str | None = None
    ship_error: str | None = None
    is_ended: bool = False
    """Nothing is shipped any more: the logger is closed."""
    hurry: int = 0
    """How many callers wait for `committed`: the shipper then waits for nobody."""
    _awaited: dict[int, GapReason | None] = field(default_factory=dict)
    _recent: deque[Lost] = field(default_factory=lambda: deque(maxlen=256))
    _forgotten: float = -math.inf
    """The last ordinal that was lost and is no longer among the recent ones."""

    @contextmanager
    def update(self) -> Iterator[None]:
        """Let the caller change the fields, and wake everyone who waits for a change."""
        with self.changed:
            yield
            self.changed.notify_all()

    def lost(self, lost: Lost) -> None:
        """Count what will never be sent, and tells those who wait for it."""
        with self.update():
            self.dropped[lost.reason.name.lower()] += lost.count
            if len(self._recent) == self._recent.maxlen:
                self._forgotten = max(self._forgotten, self._recent[0].last)
            self._recent.append(lost)
            for ordinal in self._awaited:
                if lost.first <= ordinal <= lost.last:
                    self._awaited[ordinal] = lost.reason

    def has_lost(self, after: float, through: int) -> bool:
        """Say whether a prediction is lost whose ordinal is above `after` and at most `through`."""
        with self.changed:
            recent = any(one.last > after and one.first <= through for one in self._recent)
            return recent or after < self._forgotten  # of so many, rather once too often

    def wait(self, reached: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until something is so; False: it was not in time (seconds; None: for ever)."""
        with self.changed:
            return self.changed.wait_for(reached, timeout)

    def wait_for_outcome(
        self, ordinal: int, reached: Callable[[], bool], timeout: float | None
    ) -> GapReason | None:
        """Wait like `wait` for what becomes of one prediction.

        Returns:
            Why it was lost. None: it was not.

        Raises:
            TimeoutError: it was not known in time.
        """
        with self.changed:
            recent = (one.reason for one in self._recent if one.first <= ordinal <= one.last)
            self._awaited[ordinal] = next(recent, None)
            try:
                known = self.changed.wait_for(
                    lambda: self._awaited[ordinal] is not None or reached(), timeout
                )
                if not known:
                    raise TimeoutError("logged, but what becomes of it was not known in time")
                return self._awaited[ordinal]
            finally:
                del self._awaited[ordinal]
