"""Answers a call with an idempotency key once: claims, joins, replays, settles, lets go."""

import asyncio
import itertools
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeGuard

import grpc
from google.rpc import status_pb2

from inference_service.idempotency import keys
from inference_service.idempotency.claim_worker import ClaimWorker
from inference_service.idempotency.store import (
    ClaimOutcome,
    ClaimStore,
    ClaimStoreError,
    LeaseOverError,
    Record,
    Size,
)
from servicekit.errors import SightlineError, from_status, to_status

logger = logging.getLogger(__name__)

Work = Callable[[], Awaitable[bytes]]
"""Makes the serialized response."""

DEFAULT_LEASE_SECONDS = 5.0
_MAX_RETRY_SECONDS = 0.5
# A call that waits for its twin is told that it is in flight so long before its deadline, or a
# tenth of its time: after the deadline it could not be told.
_TELL_SECONDS, _TELL_SHARE = 0.05, 0.1
# Between two looks at a claim of another process.
_FIRST_PAUSE, _PAUSE_GROWTH, _LONGEST_PAUSE = 0.005, 1.6, 0.25
_OWN_TIME = frozenset({grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})


@dataclass(frozen=True, slots=True)
class CallResponse:
    """An answer, and whether it was made for an earlier call."""

    payload: bytes
    """The serialized response."""
    replayed: bool = False
    """True: by the work of an earlier call, which has ended or was joined."""


