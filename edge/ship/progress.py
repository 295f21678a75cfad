"""The progress of a logger: counters that its threads share, and waiting for their values."""

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
    """The shared counters of one logger's threads. `changed` guards every field."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    spooled: int = 0
    """Ordinal of the last prediction that is on the disk or lost."""
    committed: int = 0
    """Ordinal of the last prediction that is committed or lost; below 0 for one of an earlier
    process."""
    delivered: int = 0
    """Number of predictions deleted here because the server has committed them."""
    sent: int = 0
    """Number of entries sent, including repeated ones."""
    resent: int = 0
    failed_calls: int = 0
    rejected: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    spool_error: str | None = None
    ship_error: str | None = None
    is_ended: bool = False
    """True once the logger is closed and ships nothing more."""
    hurry: int = 0
    """Number of callers that wait for `committed`. The shipper then sends partial batches."""
    _awaited: dict[int, GapReason | None] = field(default_factory=dict)
    _recent: deque[Lost] = field(default_factory=lambda: deque(maxlen=256))
    _forgotten: float = -math.inf
    """The last lost ordinal that is no longer in `_recent`."""

    @contextmanager
    def update(self) -> Iterator[None]:
        """Hold the lock while the caller changes fields, then wake all waiters."""
        with self.changed:
            yield
            self.changed.notify_all()

    def lost(self, lost: Lost) -> None:
        """Count a run that will never be sent, and wake the callers that wait for it."""
        with self.update():
            self.dropped[lost.reason.name.lower()] += lost.count
            if len(self._recent) == self._recent.maxlen:
                self._forgotten = max(self._forgotten, self._recent[0].last)
            self._recent.append(lost)
            for ordinal in self._awaited:
                if lost.first <= ordinal <= lost.last:
                    self._awaited[ordinal] = lost.reason

    def has_lost(self, after: float, through: int) -> bool:
        """Return True if a prediction with an ordinal > `after` and <= `through` is lost."""
        with self.changed:
            recent = any(run.last > after and run.first <= through for run in self._recent)
            # For runs that are no longer kept, this may report a loss once too often.
            return recent or after < self._forgotten

    def wait(self, reached: Callable[[], bool], timeout: float | None) -> bool:
        """Wait at most `timeout` seconds for `reached` to hold; return False if it does not."""
        with self.changed:
            return self.changed.wait_for(reached, timeout)

    def wait_for_outcome(
        self, ordinal: int, reached: Callable[[], bool], timeout: float | None
    ) -> GapReason | None:
        """Wait until a prediction is lost or `reached` holds.

        Returns:
            The reason of the loss. None: the prediction is not lost.

        Raises:
            TimeoutError: neither happened within `timeout` seconds.
        """
        with self.changed:
            recent = (run.reason for run in self._recent if run.first <= ordinal <= run.last)
            self._awaited[ordinal] = next(recent, None)
            try:
                is_decided = self.changed.wait_for(
                    lambda: self._awaited[ordinal] is not None or reached(), timeout
                )
                if not is_decided:
                    raise TimeoutError(f"logged, but its outcome was not known within {timeout} s")
                return self._awaited[ordinal]
            finally:
                del self._awaited[ordinal]
