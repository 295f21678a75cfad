"""The parts of one logger in one process: buffer, writer, spool and shipper."""

import errno
import logging
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sightline.ingest.v1 import ingest_pb2

from edge.channel import Endpoint
from edge.errors import ClosedError
from edge.left_out import LeftOut
from edge.log.orphans import OrphanShipper, fork_directories
from edge.log.record_buffer import RecordBuffer
from edge.log.stats import LoggerStats
from edge.log.writer import Writer
from edge.options import LogOptions, OnFull
from edge.ship.account import LogCounts, node_account
from edge.ship.progress import Progress
from edge.ship.shipper import Shipper
from edge.spool.directories import holds_spool
from edge.spool.entries import GapReason
from edge.spool.spool import Spool

logger = logging.getLogger(__name__)

# Errors of a folder that can hold a spool, and does once space, memory or the network is back.
_PASSING = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE),
    *(errno.EINTR, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT),
}


@dataclass(frozen=True, slots=True)
class LoggerConfig:
    """The configuration of a logger, which forked children use to create theirs."""

    endpoint: Endpoint
    device_id: str
    directory: Path
    on_full: OnFull
    options: LogOptions

    def shipper(
        self,
        spool: Spool,
        progress: Progress,
        account: Callable[[], ingest_pb2.NodeAccount] | None = None,
    ) -> Shipper:
        """Return a shipper that sends a spool to the endpoint; see `Shipper` for the account."""
        return Shipper(
            spool,
            self.endpoint,
            progress,
            batch_size=self.options.batch_size,
            batch_bytes=self.options.batch_bytes,
            compression=self.options.compression,
            batch_timeout_seconds=self.options.batch_timeout_seconds,
            stream_size=self.options.stream_size,
            account=account,
        )


