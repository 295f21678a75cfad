"""A store that says whether it can be written, so that readiness can follow."""

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
"""Failures in a row after which a store counts as one that cannot be written."""
PROBE_SECONDS = 5.0
"""How long nothing may have been tried before it is probed whether it can be written again, s."""


CHECK_SECONDS = 1.0
"""Time between two looks at whether the store is still where it was opened, s."""


class WatchedStore:
    """A `PredictionStore` that notices when nothing can be committed, and when that is over.

    While it fails and nobody writes, because a load balancer has sent the devices elsewhere, it
    probes by itself. A store that was moved away shows within a second, though nobody writes.

    Args:
        store: does the work.
        probe_seconds: see `PROBE_SECONDS`.

    Attributes:
        on_change: called, from any thread, with whether it can be written when that has changed.
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
        """Commit something and take it back, to see whether it can."""
        with self._writing, self._noted():
            self._store.probe()

    def check(self) -> None:
        """Raise SightlineError, `STORE_MOVED`, if what was opened is no longer there."""
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
                self._failures = STREAK - 1  # nothing that passes: once is enough
            if error.reason in ("STORE_UNAVAILABLE", STORE_MOVED):
                self._failed()
            raise

    def _keep_checking(self) -> None:
        while not self._closing.wait(CHECK_SECONDS):
            # A writer that is at work looks by itself, and a probe takes over once it has failed.
            if not self._failures and self._writing.acquire(blocking=False):
                try:
                    with suppress(SightlineError), self._noted_failure():
                        self._store.check()
                finally:
                    self._writing.release()

    def _failed(self) -> None:
        self._failures += 1
        if self._failures == STREAK:
            logger.error("the store cannot be written: not ready until it can")
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
