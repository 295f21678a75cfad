"""The one thread that uses a store of claims: together what waits, and leases while work runs."""

import asyncio
import contextlib
import functools
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from inference_service.idempotency.lease_watch import LeaseWatch
from inference_service.idempotency.store import (
    ClaimOutcome,
    ClaimStore,
    ClaimStoreError,
    LeaseOverError,
    Record,
    Size,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_JOBS = 64  # uses in one transaction
_PRUNE_SECONDS = 1.0
_COMPLAINT_SECONDS = 10.0  # from a line in the log to the next one about the same
_SIZE_SECONDS = 10.0  # counting the rows reads an index from end to end
_TIME_SECONDS = 60.0  # each writes to the disk; what a crash loses, outcomes are kept longer
_TIME_SLACK_SECONDS = 120.0  # by which the processes' ideas of the store's clock may differ
_ABANDONED_LEASES = 12  # after so many a claim that nobody took over is forgotten


@dataclass(slots=True, eq=False)
class _ClaimJob(Generic[T]):
    """One use of the store."""

    use: Callable[[ClaimStore], T]
    then: Callable[[T], object]
    """Told of the result once it is sure, in the thread."""
    future: "asyncio.Future[T] | None"
    """None: nobody waits for it."""
    ends: bytes = b""
    """Owner whose lease is renewed no longer once it is done, whatever comes of it."""


@dataclass(slots=True)
class _Lease:
    """A claim of this process whose work runs."""

    key: bytes
    renew_at: float
    sure_until: float
    """Nobody can have taken it over before. Both on the worker's clock."""


class ClaimWorker:
    """Uses a store in a thread of its own, in the order of the calls.

    So a claim sees every release that was asked for before it. Uses that wait for the thread go
    into one transaction: that, and waking the event loop, is most of what one costs. Claims are
    renewed until they are settled or released, for as long as this process lives.

    Its methods must be called on one event loop.

    Args:
        store: closed by `close`.
        keep_seconds: how long an outcome is kept.
        lease_seconds: how long a claim lasts if it is not renewed, > 0; the same in every process
            on the store.
        clock: seconds that never jump.
    """

    def __init__(
        self,
        store: ClaimStore,
        *,
        keep_seconds: float,
        lease_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.size = Size(0, 0)
        """How much the store held some seconds ago."""
        self._store = store
        self._keep = keep_seconds
        self._lease = lease_seconds
        self._clock = clock
        self._jobs: SimpleQueue[_ClaimJob[Any] | None] = SimpleQueue()
        self._leases: dict[bytes, _Lease] = {}  # by owner
        self._watch = LeaseWatch(lease_seconds)
        self._offset: float | None = None  # from the clock to the store's; None: not known yet
        self._prune_at = self._size_at = self._time_at = -math.inf
        self._complain_at = -math.inf
        self._closed = False
        # A daemon: a process that ends without `close`, because it could not start, just ends.
        self._thread = threading.Thread(target=self._run, name="idempotency", daemon=True)
        self._thread.start()

    def claim(
        self, key: bytes, *, fingerprint: bytes, owner: bytes
    ) -> "asyncio.Future[Record | None]":
        """As `ClaimStore.claim`, for the length of a lease, which is renewed from now on.

        The claim of another is taken over once this process has seen it unrenewed for a lease.
        """
        began = math.inf

        def use(store: ClaimStore) -> Record | None:
            nonlocal began
            began = self._clock()
            now = self._store_time()
            claim = functools.partial(
                store.claim,
                key,
                fingerprint=fingerprint,
                owner=owner,
                now=now,
                until=now + self._lease,
            )
            held = claim()
            if held and not held.outcome and self._watch.is_over(key, held.version, began):
                return claim(over=held.version)
            return held

        def then(held: Record | None) -> None:
            if held is None:
                self._leases[owner] = self._new_lease(key, began)

        return self._do(use, then)

    def find(self, key: bytes) -> "asyncio.Future[Record | None]":
        """As `ClaimStore.find`."""
        return self._do(lambda store: store.find(key, now=self._store_time()), _nothing)

    def settle(self, key: bytes, *, owner: bytes, outcome: ClaimOutcome) -> "asyncio.Future[bool]":
        """As `ClaimStore.settle`.

        Raises:
            LeaseOverError: the store does not work, and another may have taken the claim over.
            ClaimStoreError: the store does not work.
        """

        def use(store: ClaimStore) -> bool:
            until = self._store_time() + self._keep
            return store.settle(key, owner=owner, outcome=outcome, until=until)

        return self._do(use, _nothing, ends=owner)

    def free(self, key: bytes, *, owner: bytes) -> "asyncio.Future[bool]":
        """As `ClaimStore.release`; raises as `settle`."""
        return self._do(lambda store: store.release(key, owner=owner), _nothing, ends=owner)

    def release(self, key: bytes, *, owner: bytes) -> None:
        """As `ClaimStore.release`, without waiting; a failure is logged, and the lease runs out."""
        self._jobs.put(
            _ClaimJob(lambda store: store.release(key, owner=owner), _nothing, None, ends=owner)
        )

    async def close(self) -> None:
        """Wait for what was asked for and close the store."""
        self._closed = True
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _do(
        self, use: Callable[[ClaimStore], T], then: Callable[[T], object], *, ends: bytes = b""
    ) -> "asyncio.Future[T]":
        if self._closed:
            raise ClaimStoreError("the idempotency store is closed")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put(_ClaimJob(use, then, future, ends))
        return future

    def _run(self) -> None:
        last = False
        while not last:
            jobs, last = self._take()
            if jobs:
                self._finish(jobs)
            if not last:
                self._do_chores()
        with contextlib.suppress(ClaimStoreError):  # outcomes are then kept for a little longer
            self._store.time(self._store_time())
        self._store.close()

    def _take(self) -> tuple[list[_ClaimJob[Any]], bool]:
        """Return what waits, after a wait until the next chore; and whether it is the last."""
        jobs: list[_ClaimJob[Any]] = []
        with contextlib.suppress(Empty):
            job = self._jobs.get(timeout=self._seconds_to_chore())
            while job is not None:
                jobs.append(job)
                if len(jobs) == _MAX_JOBS:
                    return jobs, False
                job = self._jobs.get_nowait()
            return jobs, True
        return jobs, False

    def _finish(self, jobs: list[_ClaimJob[Any]]) -> None:
        try:
            results = self._use_in_transaction([job.use for job in jobs])
        except Exception as error:  # noqa: BLE001 - whatever it is, the thread goes on
            if len(jobs) > 1:  # one may have failed for all of them
                for job in jobs:
                    self._finish([job])
                return
            results = [self._failure(jobs[0], error)]
        for job, result in zip(jobs, results, strict=True):
            self._leases.pop(job.ends, None)
            if not isinstance(result, ClaimStoreError):
                job.then(result)
            elif job.future is None:
                logger.error("cannot release an idempotency key: %s", result)
        _deliver(jobs, results)

    def _failure(self, job: _ClaimJob[Any], error: Exception) -> ClaimStoreError:
        lease = self._leases.get(job.ends)
        if not job.ends or (lease is not None and self._clock() < lease.sure_until):
            return _as_store_error(error)
        return LeaseOverError(str(_as_store_error(error)))

    def _use_in_transaction(self, uses: list[Callable[[ClaimStore], Any]]) -> list[Any]:
        if len(uses) == 1:
            return [uses[0](self._store)]  # atomic as it is
        with self._store.transaction():
            return [use(self._store) for use in uses]

    def _seconds_to_chore(self) -> float:
        at = self._prune_at
        if self._leases:
            # The oldest is the first to be renewed: a renewed one goes to the end.
            at = min(at, next(iter(self._leases.values())).renew_at)
        # At most a second: the clock may be one that a test has set.
        return min(max(at - self._clock(), 0.0), _PRUNE_SECONDS)

    def _do_chores(self) -> None:
        now = self._clock()
        try:
            self._renew(now)
            if now >= self._time_at:
                self._time_at = now + _TIME_SECONDS
                self._offset = self._store.time(self._store_time()) - now
            if now >= self._prune_at:
                self._prune_at = now + min(_PRUNE_SECONDS, self._lease / 4)
                self._forget_abandoned(now)
                if self._prune():
                    self._prune_at = now  # but first what waits
            if now >= self._size_at:
                self._size_at = now + _SIZE_SECONDS
                self.size = self._store.size()
        except Exception as error:  # noqa: BLE001 - as above
            if now >= self._complain_at:
                self._complain_at = now + _COMPLAINT_SECONDS
                why = _as_store_error(error)
                logger.error("cannot prune idempotency claims: %s", why)  # noqa: TRY400 - says it all

    def _renew(self, now: float) -> None:
        due = [(owner, lease) for owner, lease in self._leases.items() if lease.renew_at <= now]
        for owner, lease in due:
            del self._leases[owner]  # to the end, even if the renewal fails
            self._leases[owner] = replace(lease, renew_at=now + self._lease / 4)
        if not due:
            return
        until = self._store_time() + self._lease
        with self._store.transaction():
            kept = [self._store.renew(at.key, owner=owner, until=until) for owner, at in due]
        for (owner, lease), is_ours in zip(due, kept, strict=True):
            if is_ours:
                self._leases[owner] = self._new_lease(lease.key, now)
            else:  # another has taken it over, and its answer will be this one's, too
                self._leases.pop(owner)

    def _new_lease(self, key: bytes, now: float) -> _Lease:
        """Return the lease of a claim that was written after `now`."""
        # A renewal that fails or is late has a second and a third chance.
        return _Lease(key, now + self._lease / 4, now + self._lease)

    def _store_time(self) -> float:
        """Return the seconds of the store's clock; only in the thread."""
        if self._offset is None:
            self._offset = self._store.time() - self._clock()
        return self._clock() + self._offset

    def _prune(self) -> bool:
        now = self._store_time()
        return self._store.prune(now, now + self._keep + _TIME_SLACK_SECONDS)

    def _forget_abandoned(self, now: float) -> None:
        """Note the claims of others, and frees those that nobody has wanted for long."""
        pending = self._store.pending()
        abandoned_after = _ABANDONED_LEASES * self._lease
        for key, (owner, _) in self._watch.look(pending, now, abandoned_after):
            if owner not in self._leases:
                self._store.release(key, owner=owner)


def _nothing(_result: object) -> None:
    """Do nothing with the result of a use."""


def _as_store_error(error: Exception) -> ClaimStoreError:
    if isinstance(error, ClaimStoreError):
        return error
    logger.error("a use of the idempotency store failed", exc_info=error)
    return ClaimStoreError(f"the idempotency store failed: {type(error).__name__}")


def _deliver(jobs: list[_ClaimJob[Any]], results: list[Any]) -> None:
    """Wake those who wait, all with one call into their loop."""
    waited = [
        (job.future, result)
        for job, result in zip(jobs, results, strict=True)
        if job.future is not None
    ]
    if waited:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            waited[0][0].get_loop().call_soon_threadsafe(_set_all, waited)


def _set_all(waited: "list[tuple[asyncio.Future[Any], Any]]") -> None:
    for future, result in waited:
        if future.done():  # its caller has given up
            continue
        if isinstance(result, ClaimStoreError):
            future.set_exception(result)
        else:
            future.set_result(result)
