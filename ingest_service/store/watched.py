"""A store that reports when it cannot be written, so that the service becomes not ready."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ingest_service.store.protocol import (
    STORE_MOVED,
    Maintenance,
    PredictionStore,
    Reader,
    Transaction,
)
from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)

STREAK = 2
"""Consecutive failures after which a store counts as not writable."""
PROBE_SECONDS = 5.0
"""Time after a failure without a further attempt until the store is probed, s."""
CHECK_SECONDS = 1.0
"""Time between two checks that the store is still at its path, s."""


class WatchedStore:
    """A wrapper of a `PredictionStore` that detects when commits fail, and when they work again.

    After a failure it probes the store by itself, because a load balancer may have sent all devices
    elsewhere. It detects within a second that the files were moved, even without any commit.

    Args:
        store: the store to wrap.
        probe_seconds: see `PROBE_SECONDS`.

    Attributes:
        on_change: called, from any thread, with True when the store becomes writable and with False
            when it is no longer writable.
    """

    def __init__(self, store: PredictionStore, probe_seconds: float = PROBE_SECONDS) -> None:
        self.on_change: Callable[[bool], object] = lambda _: None
        self._store = store
        self._probe_seconds = probe_seconds
        self._writing = threading.Lock()  # one transaction at a time, that of a probe included
        self._failures = 0
        self._timer: threading.Timer | None = None
        self._closed = False
        self._closing = threading.Event()
        self._checker = threading.Thread(target=self._keep_checking, name="check", daemon=True)
        self._checker.start()

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Open a transaction: committed and durable when the block ends, undone if it raises."""
        with self._writing, self._noted(), self._store.transaction() as transaction:
            yield transaction

    def reader(self) -> Reader:
        """Return a new reader."""
        return self._store.reader()

    def maintenance(self) -> Maintenance:
        """Return the maintenance of the store; only one may be in use at a time."""
        return self._store.maintenance()

    def probe(self) -> None:
        """Commit a change and undo it, to check that the store can be written."""
        with self._writing, self._noted():
            self._store.probe()

    def check(self) -> None:
        """Raise SightlineError, `STORE_MOVED`, if the open files were moved or replaced."""
        self._store.check()

    def close(self) -> None:
        """End probing and close the store."""
        self._closing.set()
        self._checker.join()
        with self._writing:
            self._closed = True
            self._cancel()
        self._store.close()

    @contextmanager
    def _noted(self) -> Iterator[None]:
        with self._noted_failure():
            yield
        self._worked()

    @contextmanager
    def _noted_failure(self) -> Iterator[None]:
        try:
            yield
        except SightlineError as error:
            if error.reason == STORE_MOVED and self._failures < STREAK - 1:
                self._failures = STREAK - 1  # permanent: one failure is enough
            if error.reason in ("STORE_UNAVAILABLE", STORE_MOVED):
                self._failed()
            raise

    def _keep_checking(self) -> None:
        while not self._closing.wait(CHECK_SECONDS):
            # A writer checks by itself, and after a failure probes check.
            if not self._failures and self._writing.acquire(blocking=False):
                try:
                    with suppress(SightlineError), self._noted_failure():
                        self._store.check()
                finally:
                    self._writing.release()

    def _failed(self) -> None:
        self._failures += 1
        if self._failures == STREAK:
            logger.error("the store cannot be written: the service is not ready until it can")
            self.on_change(False)
        self._cancel()
        if not self._closed:
            self._timer = threading.Timer(self._probe_seconds, self._try)
            self._timer.daemon = True
            self._timer.start()

    def _worked(self) -> None:
        if self._failures >= STREAK:
            logger.info("the store can be written again")
            self.on_change(True)
        self._failures = 0
        self._cancel()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _try(self) -> None:
        with self._writing:
            if self._closed or not self._failures:
                return
            with suppress(SightlineError), self._noted():
                self._store.probe()
