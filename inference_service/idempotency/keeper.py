"""The one thread that uses a store of claims: together what waits, and leases while work runs."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from inference_service.idempotency.store import Outcome, Record, Size, Store, StoreError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_TOGETHER = 64  # uses in one transaction
_TIDY_SECONDS = 1.0
_SIZE_SECONDS = 10.0  # counting the rows reads an index from end to end


@dataclass(slots=True, eq=False)
class _Job(Generic[T]):
    """One use of the store."""

    use: Callable[[Store], T]
    then: Callable[[T], object]
    """Told of the result once it is sure, in the thread."""
    future: "asyncio.Future[T] | None"
    """None: nobody waits for it."""


@dataclass(slots=True)
class _Lease:
    """A claim of this process whose work runs."""

    key: bytes
    renew_at: float


class Keeper:
    """Uses a store in a thread of its own, in the order of the calls.

    So a claim sees every release that was asked for before it. Uses that wait for the thread go
    into one transaction: that, and waking the event loop, is most of what one costs. Claims are
    renewed until they are settled or released, for as long as this process lives.

    Its methods must be called on one event loop.

    Args:
        store: closed by `close`.
        keep_seconds: how long an outcome is kept.
        lease_seconds: how long a claim lasts if it is not renewed, > 0.
        clock: Unix seconds, as every process on the store sees them.
    """

    def __init__(
        self,
        store: Store,
        *,
        keep_seconds: float,
        lease_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.size = Size(0, 0)
        """How much the store held some seconds ago."""
        self._store = store
        self._keep = keep_seconds
        self._lease = lease_seconds
        self._clock = clock
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._leases: dict[bytes, _Lease] = {}  # by owner
        self._tidy_at = self._size_at = 0.0
        self._failing = self._closed = False
        # A daemon: a process that ends without `close`, because it could not start, just ends.
        self._thread = threading.Thread(target=self._run, name="idempotency", daemon=True)
        self._thread.start()

    def claim(
        self, key: bytes, *, fingerprint: bytes, owner: bytes
    ) -> "asyncio.Future[Record | None]":
        """As `Store.claim`, for the length of a lease, which is renewed from now on."""

        def use(store: Store) -> Record | None:
            now = self._clock()
            until = now + self._lease
            return store.claim(key, fingerprint=fingerprint, owner=owner, now=now, until=until)

        def then(held: Record | None) -> None:
            if held is None:
                self._leases[owner] = _Lease(key, self._next_renewal())

        return self._do(use, then)

    def settle(self, key: bytes, *, owner: bytes, outcome: Outcome) -> "asyncio.Future[bool]":
        """As `Store.settle`."""

        def use(store: Store) -> bool:
            until = self._clock() + self._keep
            return store.settle(key, owner=owner, outcome=outcome, until=until)

        return self._do(self._ending(owner, use), _nothing)

    def release(self, key: bytes, *, owner: bytes) -> None:
        """As `Store.release`; a failure is logged, and the lease runs out."""
        use = self._ending(owner, lambda store: store.release(key, owner=owner))
        self._jobs.put(_Job(use, _nothing, None))

    async def close(self) -> None:
        """Waits for what was asked for and closes the store."""
        self._closed = True
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _do(self, use: Callable[[Store], T], then: Callable[[T], object]) -> "asyncio.Future[T]":
        if self._closed:
            raise StoreError("the idempotency store is closed")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Job(use, then, future))
        return future

    def _ending(self, owner: bytes, use: Callable[[Store], T]) -> Callable[[Store], T]:
        """Returns the use, which also ends the renewing, whatever comes of it."""

        def end(store: Store) -> T:
            self._leases.pop(owner, None)
            return use(store)

        return end

    def _run(self) -> None:
        last = False
        while not last:
            jobs, last = self._take()
            if jobs:
                self._finish(jobs)
            if not last:
                self._do_chores()
        self._store.close()

    def _take(self) -> tuple[list[_Job[Any]], bool]:
        """Returns what waits, after a wait until the next chore; and whether it is the last."""
        jobs: list[_Job[Any]] = []
        with contextlib.suppress(Empty):
            job = self._jobs.get(timeout=self._seconds_to_chore())
            while job is not None:
                jobs.append(job)
                if len(jobs) == _MOST_TOGETHER:
                    return jobs, False
                job = self._jobs.get_nowait()
            return jobs, True
        return jobs, False

    def _finish(self, jobs: list[_Job[Any]]) -> None:
        try:
            results = self._use_together([job.use for job in jobs])
        except Exception as error:  # noqa: BLE001 - whatever it is, the thread goes on
            if len(jobs) > 1:  # one may have failed for all of them
                for job in jobs:
                    self._finish([job])
                return
            results = [_as_store_error(error)]
        for job, result in zip(jobs, results, strict=True):
            if not isinstance(result, StoreError):
                job.then(result)
            elif job.future is None:
                logger.error("cannot release an idempotency key: %s", result)
        _deliver(jobs, results)

    def _use_together(self, uses: list[Callable[[Store], Any]]) -> list[Any]:
        if len(uses) == 1:
            return [uses[0](self._store)]  # atomic as it is
        with self._store.together():
            return [use(self._store) for use in uses]

    def _seconds_to_chore(self) -> float:
        at = self._tidy_at
        if self._leases:
            # The oldest is the first to be renewed: a renewed one goes to the end.
            at = min(at, next(iter(self._leases.values())).renew_at)
        return max(at - time.monotonic(), 0.0)

    def _do_chores(self) -> None:
        now = time.monotonic()
        try:
            self._renew(now)
            if now >= self._tidy_at:
                self._tidy_at = now + _TIDY_SECONDS
                if self._store.tidy(self._clock()):
                    self._tidy_at = now  # but first what waits
            if now >= self._size_at:
                self._size_at = now + _SIZE_SECONDS
                self.size = self._store.size()
        except Exception as error:  # noqa: BLE001 - as above
            if not self._failing:  # once, and not every second
                why = _as_store_error(error)
                logger.error("cannot tidy idempotency claims: %s", why)  # noqa: TRY400 - says it all
            self._failing = True
        else:
            self._failing = False

    def _renew(self, now: float) -> None:
        due = [(owner, lease) for owner, lease in self._leases.items() if lease.renew_at <= now]
        for owner, lease in due:
            del self._leases[owner]
            self._leases[owner] = _Lease(lease.key, self._next_renewal())
        if not due:
            return
        until = self._clock() + self._lease
        with self._store.together():
            kept = [self._store.renew(at.key, owner=owner, until=until) for owner, at in due]
        for (owner, _), is_ours in zip(due, kept, strict=True):
            if not is_ours:
                # Another has taken it over: the work goes on for its callers alone.
                self._leases.pop(owner)

    def _next_renewal(self) -> float:
        # A renewal that fails or is late has a second and a third chance.
        return time.monotonic() + self._lease / 4


def _nothing(_result: object) -> None:
    """Does nothing with the result of a use."""


def _as_store_error(error: Exception) -> StoreError:
    if isinstance(error, StoreError):
        return error
    logger.error("a use of the idempotency store failed", exc_info=error)
    return StoreError(f"the idempotency store failed: {type(error).__name__}")


def _deliver(jobs: list[_Job[Any]], results: list[Any]) -> None:
    """Wakes those who wait, all with one call into their loop."""
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
        if isinstance(result, StoreError):
            future.set_exception(result)
        else:
            future.set_result(result)
