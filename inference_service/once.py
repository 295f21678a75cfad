"""Answers a call with an idempotency key once: claims, joins, replays, settles, lets go."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from google.rpc import status_pb2

from inference_service import idempotency
from inference_service.idempotency import Outcome, Record, Store, StoreError
from servicekit.errors import Category, SightlineError, from_status, to_status

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_LEASE_SECONDS = 60.0
_LEASE_MARGIN_SECONDS = 1.0  # between a call's deadline and the end of its lease
_MAX_RETRY_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, and whether an earlier call made it."""

    payload: bytes
    """The serialized response."""
    replayed: bool = False


@dataclass(slots=True)
class _Turn:
    """Calls of one key in this process: one works, its twins wait."""

    fingerprint: bytes
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Once:
    """Runs work at most once at a time per key, and not again once it is settled.

    Args:
        store: keeps the claims; closed by `close`.
        keep_seconds: how long an outcome is replayed.
        clock: Unix seconds, as every process on the store sees them.
    """

    def __init__(
        self, store: Store, keep_seconds: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._keep = keep_seconds
        self._clock = clock
        self._turns: dict[bytes, _Turn] = {}
        # One thread: the store is used in the order of the calls, so a claim sees every release
        # that was asked for before it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="idempotency")

    async def answer(
        self,
        key: bytes,
        fingerprint: bytes,
        seconds_left: float,
        work: Callable[[], Awaitable[bytes]],
    ) -> Reply:
        """Returns the work's answer: done now, or replayed.

        A twin at work in this process is waited for; should it fail for a reason that may pass (or
        its caller give up), this call does the work itself. Answers and the caller's own mistakes
        are kept, other failures are not.

        Args:
            key: from `idempotency.read_key`.
            fingerprint: from `idempotency.fingerprint`.
            seconds_left: until the call's deadline; the lease is a little longer.
            work: returns the serialized response.

        Raises:
            SightlineError: FAILED_PRECONDITION, `IDEMPOTENCY_KEY_REUSED`; ABORTED,
                `IDEMPOTENCY_TWIN_IN_FLIGHT`, if the twin is in another process; UNAVAILABLE if the
                store is; else what the work raises or has raised.
        """
        async with self._turn(key, fingerprint):
            owner = uuid.uuid4().bytes
            held = await self._claim(key, fingerprint, owner, seconds_left)
            if held is None:
                return Reply(await self._work(key, owner, work))
            return self._replay(held, fingerprint)

    async def close(self) -> None:
        """Waits for the store's last work and closes it."""
        await asyncio.wrap_future(self._thread.submit(self._store.close))
        self._thread.shutdown(wait=True)

    @asynccontextmanager
    async def _turn(self, key: bytes, fingerprint: bytes) -> AsyncIterator[None]:
        turn = self._turns.setdefault(key, _Turn(fingerprint))
        if turn.fingerprint != fingerprint:
            raise idempotency.key_reused()
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[key]

    async def _claim(
        self, key: bytes, fingerprint: bytes, owner: bytes, seconds_left: float
    ) -> Record | None:
        now = self._clock()
        until = now + min(seconds_left, _MAX_LEASE_SECONDS) + _LEASE_MARGIN_SECONDS
        claim = self._thread.submit(
            self._store.claim, key, fingerprint=fingerprint, owner=owner, now=now, until=until
        )
        try:
            return await asyncio.wrap_future(claim)
        except asyncio.CancelledError:
            self._release(key, owner)  # the claim may be under way
            raise
        except StoreError as error:
            logger.exception("cannot claim an idempotency key")
            raise idempotency.store_down() from error

    def _replay(self, held: Record, fingerprint: bytes) -> Reply:
        if held.fingerprint != fingerprint:
            raise idempotency.key_reused()
        if held.outcome is None:
            left = max(held.until - self._clock(), 0.0)
            raise idempotency.twin_in_flight(min(left, _MAX_RETRY_SECONDS))
        if held.outcome.ok:
            return Reply(held.outcome.payload, replayed=True)
        raise from_status(status_pb2.Status.FromString(held.outcome.payload))

    async def _work(self, key: bytes, owner: bytes, work: Callable[[], Awaitable[bytes]]) -> bytes:
        try:
            payload = await work()
        except SightlineError as error:
            if error.category is not Category.VALIDATION:
                self._release(key, owner)
                raise
            failure = to_status(error).SerializeToString()
            await self._settle(key, owner, Outcome(ok=False, payload=failure))
            raise
        except BaseException:
            self._release(key, owner)
            raise
        await self._settle(key, owner, Outcome(ok=True, payload=payload))
        return payload

    async def _settle(self, key: bytes, owner: bytes, outcome: Outcome) -> None:
        until = self._clock() + self._keep
        settled = self._thread.submit(
            self._store.settle, key, owner=owner, outcome=outcome, until=until
        )
        try:
            # Shielded: a caller that gives up now leaves its answer to its retry.
            if not await asyncio.shield(asyncio.wrap_future(settled)):
                logger.warning("an idempotency lease ran out before its call was answered")
        except StoreError:
            # The answer is right all the same; a retry will compute it again.
            logger.exception("cannot record the outcome of a call")

    def _release(self, key: bytes, owner: bytes) -> None:
        released = self._thread.submit(self._store.release, key, owner=owner)
        released.add_done_callback(_log_failure)


def _log_failure(done: "Future[None]") -> None:
    if error := done.exception():
        logger.error("cannot release an idempotency key: %s", error)
