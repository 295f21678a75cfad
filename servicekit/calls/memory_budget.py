"""A budget of memory for requests in flight, so that a flood cannot use up the server's memory.

gRPC reports the size of a message only when it has received it. Before a read it holds at most the
stream's window; during a read it holds what the sender has announced. So a call reserves memory for
the largest possible message before it reads one (a stream before each one), and keeps the real size
once the message is there. If a message does not arrive, its call is ended and its memory released.
`fair_share` decides which call gets memory next, and which one loses it.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import takewhile
from types import TracebackType
from typing import Self, TypeVar

import grpc

from servicekit import free_memory
from servicekit.calls.budget_bounds import BudgetBounds
from servicekit.calls.fair_share import FairShare
from servicekit.errors import QuotaViolation, SightlineError

T = TypeVar("T")
TURN_BYTES = 64 * 1024
"""Bytes that one stream may read in its turn, while others wait for memory: waiting costs several
times as much as reading a small message."""
TURN_SECONDS = 0.1
"""Maximum duration of a turn, s."""
_TICK_SECONDS = 0.05
"""Interval of the checks for late calls, s."""
_TRIM_SECONDS = 0.5
"""Delay between the end of a stalled call and the return of its memory to the system, s."""
_ANSWER_SECONDS = 0.05
"""Time after which nothing refers to the message of a failed call any more, s."""


class MemoryBudget:
    """The memory for requests of one event loop. `Reservation.reserve` is thread-safe."""

    def __init__(self, bounds: BudgetBounds) -> None:
        self.bounds = bounds
        self.largest_bytes = bounds.largest + bounds.message_cost
        """Bytes that are reserved before a message is read."""
        self._share: FairShare[_WaitingCall] = FairShare(bounds.limit, bounds.places)
        self._lock = threading.Lock()  # of `_share`
        self._waiting: dict[_WaitingCall, None] = {}  # the oldest first
        self._receiving: dict[Reservation, None] = {}  # the oldest first
        self._turns: dict[Reservation, None] = {}  # with memory for a message that is not read yet
        self._calls: dict[str, int] = {}
        self._ticking: asyncio.TimerHandle | None = None
        self._trimming: asyncio.TimerHandle | None = None
        self._ticked = 0.0  # on the loop's clock
        self.time = 0.0
        """Seconds during which this process ran, while anything was received or waited for."""

    @property
    def held(self) -> int:
        """Reserved bytes."""
        return self._share.held

    @property
    def waiting(self) -> int:
        """Number of calls that wait for memory."""
        return len(self._waiting)

    def reservation(self, flow: str) -> "Reservation":
        """Return the reservation of a call; enter it before the first message is read."""
        return Reservation(self, flow)

    def reserve(self, flow: str, size: int) -> bool:
        """Reserve bytes, and return True if they were available."""
        with self._lock:
            return self._share.reserve(flow, size)

    def release(self, flow: str, size: int) -> None:
        """Release bytes, and wake the calls whose turn has come."""
        with self._lock:
            self._share.release(flow, size)
        while self._waiting:
            with self._lock:
                waiter = self._share.next(self.largest_bytes)
                if waiter is not None and waiter.turn.done():  # it gave up, and is not removed yet
                    self._share.release(waiter.flow, self.largest_bytes)
                    continue
            if waiter is None:
                return
            waiter.turn.set_result(None)
            del self._waiting[waiter]

    async def wait(self, flow: str) -> None:
        """Wait until the largest message fits, and reserve its bytes.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED, `TOO_MUCH_IN_FLIGHT`: it took too long, or too many
                calls wait already.
        """
        waiter = _WaitingCall(flow, self.time, asyncio.get_running_loop().create_future())
        with self._lock:
            loser = self._share.enqueue(flow, waiter)
        if loser is waiter:
            raise self.exhausted()
        self._waiting[waiter] = None
        self._tick_on()
        if loser is not None:
            self._refuse(loser)
        try:
            await waiter.turn
        except BaseException:
            self._remove(waiter)
            raise

    def begin(self, flow: str) -> None:
        """Count a call. Raise SightlineError RESOURCE_EXHAUSTED, `TOO_MANY_STREAMS`."""
        calls = self._calls.get(flow, 0)
        if calls >= self.bounds.streams:
            bound = f"{self.bounds.streams} calls and streams of one caller at a time"
            raise _exhausted("TOO_MANY_STREAMS", f"the server's limit is {bound}", bound)
        self._calls[flow] = calls + 1

    def end(self, flow: str) -> None:
        """Remove a call from the count."""
        self._calls[flow] -= 1
        if not self._calls[flow]:
            del self._calls[flow]

    def receiving(self, reservation: "Reservation") -> None:
        """Note that a read for this reservation has begun."""
        reservation.since = self.time
        self._receiving[reservation] = None
        if self._ticking is None:
            self._tick_on()

    def received(self, reservation: "Reservation") -> None:
        """Note that the read for this reservation has ended."""
        self._receiving.pop(reservation, None)

    def keep_turn(self, reservation: "Reservation") -> None:
        """Note that this reservation has memory for a next message; its turn is limited."""
        self._turns[reservation] = None
        self._tick_on()

    def forget_turn(self, reservation: "Reservation") -> None:
        """Note that the next message is being read, or that the turn or the call is over."""
        self._turns.pop(reservation, None)

    def trust(self, flow: str) -> None:
        """Note that a message of this flow has arrived."""
        with self._lock:
            self._share.trust(flow)

    def suspect(self, flow: str) -> None:
        """Note that a message of this flow did not arrive."""
        with self._lock:
            self._share.suspect(flow)
        if self._trimming is None:
            loop = asyncio.get_running_loop()
            self._trimming = loop.call_later(_TRIM_SECONDS, self._trim, loop)

    def exhausted(self) -> SightlineError:
        """Return the error for a call that does not fit into the budget."""
        bound = f"{self.bounds.limit} bytes of requests in flight"
        message = f"the server has no memory for the request: its limit is {bound}"
        return _exhausted("TOO_MUCH_IN_FLIGHT", message, bound)

    def stalled(self, reservation: "Reservation") -> SightlineError:
        """Return the error for a call whose message did not arrive."""
        seconds = self.time - reservation.since
        bound = f"{self.bounds.receive_seconds:g} s for a message to arrive"
        return _exhausted(
            "MESSAGE_STALLED",
            f"the message did not arrive within {seconds:.1f} s: the server allows {bound}, and"
            f" {self.bounds.stalled_seconds:g} s while others wait; close a stream that has nothing"
            " to send",
            bound,
        )

    def _refuse(self, waiter: "_WaitingCall") -> None:
        """End the wait of a call, which then removes itself from its queue."""
        del self._waiting[waiter]
        if not waiter.turn.done():
            waiter.turn.set_exception(self.exhausted())

    def _remove(self, waiter: "_WaitingCall") -> None:
        """Remove a call that gave up or was refused."""
        self._waiting.pop(waiter, None)
        turn = waiter.turn
        if turn.done() and not turn.cancelled() and turn.exception() is None:
            self.release(waiter.flow, self.largest_bytes)  # its turn came too late
            return
        with self._lock:
            self._share.remove(waiter.flow, waiter)

    def _tick_on(self) -> None:
        if self._ticking is None:
            loop = asyncio.get_running_loop()
            self._ticked = loop.time()
            self._ticking = loop.call_later(_TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        """End late calls and turns, and continue while there are any that may be late.

        Time during which this process did not run does not count: the sender is not late, and its
        message may have arrived.
        """
        self._ticking = None
        passed = asyncio.get_running_loop().time() - self._ticked
        self.time += min(passed, 2 * _TICK_SECONDS)
        for reservation in [turn for turn in self._turns if turn.turn_is_over(self.time)]:
            reservation.end_turn()
        self._evict(self.time)
        for waiter in self._waited(self.time - self.bounds.patience_seconds):
            self._refuse(waiter)
        if self._receiving or self._waiting or self._turns:
            self._tick_on()

    def _trim(self, loop: asyncio.AbstractEventLoop) -> None:
        """Return the memory of messages that did not arrive to the system."""
        self._trimming = None
        loop.run_in_executor(None, free_memory.trim)

    def _evict(self, now: float) -> None:
        """End calls that reserve memory without using it."""
        for reservation in self._began(now - self.bounds.receive_seconds):
            reservation.give_up()
        stuck = [waiter.flow for waiter in self._waited(now - self.bounds.stuck_seconds)]
        if stuck:
            stalled = [
                (reservation.flow, reservation)
                for reservation in self._began(now - self.bounds.stalled_seconds)
            ]
            for reservation in self._victims(stuck, stalled):
                reservation.give_up()

    def _victims(
        self, stuck: list[str], stalled: list[tuple[str, "Reservation"]]
    ) -> list["Reservation"]:
        with self._lock:
            return self._share.victims(self.largest_bytes, stuck, stalled)

    def _began(self, latest: float) -> list["Reservation"]:
        """Return the reservations whose read began before that time, oldest first."""
        return list(takewhile(lambda reservation: reservation.since <= latest, self._receiving))

    def _waited(self, latest: float) -> list["_WaitingCall"]:
        """Return the calls that have waited since before that time, oldest first."""
        return list(takewhile(lambda waiter: waiter.since <= latest, self._waiting))


@dataclass(frozen=True, slots=True, eq=False)
class _WaitingCall:
    """A call that waits for memory."""

    flow: str
    since: float
    turn: asyncio.Future[None]


class MessageReservation:
    """Bytes of a message that stay reserved after the next read or the end of the call."""

    __slots__ = ("_flow", "_pool", "_size")

    def __init__(self, pool: MemoryBudget | None = None, flow: str = "", size: int = 0) -> None:
        self._pool = pool
        self._flow = flow
        self._size = size

    def release(self) -> None:
        """Release the bytes, once. Call it in the event loop's thread."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.release(self._flow, self._size)