@dataclass(slots=True, eq=False)
class _Flight:
    """Work under one key in this process, for the call that began it and those that joined."""

    key: bytes
    fingerprint: bytes
    deadline: float
    """Until when the call that began it can be told something, on the loop's clock."""
    keep: bool
    """Whether its outcome is kept."""
    task: "asyncio.Task[CallResponse]" = field(init=False)
    bound: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the store has said that the key belongs to the fingerprint."""
    waiting: int = 0


class SingleFlight:
    """Runs work at most once at a time per key, and not again once it is settled.

    Work runs in a task of its own, in the context of the call that began it, and goes on while any
    call waits for it. What it makes is an answer only once the store has taken it from the claim's
    owner: a process that was stopped for longer than a lease finds out here that another has taken
    its claim over, and its callers get the other's answer. It must be used on one event loop.

    Args:
        store: keeps the claims; closed by `close`.
        keep_seconds: how long an outcome is replayed, > 0.
        clock: seconds that never jump.
        lease_seconds: how long the claim of a process that died keeps others out, > 0; the same in
            every process on the store.
        on_event: told of every call that is answered by earlier work that had ended (`hit`) or that
            it joined (`join`), that is refused because its key belongs to another request
            (`mismatch`), or whose claim was lost to another process (`lost_lease`).
    """

    def __init__(
        self,
        store: ClaimStore,
        keep_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        lease_seconds: float = DEFAULT_LEASE_SECONDS,
        on_event: Callable[[str], None] = lambda _event: None,
    ) -> None:
        self._worker = ClaimWorker(
            store, keep_seconds=keep_seconds, lease_seconds=lease_seconds, clock=clock
        )
        self._on_event = on_event
        self._flights: dict[bytes, _Flight] = {}
        # Owners are told apart, also those of one process: a zombie is not its own heir.
        self._process = os.urandom(16)
        self._numbers = itertools.count()

    @property
    def size(self) -> Size:
        """How much the store held some seconds ago."""
        return self._worker.size

    async def answer(
        self,
        key: bytes,
        fingerprint: bytes,
        seconds_left: float,
        work: Work,
        *,
        keep: bool = True,
    ) -> CallResponse:
        """Return the work's answer: made now, joined, or replayed.

        Work of a twin in this process is joined, one in another process is waited for. Should it
        end for its own caller's lack of time, this call does the work itself; any other failure is
        this call's as well. If this call gives up, the work goes on for those that joined it.

        Answers and INVALID_ARGUMENT are kept: the same request will get the same. Other failures
        may pass, or hang on the server's state.

        Args:
            key: from `keys.read_key`.
            fingerprint: from `keys.fingerprint`.
            seconds_left: until the call's deadline.
            work: returns the serialized response.
            keep: False: whatever comes of it hangs on the server's state, such as on an upload that
                is gone, so it is for those who wait for it and not for later calls.

        Raises:
            SightlineError: FAILED_PRECONDITION, `IDEMPOTENCY_KEY_REUSED`; ABORTED,
                `IDEMPOTENCY_TWIN_IN_FLIGHT`, shortly before the deadline if the twin is still at
                work, or if the claim was lost to a twin that left no answer; UNAVAILABLE if the
                store is; else what the work raises or has raised.
        """
        tell_early = min(_TELL_SECONDS, max(seconds_left, 0.0) * _TELL_SHARE)
        deadline = asyncio.get_running_loop().time() + seconds_left - tell_early
        while True:
            flight = self._flights.get(key)
            if flight is None:
                return await self._start(_Flight(key, fingerprint, deadline, keep), work)
            reply = await self._follow(flight, fingerprint, deadline)
            if reply is not None:
                return reply

    async def close(self) -> None:
        """End the work that is left, wait for what is to be recorded, and close the store."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._worker.close()

    async def _start(self, flight: _Flight, work: Work) -> CallResponse:
        flight.task = asyncio.create_task(self._lead(flight, work))
        flight.task.add_done_callback(lambda _task: self._complete(flight))
        self._flights[flight.key] = flight
        await self._wait(flight, None)
        if flight.task.cancelled():
            raise _cancelled()
        return flight.task.result()

    def _complete(self, flight: _Flight) -> None:
        del self._flights[flight.key]
        flight.bound.set()  # or its key is free again: either way there is news
        if not flight.task.cancelled():
            flight.task.exception()  # seen: it may be that nobody waits for it any more

    async def _follow(
        self, flight: _Flight, fingerprint: bytes, deadline: float
    ) -> CallResponse | None:
        """Return the answer of another call's work; None: see anew who holds the key."""
        left = deadline - asyncio.get_running_loop().time()
        if flight.fingerprint != fingerprint:
            await self._mismatch(flight, left)
            return None
        await self._wait(flight, max(left, 0.0))
        if not flight.task.done():
            raise keys.twin_in_flight(_MAX_RETRY_SECONDS)
        if _ended_for_its_own_time(flight.task):
            return None
        self._on_event("join")
        return CallResponse(flight.task.result().payload, replayed=True)

    async def _mismatch(self, flight: _Flight, left: float) -> None:
        """Raise once it is sure that the key belongs to the other request."""
        if not flight.bound.is_set():
            # The store may yet say that the key belongs to neither, or to this one.
            try:
                await asyncio.wait_for(flight.bound.wait(), max(left, 0.0))
            except TimeoutError:
                raise keys.twin_in_flight(_MAX_RETRY_SECONDS) from None
            return
        self._on_event("mismatch")
        raise keys.key_reused()

    async def _wait(self, flight: _Flight, seconds: float | None) -> None:
        flight.waiting += 1
        try:
            await asyncio.wait({flight.task}, timeout=seconds)
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                # Who joins it all the same finds it cancelled, and begins anew. An answer that is
                # on its way into the store is kept.
                flight.task.cancel()

    async def _lead(self, flight: _Flight, work: Work) -> CallResponse:
        owner = self._process + next(self._numbers).to_bytes(8)
        held, waited = await self._wait_for_other_process(
            flight, lambda: self._try_claim(flight, owner)
        )
        if held is not None:
            return self._reply(flight, held, "join" if waited else "hit")
        flight.bound.set()
        try:
            return CallResponse(await self._work(flight, owner, work))
        except _ClaimLostError as error:
            self._on_event("lost_lease")
            logger.warning("an idempotency claim was lost before its call was answered")
            return await self._reply_of_new_owner(flight, error)

    def _reply(self, flight: _Flight, held: Record, event: str) -> CallResponse:
        """Return the answer of who holds the key, or raise what it has raised."""
        if held.fingerprint != flight.fingerprint:
            self._on_event("mismatch")
            raise keys.key_reused()
        if held.outcome is None:
            raise keys.twin_in_flight(_MAX_RETRY_SECONDS)
        self._on_event(event)
        if held.outcome.ok:
            return CallResponse(held.outcome.payload, replayed=True)
        raise from_status(status_pb2.Status.FromString(held.outcome.payload))

    async def _reply_of_new_owner(self, flight: _Flight, lost: "_ClaimLostError") -> CallResponse:
        """Return the answer of who took a claim over: its caller may have that already."""
        try:
            held, _ = await self._wait_for_other_process(
                flight, lambda: self._worker.find(flight.key)
            )
        except ClaimStoreError as error:
            logger.exception("cannot read the outcome of a call")
            raise keys.store_down() from error
        if held is None:  # it failed, or what it made was not to be kept: a retry finds out
            raise keys.twin_in_flight(_MAX_RETRY_SECONDS) from lost
        return self._reply(flight, held, "join")

    async def _wait_for_other_process(
        self, flight: _Flight, look: Callable[[], Awaitable[Record | None]]
    ) -> tuple[Record | None, bool]:
        """Look until no twin in another process is at work on the key.

        Returns:
            What `look` returned last: a twin that is at work only if there is no time left to wait
            for it. And whether it has waited.
        """
        pause = _FIRST_PAUSE
        waited = False
        while True:
            held = await look()
            left = flight.deadline - asyncio.get_running_loop().time()
            if not _is_at_work(held, flight.fingerprint) or left <= 0:
                return held, waited
            flight.bound.set()
            jittered = pause * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
            await asyncio.sleep(min(jittered, left))
            pause = min(pause * _PAUSE_GROWTH, _LONGEST_PAUSE)
            waited = True

    async def _try_claim(self, flight: _Flight, owner: bytes) -> Record | None:
        try:
            return await self._worker.claim(flight.key, fingerprint=flight.fingerprint, owner=owner)
        except asyncio.CancelledError:
            self._worker.release(flight.key, owner=owner)  # the claim may be under way
            raise
        except ClaimStoreError as error:
            logger.exception("cannot claim an idempotency key")
            raise keys.store_down() from error

    async def _work(self, flight: _Flight, owner: bytes, work: Work) -> bytes:
        """Return what the work makes.

        Raises:
            _ClaimLostError: the claim is another's by now, so it is no answer.
            Exception: what the work raises.
        """
        try:
            payload = await work()
        except SightlineError as error:
            if error.retryable or error.code in _OWN_TIME:
                # It is no answer: nobody has to know first whose the key is.
                self._worker.release(flight.key, owner=owner)
                raise
            # The other mistakes of callers, such as NOT_FOUND, hang on what the server has.
            keep = flight.keep and error.code is grpc.StatusCode.INVALID_ARGUMENT
            failure = ClaimOutcome(ok=False, payload=to_status(error).SerializeToString())
            await self._end(flight, owner, failure if keep else None)
            raise
        except BaseException:
            self._worker.release(flight.key, owner=owner)
            raise
        await self._end(
            flight, owner, ClaimOutcome(ok=True, payload=payload) if flight.keep else None
        )
        return payload

    async def _end(self, flight: _Flight, owner: bytes, outcome: ClaimOutcome | None) -> None:
        """End the claim; None: without an outcome.

        Raises:
            _ClaimLostError: it is another's by now.
            SightlineError: UNAVAILABLE; the store cannot say, and it may well be another's.
        """
        try:
            if outcome is None:
                ours = await self._worker.free(flight.key, owner=owner)
            else:
                ours = await self._worker.settle(flight.key, owner=owner, outcome=outcome)
        except LeaseOverError as error:
            logger.exception("cannot tell whose an idempotency key is")
            raise keys.store_down() from error
        except ClaimStoreError:
            # The answer is right all the same; a retry will compute it again.
            logger.exception("cannot record the outcome of a call")
        else:
            if not ours:
                raise _ClaimLostError


class _ClaimLostError(Exception):
    """The claim was taken over by another process."""


def _is_at_work(held: Record | None, fingerprint: bytes) -> TypeGuard[Record]:
    return held is not None and held.outcome is None and held.fingerprint == fingerprint


def _ended_for_its_own_time(task: "asyncio.Task[CallResponse]") -> bool:
    """Whether work has failed in a way that says nothing about a call with more time."""
    if task.cancelled():
        return True
    error = task.exception()
    return isinstance(error, SightlineError) and (
        error.code in _OWN_TIME or error.reason == keys.TWIN_IN_FLIGHT
    )


def _cancelled() -> SightlineError:
    return SightlineError(
        grpc.StatusCode.CANCELLED, "WORK_CANCELLED", "the work on this call was cancelled"
    )
