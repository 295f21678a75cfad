"""Keeps the store in shape in the background: sums often, retention and exports by and by."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from ingest_service.store import Store
from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)

SUM_UP_SECONDS = 0.15
"""Time between two looks at what was committed, s: what has no sums yet is read row by row."""
EXPIRE_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Duties:
    """What there is to do besides sums."""

    retain_days: int = 0
    """0: for ever."""
    export_dir: Path | None = None
    export_seconds: float = 3600.0


class Housekeeping:
    """A thread that keeps a store in shape, from its making until `close`.

    Args:
        store: what is kept.
        duties: what to do besides sums.
        now: the server's wall clock, UTC.
    """

    def __init__(self, store: Store, duties: Duties, now: Callable[[], datetime]) -> None:
        self._keeper = store.keeper()
        self._duties = duties
        self._now = now
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the step that runs, which goes on after the next start, and the thread."""
        self._closing.set()
        while self._thread.is_alive():
            self._keeper.interrupt()  # again: one between two queries of a step is lost
            self._thread.join(0.05)

    def _run(self) -> None:
        steps = [
            _Step(self._sum_up, SUM_UP_SECONDS),
            _Step(self._export, self._duties.export_seconds),
            _Step(self._expire, EXPIRE_SECONDS),
        ]
        while not self._closing.is_set():
            for step in steps:
                step.run_if_due()
            self._closing.wait(SUM_UP_SECONDS)

    def _sum_up(self) -> None:
        self._keeper.sum_up(self._now())

    def _export(self) -> None:
        folder = self._duties.export_dir
        if folder is None:
            return
        began = time.monotonic()
        if files := self._keeper.export(folder, self._now()):
            logger.info("exported %d files in %.1f s", files, time.monotonic() - began)

    def _expire(self) -> None:
        if not self._duties.retain_days:
            return
        before = self._now() - timedelta(days=self._duties.retain_days)
        exported_only = self._duties.export_dir is not None
        if count := self._keeper.expire(before, exported_only=exported_only):
            logger.info("deleted %d predictions received before %s", count, before)


class _Step:
    """One duty and when it is due next."""

    def __init__(self, work: Callable[[], None], every: float) -> None:
        self._work = work
        self._name = work.__name__.strip("_")
        self._every = every
        self._due = 0.0

    def run_if_due(self) -> None:
        """Does the work if its time has come. What fails is tried again when it is due next."""
        if time.monotonic() < self._due:
            return
        try:
            self._work()
        except (SightlineError, OSError) as error:
            if getattr(error, "reason", "") != "CANCELLED":
                logger.warning("%s failed: %s", self._name, error)
        except Exception:  # a bug in one duty must not end the others: they share the thread
            logger.exception("%s failed", self._name)
        # Only now: a duty that takes longer than its interval must not crowd out the others.
        self._due = time.monotonic() + self._every