class LogPipeline:
    """The parts of one logger in one process.

    Its threads start with `open` or with the first prediction.

    Args:
        config: configuration of the logger.
        directory: the spool folder.

    Attributes:
        buffer: the buffer that accepts predictions.
        progress: the counters of all threads.
        left_out: the counts of what could not be logged.
    """

    def __init__(self, config: LoggerConfig, directory: Path) -> None:
        self._config = config
        self._directory = directory
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._is_closed = False
        self._spool: Spool | None = None
        self._shipper: Shipper | None = None
        self._orphan_shipper: OrphanShipper | None = None
        self._is_writing = False
        self._threads: list[threading.Thread] = []
        # Last ordinal whose loss a flush has reported, by whether it waited for `committed`.
        self._reported = {False: 0.0, True: -math.inf}
        self.progress = Progress()
        self.left_out = LeftOut("log")
        self._began = time.monotonic()
        self.buffer = RecordBuffer(
            config.on_full,
            config.options.memory_predictions,
            config.options.memory_bytes,
            on_first=self._on_first,
            on_half=lambda: self._writer.hurry(),
        )
        self._writer = Writer(self.buffer, self._open_spool, self.progress)

    def open(self) -> None:
        """Open the spool and start the threads, also those for orphaned spools.

        A full disk does not prevent the start, nor does a disk that has become read-only since it
        got its spool.

        Raises:
            SightlineError: see `edge.spool.spool.Spool`.
            OSError: the folder holds no spool and can never hold one, or this process may not write
                to it.
        """
        try:
            self._writer.open()
        except (OSError, sqlite3.Error) as error:
            if isinstance(error, OSError) and self._is_unusable(error):
                raise OSError(
                    error.errno,
                    f"the spool folder {self._directory} cannot be used: {error.strerror}; set"
                    " spool_dir to a folder that this user may write to",
                ) from error
            logger.warning("spool: opening failed, trying again: %s", error)
        self._start_writer()

    def flush(self, timeout: float | None, *, committed: bool) -> bool:
        """Wait until everything logged so far is spooled, or committed.

        Returns:
            False on a timeout or if a prediction was lost. Each loss is reported once, by the
            flushes that are in progress or by the next one.
        """
        logged = self.buffer.logged
        if not self._is_writing:
            return True  # a forked process that has not logged anything
        reached = self._commit(logged, timeout) if committed else self._spool_all(logged, timeout)
        if not reached:
            return False
        reported = self._reported[committed]
        self._reported[committed] = max(reported, logged)
        return not self.progress.has_lost(reported, logged)

    def _spool_all(self, logged: int, timeout: float | None) -> bool:
        self._writer.hurry()
        return self.progress.wait(lambda: self.progress.spooled >= logged, timeout)

    def _commit(self, logged: int, timeout: float | None) -> bool:
        """Wait until this process's spool is empty, and those of children that have ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self.hurrying():
            self.progress.wait(lambda: self._is_over(logged), timeout)
        if self.progress.committed < logged:
            return False
        orphan_shipper = self._orphan_shipper
        remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
        return orphan_shipper is None or orphan_shipper.empty(remaining)

    def wait_for_outcome(
        self, ordinal: int, timeout: float | None, *, committed: bool
    ) -> GapReason | None:
        """Wait until one prediction is spooled or committed; see `Progress.wait_for_outcome`.

        Raises:
            TimeoutError: its outcome was not known within `timeout`.
            ClosedError: the logger was closed before the prediction was committed.
        """
        if not committed:
            self._writer.hurry()
            return self.progress.wait_for_outcome(
                ordinal, lambda: self.progress.spooled >= ordinal, timeout
            )
        with self.hurrying():
            reason = self.progress.wait_for_outcome(
                ordinal, lambda: self._is_over(ordinal), timeout
            )
        if reason is None and self.progress.committed < ordinal:
            raise ClosedError("the logger was closed before the prediction was committed")
        return reason

    @contextmanager
    def hurrying(self) -> Iterator[None]:
        """Make every part send at once, without waiting for full batches."""
        with self.progress.update():
            self.progress.hurry += 1
        self._writer.hurry()
        try:
            yield
        finally:
            with self.progress.update():
                self.progress.hurry -= 1

    def close(self, timeout: float) -> bool:
        """Spool everything that is logged, ship while the server answers, and end the threads.

        Returns:
            True if everything is spooled and no loss is unreported.
        """
        if self._pid != os.getpid():
            return True  # not acquiring the lock: a thread of the parent may hold it forever
        with self._lock:
            was_closed, self._is_closed = self._is_closed, True
        if was_closed:
            return self.flush(timeout, committed=False)
        deadline = time.monotonic() + timeout
        self.buffer.close()
        self._writer.stop()
        logged = self.buffer.logged
        is_spooled = not self._is_writing or self._spool_all(logged, timeout)
        if is_spooled and self._spool is not None:
            self._ship_the_rest(deadline)
        self._stop(deadline)
        return is_spooled and not self.progress.has_lost(self._reported[False], logged)

    def abandon(self, timeout: float) -> None:
        """Close when the logger is garbage-collected, which may happen in any thread."""
        if threading.current_thread() in self._threads:
            threading.Thread(target=self.close, args=(timeout,), daemon=True).start()
        else:
            self.close(timeout)

    def ship_orphans(self) -> None:
        """Start the thread that ships orphaned spools of forked processes."""
        with self._lock:
            if self._orphan_shipper is not None or self._is_closed:
                return
            self._orphan_shipper = OrphanShipper(self._directory, self._spool_in, self._shipper_of)
            self._start(self._orphan_shipper.run, "orphans")

    def release_in_child(self) -> None:
        """Release, in a forked child, what the parent holds. This object must stay alive."""
        if self._spool is not None:
            self._spool.release_in_child()

    def stats(self) -> LoggerStats:
        """Return the counts so far."""
        spool = self._spool
        progress = self.progress
        with progress.changed:
            return LoggerStats(
                logged=self.buffer.logged,
                spooled=progress.spooled,
                sent=progress.sent,
                retried=progress.resent,
                failed=progress.failed_calls,
                committed=progress.delivered,
                rejected=progress.rejected,
                dropped=dict(progress.dropped),
                backlog=spool.identity.pending if spool else 0,
                in_memory=len(self.buffer),
                damaged_spools=spool.damaged if spool else 0,
                spool_id=spool.identity.spool_id if spool else "",
                last_error=progress.spool_error or progress.ship_error,
                spool_error=progress.spool_error,
                spool_bytes=spool.bytes_in_use if spool else 0,
                spool_limit_bytes=spool.byte_limit if spool else 0,
                left_out=self.left_out.counts(),
            )

    def _is_unusable(self, error: OSError) -> bool:
        """Return True if the folder will not become usable without a person."""
        if isinstance(error, PermissionError | FileExistsError | NotADirectoryError):
            return True
        return error.errno not in _PASSING and not holds_spool(self._directory)

    def _is_over(self, ordinal: int) -> bool:
        return self.progress.is_ended or self.progress.committed >= ordinal

    def _on_first(self) -> None:
        if not self._is_writing:
            self._start_writer()
        self._writer.wake()

    def _start_writer(self) -> None:
        with self._lock:
            if not self._is_writing:
                self._is_writing = True
                self._start(self._writer.run, "writer")

    def _start(self, body: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=body, name=f"sightline-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _spool_in(self, directory: Path, progress: Progress) -> Spool:
        config = self._config
        return Spool(directory, config.device_id, config.options.limits, progress.lost)

    def _open_spool(self) -> Spool:
        """Open the spool and start its shipper. Only one thread may call it at a time."""
        spool = self._spool_in(self._directory, self.progress)
        with self.progress.update():
            self.progress.committed = spool.committed
        self._spool = spool
        self._shipper = self._shipper_of(spool, self.progress)
        with self._lock:
            self._start(self._shipper.run, "shipper")
        if fork_directories(self._directory):
            self.ship_orphans()
        return spool

    def _shipper_of(self, spool: Spool, progress: Progress) -> Shipper:
        return self._config.shipper(spool, progress, lambda: self._account(spool))

    def _account(self, shipped: Spool) -> ingest_pb2.NodeAccount:
        """Return the account of this process, whose own spool or an orphaned one is shipped."""
        with self.progress.changed:
            dropped = dict(self.progress.dropped)
        counts = LogCounts(
            in_memory=len(self.buffer),
            logged=self.buffer.logged,
            dropped=dropped,
            uptime_seconds=time.monotonic() - self._began,
        )
        own = self._spool
        spools = [shipped] if own is None or own is shipped else [own, shipped]
        return node_account(spools, counts)

    def _ship_the_rest(self, deadline: float) -> None:
        """Wait until everything is committed or the server fails to answer."""
        progress, logged = self.progress, self.buffer.logged

        def is_over() -> bool:
            return progress.committed >= logged or progress.ship_error is not None

        with self.hurrying():
            progress.wait(is_over, max(0.0, deadline - time.monotonic()))
        if self._orphan_shipper is not None and progress.ship_error is None:
            self._orphan_shipper.empty(max(0.0, deadline - time.monotonic()))

    def _stop(self, deadline: float) -> None:
        for part in (self._shipper, self._orphan_shipper):
            if part is not None:
                part.stop()
        with self.progress.update():
            self.progress.is_ended = True  # callers that wait for `committed` stop waiting
        for thread in self._threads:
            thread.join(max(0.1, deadline - time.monotonic()))
        if self._spool is not None and not any(thread.is_alive() for thread in self._threads):
            self._spool.close()
