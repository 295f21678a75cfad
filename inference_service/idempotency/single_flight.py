"""Single flight: a call with an idempotency key is executed once, others share its response."""

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
    LeaseExpiredError,
    Record,
    Size,
)
from servicekit.errors import SightlineError, from_status, to_status

logger = logging.getLogger(__name__)

Work = Callable[[], Awaitable[bytes]]
"""Function that returns the serialized response."""

DEFAULT_LEASE_SECONDS = 5.0
_MAX_RETRY_SECONDS = 0.5
# A follower gets its error this long before its deadline, or after 90 % of its time, whichever is
# later: after the deadline the error could not be delivered.
_MARGIN_SECONDS, _MARGIN_SHARE = 0.05, 0.1
# Back-off while polling the claim of another process.
_FIRST_PAUSE, _PAUSE_GROWTH, _MAX_PAUSE = 0.005, 1.6, 0.25
_CALLER_TIME = frozenset({grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})


@dataclass(frozen=True, slots=True)
class CallResponse:
    """The response to a call."""

    payload: bytes
    """The serialized response."""
    replayed: bool = False
    """True if it is the result of an earlier call, which has ended or was joined."""


@dataclass(slots=True, eq=False)
class _Flight:
    """Work under one key in this process, shared by its leader and its followers."""

    key: bytes
    fingerprint: bytes
    deadline: float
    """Time until which the leader's caller can be answered, on the loop's clock."""
    keep: bool
    """True if its outcome is stored."""
    flow: str
    """Key of the caller that leads it."""
    task: "asyncio.Task[CallResponse]" = field(init=False)
    bound: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the store has bound the key to the fingerprint."""
    waiting: int = 0


class SingleFlight:
    """An executor that runs work once at a time per key, and replays its settled outcome.

    The first call with a key is the leader, later ones are followers. Work runs in its own task, in
    the context of the leader, and continues while any call waits for it. Its result becomes a
    response only when the store has accepted it from the owner of the claim: a process that was
    stopped for longer than a lease may have lost its claim to another process, and its callers then
    get the other's response. Must be used on one event loop.

    Args:
        store: stores the claims; closed by `close`.
        keep_seconds: how long an outcome is replayed, > 0.
        clock: monotonic clock, s.
        lease_seconds: how long the claim of a dead process excludes others, > 0; must be equal in
            every process on the store.
        on_event: callback for a call that gets the outcome of ended work (`hit`) or of work in
            progress (`join`), whose key is bound to another request (`mismatch`), or whose claim
            was lost to another process (`lost_lease`).
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
        # Each claim has its own owner, also within one process: an expired claim must not be
        # renewed or settled by its former owner.
        self._process = os.urandom(16)
        self._numbers = itertools.count()

    @property
    def size(self) -> Size:
        """Size of the store, measured in the last seconds."""
        return self._worker.size

    async def answer(
        self,
        key: bytes,
        fingerprint: bytes,
        seconds_left: float,
        work: Work,
        *,
        keep: bool = True,
        flow: str = "",
    ) -> CallResponse:
        """Return the response of the work: new, of a call in progress, or of an earlier call.

        Work in progress under the key, in this process or another, is joined. If it ends because
        its own caller's time is over, this call does the work itself; any other failure is shared.
        If this call is cancelled, the work continues for the calls that joined it.

        Responses and INVALID_ARGUMENT are stored: an equal request always gets the same. Other
        failures may be transient, or depend on the server's state.

        Args:
            key: from `keys.read_key`.
            fingerprint: from `keys.fingerprint`.
            seconds_left: until the call's deadline.
            work: returns the serialized response.
            keep: False: the outcome depends on the server's state, e.g. on an upload that is gone;
                it is shared with the waiting calls and not stored for later ones.
            flow: key of the caller; callers use the store in turn.

        Raises:
            SightlineError: FAILED_PRECONDITION, `IDEMPOTENCY_KEY_REUSED`; ABORTED,
                `IDEMPOTENCY_TWIN_IN_FLIGHT`, shortly before the deadline if the other call is in
                progress, or if the claim was lost to a call that left no outcome; UNAVAILABLE if
                the store fails; else the error of the work.
        """
        margin = min(_MARGIN_SECONDS, max(seconds_left, 0.0) * _MARGIN_SHARE)
        deadline = asyncio.get_running_loop().time() + seconds_left - margin
        while True:
            flight = self._flights.get(key)
            if flight is None:
                return await self._start(_Flight(key, fingerprint, deadline, keep, flow), work)
            response = await self._follow(flight, fingerprint, deadline)
            if response is not None:
                return response

    async def close(self) -> None:
        """Cancel the remaining work, wait until its end is recorded, and close the store."""
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
        flight.bound.set()  # also if the key is free again: waiting calls must look again
        if not flight.task.cancelled():
            flight.task.exception()  # mark as retrieved: perhaps no call waits any more

    async def _follow(
        self, flight: _Flight, fingerprint: bytes, deadline: float
    ) -> CallResponse | None:
        """Return the response of the leader's work; None: the key must be looked up again."""
        left = deadline - asyncio.get_running_loop().time()
        if flight.fingerprint != fingerprint:
            await self._mismatch(flight, left)
            return None
        await self._wait(flight, max(left, 0.0))
        if not flight.task.done():
            raise keys.twin_in_flight(_MAX_RETRY_SECONDS)
        if _ended_by_deadline(flight.task):
            return None
        self._on_event("join")
        return CallResponse(flight.task.result().payload, replayed=True)

    async def _mismatch(self, flight: _Flight, left: float) -> None:
        """Raise once the store has confirmed that the key is bound to the other request."""
        if not flight.bound.is_set():
            # The store may still bind the key to neither request, or to this one.
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
                # A call that joins it nevertheless finds it cancelled, and starts again. An outcome
                # that is being written to the store is still stored.
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
        """Return the stored response of the key's holder, or raise its stored error."""
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
        """Return the response of the claim's new owner, which its caller may already have."""
        try:
            held, _ = await self._wait_for_other_process(
                flight, lambda: self._worker.find(flight.key, flow=flight.flow)
            )
        except ClaimStoreError as error:
            logger.exception("cannot read the outcome of a call")
            raise keys.store_down() from error
        if held is None:  # it failed, or its outcome is not stored: let the caller retry
            raise keys.twin_in_flight(_MAX_RETRY_SECONDS) from lost
        return self._reply(flight, held, "join")

    async def _wait_for_other_process(
        self, flight: _Flight, poll: Callable[[], Awaitable[Record | None]]
    ) -> tuple[Record | None, bool]:
        """Poll until no other process is working on the key.

        Returns:
            The last record: that of work in progress only if there is no time left to wait for
            it. And True if the call has waited.
        """
        pause = _FIRST_PAUSE
        waited = False
        while True:
            held = await poll()
            left = flight.deadline - asyncio.get_running_loop().time()
            if not _is_in_progress(held, flight.fingerprint) or left <= 0:
                return held, waited
            flight.bound.set()
            jittered = pause * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret
            await asyncio.sleep(min(jittered, left))
            pause = min(pause * _PAUSE_GROWTH, _MAX_PAUSE)
            waited = True

    async def _try_claim(self, flight: _Flight, owner: bytes) -> Record | None:
        try:
            return await self._worker.claim(
                flight.key, fingerprint=flight.fingerprint, owner=owner, flow=flight.flow
            )
        except asyncio.CancelledError:
            # The claim may be in progress.
            self._worker.release_later(flight.key, owner=owner, flow=flight.flow)
            raise
        except ClaimStoreError as error:
            logger.exception("cannot claim an idempotency key")
            raise keys.store_down() from error

    async def _work(self, flight: _Flight, owner: bytes, work: Work) -> bytes:
        """Return the result of the work, once the claim has been ended with it.

        Raises:
            _ClaimLostError: another process has taken the claim over; the result must not be used.
            Exception: the error of the work.
        """
        try:
            payload = await work()
        except SightlineError as error:
            if error.retryable or error.code in _CALLER_TIME:
                # A transient error needs no confirmation that the claim is still owned.
                self._worker.release_later(flight.key, owner=owner, flow=flight.flow)
                raise
            # The other errors of callers, such as NOT_FOUND, depend on the server's state.
            keep = flight.keep and error.code is grpc.StatusCode.INVALID_ARGUMENT
            failure = ClaimOutcome(ok=False, payload=to_status(error).SerializeToString())
            await self._end(flight, owner, failure if keep else None)
            raise
        except BaseException:
            self._worker.release_later(flight.key, owner=owner, flow=flight.flow)
            raise
        await self._end(
            flight, owner, ClaimOutcome(ok=True, payload=payload) if flight.keep else None
        )
        return payload

    async def _end(self, flight: _Flight, owner: bytes, outcome: ClaimOutcome | None) -> None:
        """Settle the claim, or release it if the outcome is None.

        Raises:
            _ClaimLostError: another process has taken it over.
            SightlineError: UNAVAILABLE: the store failed, and it may have been taken over.
        """
        try:
            if outcome is None:
                owned = await self._worker.release(flight.key, owner=owner, flow=flight.flow)
            else:
                owned = await self._worker.settle(
                    flight.key, owner=owner, outcome=outcome, flow=flight.flow
                )
        except LeaseExpiredError as error:
            logger.exception("cannot verify the ownership of an idempotency key")
            raise keys.store_down() from error
        except ClaimStoreError:
            # The response is correct; a retry will compute it again.
            logger.exception("cannot record the outcome of a call")
        else:
            if not owned:
                raise _ClaimLostError


class _ClaimLostError(Exception):
    """The claim was taken over by another process."""


def _is_in_progress(held: Record | None, fingerprint: bytes) -> TypeGuard[Record]:
    return held is not None and held.outcome is None and held.fingerprint == fingerprint


def _ended_by_deadline(task: "asyncio.Task[CallResponse]") -> bool:
    """Return True if work ended only because its own caller's time was over."""
    if task.cancelled():
        return True
    error = task.exception()
    return isinstance(error, SightlineError) and (
        error.code in _CALLER_TIME or error.reason == keys.TWIN_IN_FLIGHT
    )


def _cancelled() -> SightlineError:
    return SightlineError(
        grpc.StatusCode.CANCELLED, "WORK_CANCELLED", "the work on this call was cancelled"
    )
