"""The thread that uses the claim store: it batches operations and renews the leases of claims."""

import asyncio
import contextlib
import functools
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from inference_service.fair_threads import RoundRobin
from inference_service.idempotency.lease_watch import LeaseWatch
from inference_service.idempotency.store import (
    ClaimOutcome,
    ClaimStore,
    ClaimStoreError,
    LeaseExpiredError,
    Record,
    Size,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_JOBS = 64  # in one transaction
_PRUNE_SECONDS = 1.0
_LOG_SECONDS = 10.0  # between two log lines about the same failure
_SIZE_SECONDS = 10.0  # counting the rows scans an index
_TIME_SECONDS = 60.0  # each update writes to the disk; a crash keeps outcomes for this much longer
_TIME_SLACK_SECONDS = 120.0  # difference that the processes' views of the store's clock may have
_ABANDONED_LEASES = 12  # number of leases after which an abandoned claim is released


@dataclass(slots=True, eq=False)
class _ClaimJob(Generic[T]):
    """One operation on the store."""

    operation: Callable[[ClaimStore], T]
    then: Callable[[T], object]
    """Callback for the committed result, called in the thread."""
    future: "asyncio.Future[T] | None"
    """None: no caller waits for the result."""
    ends: bytes = b""
    """Owner whose lease is no longer renewed once the job is done, even if it fails."""


@dataclass(slots=True)
class _Lease:
    """The lease of a claim of this process whose work is running."""

    key: bytes
    renew_at: float
    sure_until: float
    """No other process can have taken it over before this time. Both on the worker's clock."""


class ClaimWorker:
    """A thread that executes operations on a claim store: callers in turn, each in its own order.

    A claim therefore sees every earlier release of its caller. Operations that wait share a
    transaction: the transaction, and waking the event loop, dominate the cost of an operation.
    Claims are renewed until they are settled or released, for as long as this process lives.

    Its methods must be called on one event loop. They take the key of the caller as `flow`.

    Args:
        store: closed by `close`.
        keep_seconds: how long an outcome is stored.
        lease_seconds: how long a claim is valid without renewal, > 0; must be equal in every
            process on the store.
        clock: monotonic clock, s.
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
        """Size of the store, measured in the last seconds."""
        self._store = store
        self._keep = keep_seconds
        self._lease = lease_seconds
        self._clock = clock
        self._jobs: RoundRobin[_ClaimJob[Any]] = RoundRobin()
        self._changed = threading.Condition()  # of `_jobs` and `_closed`
        self._leases: dict[bytes, _Lease] = {}  # by owner
        self._watch = LeaseWatch(lease_seconds)
        self._offset: float | None = None  # of the store's clock; None: not known yet
        self._prune_at = self._size_at = self._time_at = -math.inf
        self._log_at = -math.inf
        self._closed = False
        # A daemon thread does not keep a process alive that failed to start and skipped `close`.
        self._thread = threading.Thread(target=self._run, name="idempotency", daemon=True)
        self._thread.start()

    def claim(
        self, key: bytes, *, fingerprint: bytes, owner: bytes, flow: str = ""
    ) -> "asyncio.Future[Record | None]":
        """Claim a key and renew the lease from now on; returns like `ClaimStore.claim`.

        Another owner's claim is taken over once this process has seen it unrenewed for a lease.
        """
        started = math.inf

        def operation(store: ClaimStore) -> Record | None:
            nonlocal started
            started = self._clock()
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
            if held and not held.outcome and self._watch.is_over(key, held.version, started):
                return claim(over=held.version)
            return held

        def then(held: Record | None) -> None:
            if held is None:
                self._leases[owner] = self._new_lease(key, started)

        return self._submit(flow, operation, then)

    def find(self, key: bytes, *, flow: str = "") -> "asyncio.Future[Record | None]":
        """Return the record of a key; None if nobody holds it."""
        return self._submit(flow, lambda store: store.find(key, now=self._store_time()), _ignore)

    def settle(
        self, key: bytes, *, owner: bytes, outcome: ClaimOutcome, flow: str = ""
    ) -> "asyncio.Future[bool]":
        """Settle a claim with its outcome; False if the owner has lost it.

        Raises:
            LeaseExpiredError: the store failed, and another process may have taken the claim over.
            ClaimStoreError: the store failed.
        """

        def operation(store: ClaimStore) -> bool:
            until = self._store_time() + self._keep
            return store.settle(key, owner=owner, outcome=outcome, until=until)

        return self._submit(flow, operation, _ignore, ends=owner)

    def release(self, key: bytes, *, owner: bytes, flow: str = "") -> "asyncio.Future[bool]":
        """Release a claim; False if the owner has lost it. Raises like `settle`."""
        return self._submit(
            flow, lambda store: store.release(key, owner=owner), _ignore, ends=owner
        )

    def release_later(self, key: bytes, *, owner: bytes, flow: str = "") -> None:
        """Release a claim without waiting; a failure is logged, and the lease expires."""
        job = _ClaimJob(lambda store: store.release(key, owner=owner), _ignore, None, ends=owner)
        self._put(flow, job)

    async def close(self) -> None:
        """Finish the submitted jobs and close the store."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def _submit(
        self,
        flow: str,
        operation: Callable[[ClaimStore], T],
        then: Callable[[T], object],
        *,
        ends: bytes = b"",
    ) -> "asyncio.Future[T]":
        if self._closed:
            raise ClaimStoreError("the idempotency store is closed")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._put(flow, _ClaimJob(operation, then, future, ends))
        return future

    def _put(self, flow: str, job: _ClaimJob[Any]) -> None:
        with self._changed:
            self._jobs.put(flow, job)
            self._changed.notify()

    def _run(self) -> None:
        closing = False
        while not closing:
            jobs, closing = self._next_jobs()
            if jobs:
                self._execute(jobs)
            if not closing:
                self._maintain()
        with contextlib.suppress(ClaimStoreError):  # outcomes are then stored slightly longer
            self._store.time(self._store_time())
        self._store.close()

    def _next_jobs(self) -> tuple[list[_ClaimJob[Any]], bool]:
        """Wait for jobs or until maintenance is due; return the jobs, and True if closing."""
        seconds = self._seconds_to_maintenance()
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed, timeout=seconds)
            jobs = [self._jobs.take() for _ in range(min(len(self._jobs), _MAX_JOBS))]
            return jobs, self._closed and not self._jobs

    def _execute(self, jobs: list[_ClaimJob[Any]]) -> None:
        try:
            results = self._run_in_transaction([job.operation for job in jobs])
        except Exception as error:  # noqa: BLE001 - the thread must survive every failure
            if len(jobs) > 1:  # one job may have made all of them fail
                for job in jobs:
                    self._execute([job])
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
        return LeaseExpiredError(str(_as_store_error(error)))

    def _run_in_transaction(self, operations: list[Callable[[ClaimStore], Any]]) -> list[Any]:
        if len(operations) == 1:
            return [operations[0](self._store)]  # a single operation is atomic
        with self._store.transaction():
            return [operation(self._store) for operation in operations]

    def _seconds_to_maintenance(self) -> float:
        at = self._prune_at
        if self._leases:
            # Leases are ordered by renewal: a renewed one moves to the end.
            at = min(at, next(iter(self._leases.values())).renew_at)
        # At most a second, since tests set the clock.
        return min(max(at - self._clock(), 0.0), _PRUNE_SECONDS)

    def _maintain(self) -> None:
        now = self._clock()
        try:
            self._renew(now)
            if now >= self._time_at:
                self._time_at = now + _TIME_SECONDS
                self._offset = self._store.time(self._store_time()) - now
            if now >= self._prune_at:
                self._prune_at = now + min(_PRUNE_SECONDS, self._lease / 4)
                self._release_abandoned(now)
                if self._prune():
                    self._prune_at = now  # there is more, but jobs come first
            if now >= self._size_at:
                self._size_at = now + _SIZE_SECONDS
                self.size = self._store.size()
        except Exception as error:  # noqa: BLE001 - as above
            if now >= self._log_at:
                self._log_at = now + _LOG_SECONDS
                reason = _as_store_error(error)
                logger.error("cannot maintain idempotency claims: %s", reason)  # noqa: TRY400

    def _renew(self, now: float) -> None:
        due = [(owner, lease) for owner, lease in self._leases.items() if lease.renew_at <= now]
        for owner, lease in due:
            del self._leases[owner]  # moves to the end, even if the renewal fails
            self._leases[owner] = replace(lease, renew_at=now + self._lease / 4)
        if not due:
            return
        until = self._store_time() + self._lease
        with self._store.transaction():
            renewed = [
                self._store.renew(lease.key, owner=owner, until=until) for owner, lease in due
            ]
        for (owner, lease), is_owned in zip(due, renewed, strict=True):
            if is_owned:
                self._leases[owner] = self._new_lease(lease.key, now)
            else:  # another process has taken it over; its outcome is used here as well
                self._leases.pop(owner)

    def _new_lease(self, key: bytes, now: float) -> _Lease:
        """Return the lease of a claim that was written after `now`."""
        # Renewed at a quarter of the lease, so that a failed or late renewal can be repeated.
        return _Lease(key, now + self._lease / 4, now + self._lease)

    def _store_time(self) -> float:
        """Return the time on the store's clock, s; call in the thread only."""
        if self._offset is None:
            self._offset = self._store.time() - self._clock()
        return self._clock() + self._offset

    def _prune(self) -> bool:
        now = self._store_time()
        return self._store.prune(now, now + self._keep + _TIME_SLACK_SECONDS)

    def _release_abandoned(self, now: float) -> None:
        """Observe the claims of other owners, and release those that are long abandoned."""
        pending = self._store.pending()
        abandoned_after = _ABANDONED_LEASES * self._lease
        for key, (owner, _) in self._watch.look(pending, now, abandoned_after):
            if owner not in self._leases:
                self._store.release(key, owner=owner)


def _ignore(_result: object) -> None:
    """Ignore the result of an operation."""


def _as_store_error(error: Exception) -> ClaimStoreError:
    if isinstance(error, ClaimStoreError):
        return error
    logger.error("an operation on the idempotency store failed", exc_info=error)
    return ClaimStoreError(f"the idempotency store failed: {type(error).__name__}")


def _deliver(jobs: list[_ClaimJob[Any]], results: list[Any]) -> None:
    """Set the results of all waiting callers, with one call into their event loop."""
    delivered = [
        (job.future, result)
        for job, result in zip(jobs, results, strict=True)
        if job.future is not None
    ]
    if delivered:
        with contextlib.suppress(RuntimeError):  # the loop is closed: no caller waits any more
            delivered[0][0].get_loop().call_soon_threadsafe(_set_all, delivered)


def _set_all(delivered: "list[tuple[asyncio.Future[Any], Any]]") -> None:
    for future, result in delivered:
        if future.done():  # its caller has cancelled
            continue
        if isinstance(result, ClaimStoreError):
            future.set_exception(result)
        else:
            future.set_result(result)