class Reservation:
    """The reserved bytes of one call, from before its first read until its end."""

    def __init__(self, pool: MemoryBudget, flow: str) -> None:
        self.flow = flow
        self.since = 0.0
        """Time at which the current read began, on the clock of the budget."""
        self._pool = pool
        self._message = 0  # bytes of the last message, or those reserved for the current read
        self._ahead = 0  # bytes that are already reserved for the next message
        self._turn_left = 0
        self._turn_began = 0.0
        self._more = 0  # further bytes that the handler has reserved
        self._open = False
        self._lock = threading.Lock()
        self._reader: asyncio.Task[object] | None = None
        self._given_up = False

    async def __aenter__(self) -> Self:
        """Raise SightlineError as `MemoryBudget.begin`."""
        self._pool.begin(self.flow)
        self._open = True
        _current.set(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._open = False
        self._pool.forget_turn(self)
        self._pool.end(self.flow)
        if error is None:
            self._pool.release(self.flow, self.held)
            return
        # Until the call is answered, gRPC holds the received part of a message, and the error's
        # frames hold a complete one.
        loop = asyncio.get_running_loop()
        loop.call_later(_ANSWER_SECONDS, self._pool.release, self.flow, self.held)

    async def receive(
        self,
        read: Callable[[], Awaitable[T]],
        size: Callable[[T], int],
        *,
        reads_on: bool = False,
    ) -> T:
        """Return the result of `read`, and reserve its size in place of the last message's.

        Args:
            read: reads a message.
            size: returns the size of a message, bytes.
            reads_on: True if more messages follow. While others wait, the memory for the next one
                then stays reserved until the turn is over, see `TURN_BYTES` and `TURN_SECONDS`.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED: `TOO_MUCH_IN_FLIGHT`, the budget is used up;
                `MESSAGE_STALLED`, the message did not arrive. INVALID_ARGUMENT:
                `MESSAGE_TOO_LARGE`.
        """
        pool = self._pool
        self._drop(self._message)
        if not self._ahead:
            if not pool.reserve(self.flow, pool.largest_bytes):
                await pool.wait(self.flow)
            self._begin_turn()
        pool.forget_turn(self)
        self._message, self._ahead = pool.largest_bytes, 0
        self._reader = asyncio.current_task()
        pool.receiving(self)
        try:
            message = await read()
        except asyncio.CancelledError:
            raise self._why_cancelled() from None
        finally:
            pool.received(self)
        length = size(message)
        pool.trust(self.flow)
        if reads_on and length and self._may_go_on(length + pool.bounds.message_cost):
            self._message, self._ahead = length + pool.bounds.message_cost, pool.largest_bytes
            pool.keep_turn(self)
        else:
            self._drop(pool.largest_bytes - length - pool.bounds.message_cost)
        self._check(length)
        return message

    @property
    def held(self) -> int:
        """Bytes of the last message, those reserved for the next one, and further ones."""
        return self._message + self._ahead + self._more

    def reserve(self, size: int) -> None:
        """Reserve further bytes until the call ends; see the function `reserve`."""
        with self._lock:
            if not self._open:  # the call has ended, and its data is dropped at once
                return
            if not self._pool.reserve(self.flow, size):
                raise self._pool.exhausted()
            self._more += size

    def keep_message(self) -> MessageReservation:
        """Return the bytes of the last message as a reservation of their own."""
        kept = MessageReservation(self._pool, self.flow, self._message)
        self._message = 0
        return kept

    def count_all(self) -> int:
        """Return the reserved bytes of all calls."""
        return self._pool.held

    def give_up(self) -> None:
        """End the current read."""
        self._pool.received(self)  # once is enough
        self._pool.suspect(self.flow)
        self._given_up = True
        if self._reader is not None:
            self._reader.cancel()

    def turn_is_over(self, now: float) -> bool:
        """Return True if the turn has lasted `TURN_SECONDS`, on the clock of the budget."""
        return now >= self._turn_began + TURN_SECONDS

    def end_turn(self) -> None:
        """Release the memory for the next message: the handler is busy with the last one."""
        self._pool.forget_turn(self)
        size, self._ahead = self._ahead, 0
        self._pool.release(self.flow, size)

    def _begin_turn(self) -> None:
        self._turn_left, self._turn_began = TURN_BYTES, self._pool.time

    def _may_go_on(self, size: int) -> bool:
        """Reserve memory for another message, if the turn goes on."""
        pool = self._pool
        self._turn_left -= size
        return (
            pool.waiting > 0
            and self._turn_left > 0
            and not self.turn_is_over(pool.time)
            and pool.reserve(self.flow, size)
        )

    def _why_cancelled(self) -> BaseException:
        """Return the error for a cancelled read; the call itself may have been cancelled."""
        if self._given_up and self._reader is not None and not self._reader.uncancel():
            return self._pool.stalled(self)
        return asyncio.CancelledError()

    def _drop(self, size: int) -> None:
        if size:
            self._message -= size
            self._pool.release(self.flow, size)

    def _check(self, size: int) -> None:
        accepted = self._pool.bounds.accepted
        if accepted is not None and size > accepted:
            raise SightlineError(
                grpc.StatusCode.INVALID_ARGUMENT,
                "MESSAGE_TOO_LARGE",
                f"the request of this method must be at most {accepted} bytes (got {size})",
            )


_current: ContextVar[Reservation | None] = ContextVar("sightline_reservation", default=None)


def held() -> int:
    """Return the reserved bytes of the call that is being handled; 0: there is no budget."""
    reservation = _current.get()
    return 0 if reservation is None else reservation.held


def counter() -> Callable[[], int]:
    """Return a function that returns the reserved bytes of all calls, in any thread.

    It is about the server of the current call; it returns 0 if there is no budget.
    """
    reservation = _current.get()
    return (lambda: 0) if reservation is None else reservation.count_all


def reserve(size: int) -> None:
    """Reserve further bytes for the current call until it ends, in any thread.

    Raises:
        SightlineError: RESOURCE_EXHAUSTED, `TOO_MUCH_IN_FLIGHT`: the budget is used up.
    """
    reservation = _current.get()
    if reservation is not None:
        reservation.reserve(size)


def keep_message() -> MessageReservation:
    """Return a reservation of the last message's bytes, which counts until it is released.

    It is for a handler that passes a message on: otherwise the bytes count only until the next read
    or the end of the call.
    """
    reservation = _current.get()
    return MessageReservation() if reservation is None else reservation.keep_message()


def _exhausted(reason: str, message: str, bound: str) -> SightlineError:
    return SightlineError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        reason,
        message,
        quotas=[QuotaViolation("server", bound)],
        retry_after=1.0,
    )
