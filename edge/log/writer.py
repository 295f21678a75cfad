"""The writer thread, which moves predictions from memory to the spool in groups."""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence

from edge.log.encode import prediction_body
from edge.log.record_buffer import Logged, RecordBuffer
from edge.records import Prediction
from edge.ship.progress import Progress
from edge.spool.caps import Lost
from edge.spool.entries import Dropped, GapReason
from edge.spool.spool import Spool
from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)

_GROUP_SECONDS = 0.05  # how long a prediction waits for others to share its transaction
_MAINTENANCE_SECONDS = 1.0
_RETRY_SECONDS = 0.25
_FAILURES = (OSError, sqlite3.Error, SightlineError)
_Body = bytes | Dropped


class Writer:
    """A worker that moves predictions to the spool until it is stopped, and retries disk errors.

    Args:
        buffer: the buffer to drain. Its callbacks are `wake` and `hurry`.
        open_spool: function that returns the spool, called until it succeeds.
        progress: the counters to update.
        patience_seconds: how long a failing disk may block before predictions are given up.
    """

    def __init__(
        self,
        buffer: RecordBuffer,
        open_spool: Callable[[], Spool],
        progress: Progress,
        patience_seconds: float = 5.0,
    ) -> None:
        self._buffer = buffer
        self._open_spool = open_spool
        self._progress = progress
        self._patience_seconds = patience_seconds
        self._spool: Spool | None = None
        self._pending: list[_Body] = []
        self._ordinal = 0  # of the last drained prediction
        self._failing_since: float | None = None
        self._maintained_at = time.monotonic()
        self._is_idle = True  # the last drain returned nothing
        self._waiting = threading.Event()
        self._urgent = threading.Event()
        self._stopping = False

    def open(self) -> None:
        """Open the spool before the thread starts, so that the caller sees the errors.

        Raises:
            SightlineError, OSError, sqlite3.Error: see `edge.spool.spool.Spool`; `run` will try
                again.
        """
        self._spool = self._open_spool()

    def wake(self) -> None:
        """Wake the writer, since a prediction waits in memory."""
        self._waiting.set()

    def hurry(self) -> None:
        """Make the writer write at once, without waiting for more predictions."""
        self._urgent.set()
        self._waiting.set()

    def stop(self) -> None:
        """End `run` once the closed buffer is empty and its contents are on the disk."""
        self._stopping = True
        self.hurry()

    def run(self) -> None:
        """Move predictions; the body of the thread."""
        while not (self._stopping and not self._pending and not len(self._buffer)):
            try:
                self._turn()
            except Exception:  # this thread must not end: it is the only one that writes
                logger.exception("spool: unexpected error in the writer, trying again")
                time.sleep(_RETRY_SECONDS)

    def _turn(self) -> None:
        self._wait()
        if not any(isinstance(entry, bytes) for entry in self._pending):
            drained = self._buffer.drain()
            self._is_idle = not drained
            self._pending = _merged([*self._pending, *self._encode(drained)])
        if self._pending:
            self._write()
        if time.monotonic() - self._maintained_at >= _MAINTENANCE_SECONDS:
            self._maintained_at = time.monotonic()
            self._maintain()

    def _wait(self) -> None:
        # Waking this thread would dominate the cost of a call that logs. So while every group has
        # predictions, this thread wakes by itself.
        if self._failing_since is not None:
            time.sleep(_RETRY_SECONDS)
        elif not self._is_idle or self._waiting.wait(_MAINTENANCE_SECONDS):
            self._urgent.wait(_GROUP_SECONDS)
        if not self._stopping:
            self._waiting.clear()
            self._urgent.clear()

    def _encode(self, drained: Sequence[Logged | Dropped]) -> list[_Body]:
        bodies: list[_Body] = []
        for entry in drained:
            body = entry if isinstance(entry, Dropped) else _body(*entry)
            if isinstance(body, Dropped):
                self._lost(self._ordinal + 1, body)
            self._ordinal += body.count if isinstance(body, Dropped) else 1
            bodies.append(body)
        return bodies

    def _write(self) -> None:
        try:
            self._spool = self._spool or self._open_spool()
            self._spool.append(self._pending)
        except _FAILURES as error:
            self._failed(error)
            return
        self._pending = []
        self._failing_since = None
        with self._progress.update():
            self._progress.spooled = self._spool.spooled
            self._progress.committed = self._spool.committed
            self._progress.spool_error = None

    def _failed(self, error: Exception) -> None:
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
            logger.error("spool: writing failed, trying again: %s", error)
        with self._progress.update():
            self._progress.spool_error = str(error)
        if now - self._failing_since >= self._patience_seconds:
            self._give_up()
            self._failing_since = now  # later predictions wait as long

    def _give_up(self) -> None:
        """Free the waiting predictions; their loss is recorded once the disk works again."""
        ordinal = self._ordinal - sum(_count(entry) for entry in self._pending) + 1
        given_up: list[_Body] = []
        for entry in self._pending:
            if isinstance(entry, bytes):
                entry = Dropped(1, GapReason.SPOOL_WRITE_FAILED)
                self._lost(ordinal, entry)
            ordinal += entry.count
            given_up.append(entry)
        self._pending = _merged(given_up)

    def _lost(self, first: int, dropped: Dropped) -> None:
        last = first + dropped.count - 1
        self._progress.lost(Lost(first, last, dropped.reason, dropped.count))

    def _maintain(self) -> None:
        if self._spool is None or self._failing_since is not None:
            return
        try:
            self._spool.maintain()
        except _FAILURES as error:
            logger.warning("spool: maintenance failed: %s", error)


def _body(prediction: Prediction, logged_at: float) -> _Body:
    try:
        return prediction_body(prediction, logged_at)
    except Exception:  # such as a record that was modified after validation
        logger.exception("spool: a prediction of image %r cannot be encoded", prediction.image_id)
        return Dropped(1, GapReason.SPOOL_WRITE_FAILED)


def _count(entry: _Body) -> int:
    return entry.count if isinstance(entry, Dropped) else 1


def _merged(entries: Sequence[_Body]) -> list[_Body]:
    """Return the entries with adjacent runs of the same reason merged, which saves memory."""
    merged: list[_Body] = []
    for entry in entries:
        last = merged[-1] if merged else None
        if isinstance(entry, Dropped) and isinstance(last, Dropped) and entry.reason == last.reason:
            merged[-1] = Dropped(last.count + entry.count, entry.reason)
        else:
            merged.append(entry)
    return merged
