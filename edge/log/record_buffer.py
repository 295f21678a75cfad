"""The bounded queue between the threads that log and the writer thread."""

import threading
import time
from collections import deque
from collections.abc import Callable

from edge.errors import ClosedError
from edge.options import OnFull
from edge.records import Prediction
from edge.spool.entries import Dropped, GapReason

Logged = tuple[Prediction, float]
"""A prediction and the time it was logged, in Unix seconds."""
_INBOX = 512  # bounds the entries that one caller may have to move under the lock
_now = time.time


class RecordBuffer:
    """A bounded buffer of predictions that wait for the spool.

    It is bounded by count and by bytes on the wire. Every prediction has an ordinal: its position,
    counted from 1, among all logged predictions, including the dropped ones.

    There are two ways in. While the writer drains the buffer in time, a small prediction is
    appended to the inbox without the lock: acquiring the lock would dominate the cost of the call.
    Otherwise the caller acquires the lock and first moves the inbox to the entries, where the
    policy applies.

    Args:
        on_full: what `put` does when the buffer is full.
        max_predictions: limit by count, >= 1. Threads that log while the inbox is being closed may
            exceed it by one prediction each.
        max_bytes: limit by the sum of `Prediction.size`, at least `records.MAX_SIZE`.
        on_first: called without the lock when a prediction arrives after a `drain` that returned
            nothing.
        on_half: called without the lock when the buffer becomes half full by count.
    """

    def __init__(
        self,
        on_full: OnFull,
        max_predictions: int,
        max_bytes: int,
        on_first: Callable[[], object],
        on_half: Callable[[], object],
    ) -> None:
        self._on_full = on_full
        self._max_predictions = max_predictions
        self._max_bytes = max_bytes
        self._on_first = on_first
        self._on_half = on_half
        self._half = max(2, max_predictions // 2)
        self._changed = threading.Condition(threading.Lock())
        self._entries: deque[Logged | Dropped] = deque()
        self._predictions = 0  # number of predictions among the entries
        self._bytes = 0
        self._logged = 0  # last ordinal among the entries
        self._is_idle = True  # the last `drain` returned nothing
        self._is_half = False  # `on_half` was called since the last `drain`
        self._is_closed = False
        self._inbox: deque[Logged] = deque()
        self._inbox_size = min(_INBOX, max_predictions // 2)
        self._inbox_limit = 0  # `_inbox_size`, or 0 while the inbox is closed
        self._small = max_bytes // max(1, self._inbox_size)

    def __len__(self) -> int:
        with self._changed:
            return self._predictions + len(self._inbox)

    @property
    def logged(self) -> int:
        """The last ordinal, or 0 if nothing was logged."""
        with self._changed:
            return self._logged + len(self._inbox)

    def put(self, prediction: Prediction, timeout: float | None = None) -> None:
        """Add a prediction within microseconds, unless it has to block; raise what `add` raises."""
        if len(self._inbox) >= self._inbox_limit or prediction.size > self._small:
            self.add(prediction, timeout)
            return
        self._inbox.append((prediction, _now()))
        if not self._inbox_limit:  # closed meanwhile, so it may not be drained
            self._finish_put(prediction)

    def add(self, prediction: Prediction, timeout: float | None = None) -> int:
        """Add a prediction and return its ordinal.

        Args:
            prediction: the record.
            timeout: how long to block at most, in seconds. None: without a limit.

        Raises:
            ClosedError: the buffer is closed.
            TimeoutError: there was no space within `timeout`.
        """
        with self._changed:
            self._flush_inbox()
            if self._fits(prediction.size) or self._make_space(prediction.size, timeout):
                self._append((prediction, _now()))
            ordinal = self._logged
            callback = self._callback_due()
        if callback is not None:
            callback()
        return ordinal

    def drain(self) -> list[Logged | Dropped]:
        """Remove and return all entries, oldest first."""
        with self._changed:
            if not self._entries and not self._inbox:
                self._inbox_limit = 0  # the next caller must call `on_first`
            from_inbox = [self._inbox.popleft() for _ in range(len(self._inbox))]
            drained = [*self._entries, *from_inbox]
            self._entries.clear()
            self._predictions = self._bytes = 0
            self._logged += len(from_inbox)
            self._is_idle, self._is_half = not drained, False
            self._inbox_limit = 0 if self._is_closed or self._is_idle else self._inbox_size
            self._changed.notify_all()
        return drained

    def close(self) -> None:
        """Refuse further predictions. The waiting ones can still be drained."""
        with self._changed:
            self._is_closed = True
            self._flush_inbox()
            self._max_predictions = 0
            self._changed.notify_all()

    def _flush_inbox(self) -> None:
        """Close the inbox until the next `drain` and move its entries. Needs the lock."""
        self._inbox_limit = 0
        while self._inbox:
            self._append(self._inbox.popleft())

    def _finish_put(self, prediction: Prediction) -> None:
        """Do what `add` does for a prediction appended just after the inbox was closed."""
        with self._changed:
            if self._is_closed and self._remove_from_inbox(prediction):
                raise ClosedError("the logger is closed")
            self._flush_inbox()
            callback = self._callback_due()
        if callback is not None:
            callback()

    def _remove_from_inbox(self, prediction: Prediction) -> bool:
        for _ in range(len(self._inbox)):
            entry = self._inbox.popleft()
            if entry[0] is prediction:
                return True
            self._inbox.append(entry)
        return False

    def _append(self, entry: Logged) -> None:
        self._entries.append(entry)
        self._bytes += entry[0].size
        self._predictions += 1
        self._logged += 1

    def _callback_due(self) -> Callable[[], object] | None:
        """Return the callback that is due after an addition, if any. Needs the lock."""
        if self._is_idle:
            self._is_idle = False
            return self._on_first
        if self._predictions >= self._half and not self._is_half:
            self._is_half = True
            return self._on_half
        return None

    def _fits(self, size: int) -> bool:
        return self._predictions < self._max_predictions and self._bytes + size <= self._max_bytes

    def _fits_now(self, size: int) -> bool:
        self._flush_inbox()  # `drain` may have opened the inbox again
        return self._fits(size)

    def _make_space(self, size: int, timeout: float | None) -> bool:
        """Apply the policy. Needs the lock.

        Returns:
            False if the new prediction itself was dropped.
        """
        if self._on_full == "block":
            self._changed.wait_for(lambda: self._is_closed or self._fits_now(size), timeout)
        if self._is_closed:
            raise ClosedError("the logger is closed")
        if self._on_full == "drop_newest":
            self._drop_newest()
            return False
        while self._on_full == "drop_oldest" and not self._fits(size):
            self._drop_oldest()
        if not self._fits(size):
            raise TimeoutError(f"not logged: the buffer in memory had no space within {timeout} s")
        return True

    def _drop_newest(self) -> None:
        run = self._entries[-1]
        if not isinstance(run, Dropped):
            run = Dropped(0, GapReason.DROPPED_NEWEST)
            self._entries.append(run)
        self._entries[-1] = Dropped(run.count + 1, run.reason)
        self._logged += 1

    def _drop_oldest(self) -> None:
        count = 1
        oldest = self._entries.popleft()
        if isinstance(oldest, Dropped):
            count += oldest.count
            oldest = self._entries.popleft()
        if not isinstance(oldest, Dropped):  # drops are merged, so two runs are never neighbours
            self._bytes -= oldest[0].size
            self._predictions -= 1
        self._entries.appendleft(Dropped(count, GapReason.DROPPED_OLDEST))
