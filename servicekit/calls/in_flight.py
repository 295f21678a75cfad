"""How many bytes of requests a server holds at a time, so that a flood cannot take its memory.

gRPC says how large a message is only when it has it. Until somebody reads, it holds no more of it
than the stream's window; from then on it holds whatever the sender has announced. So a call takes
room for the largest message there may be before it reads one, of a stream before each, and keeps
the message's real size once it is there. A message that does not come gives its room back: its call
is ended. Who gets room next, and who loses it, `fair_share` decides.
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
from servicekit.calls.fair_share import FairShare
from servicekit.calls.room_bounds import Bounds
from servicekit.errors import QuotaViolation, SightlineError

T = TypeVar("T")
TURN_BYTES = 64 * 1024
"""What one stream may read in its turn, while others wait for room: to wait costs several times as
much as to read a small message."""
TURN_SECONDS = 0.1
"""How long a turn lasts, s."""
_TICK_SECONDS = 0.05
"""Interval between two checks for calls that are late, s."""
_TRIM_SECONDS = 0.5
"""How long after a call was ended its memory is given back to the system, s."""
_ANSWER_SECONDS = 0.05
"""How long a call that failed may take until nothing holds its message any more, s."""


class BytesInFlight:
    """The room for requests. For one event loop; only `Room.hold` works from other threads, too."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.need = bounds.largest + bounds.message_cost
        """Bytes that are taken before a message is read."""
        self._share: FairShare[_Waiter] = FairShare(bounds.most, bounds.places)
        self._lock = threading.Lock()  # of `_share`
        self._waiting: dict[_Waiter, None] = {}  # the oldest first
        self._receiving: dict[Room, None] = {}  # the oldest first
        self._calls: dict[str, int] = {}
        self._ticking: asyncio.TimerHandle | None = None
        self._trimming: asyncio.TimerHandle | None = None
        self._ticked = 0.0  # on the loop's clock
        self.time = 0.0
        """Seconds during which this process ran, while anything was received or waited for."""

    @property
    def held(self) -> int:
        """Bytes, now."""
        return self._share.held

    @property
    def waiting(self) -> int:
        """How many calls wait for room now."""
        return len(self._waiting)

    def room(self, flow: str) -> "Room":
        """Return the room of a call; to be entered before its first message is read."""
        return Room(self, flow)

    def take(self, flow: str, size: int) -> bool:
        """Take so many bytes, and return whether there was room for them."""
        with self._lock:
            return self._share.take(flow, size)

    def give(self, flow: str, size: int) -> None:
        """Give so many bytes back, and wake those whose turn has come."""
        with self._lock:
            self._share.give(flow, size)
        while self._waiting:
            with self._lock:
                waiter = self._share.next(self.need)
                if waiter is not None and waiter.turn.done():  # gave up, and has not left yet
                    self._share.give(waiter.flow, self.need)
                    continue
            if waiter is None:
                return
            waiter.turn.set_result(None)
            del self._waiting[waiter]

    async def wait(self, flow: str) -> None:
        """Wait until there is room for the largest message, and take it.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED, `TOO_MUCH_IN_FLIGHT`: there was none for long, or
                too many wait already.
        """
        waiter = _Waiter(flow, self.time, asyncio.get_running_loop().create_future())
        with self._lock:
            loser = self._share.wait(flow, waiter)
        if loser is waiter:
            raise self.too_much()
        self._waiting[waiter] = None
        self._tick_on()
        if loser is not None:
            self._refuse(loser)
        try:
            await waiter.turn
        except BaseException:
            self._leave(waiter)
            raise

    def begin(self, flow: str) -> None:
        """Count a call; raise SightlineError RESOURCE_EXHAUSTED, `TOO_MANY_STREAMS`."""
        calls = self._calls.get(flow, 0)
        if calls >= self.bounds.streams:
            bound = f"{self.bounds.streams} calls and streams of one caller at a time"
            raise _exhausted("TOO_MANY_STREAMS", f"the server takes {bound}", bound)
        self._calls[flow] = calls + 1

    def end(self, flow: str) -> None:
        """Take a call off the count."""
        self._calls[flow] -= 1
        if not self._calls[flow]:
            del self._calls[flow]

    def receiving(self, room: "Room") -> None:
        """Take note that a message is to fill this room from now on."""
        room.since = self.time
        self._receiving[room] = None
        if self._ticking is None:
            self._tick_on()

    def received(self, room: "Room") -> None:
        """Take note that a room is filled, or given up."""
        self._receiving.pop(room, None)

    def trust(self, flow: str) -> None:
        """Take note that a message of this flow has come."""
        with self._lock:
            self._share.trust(flow)

    def suspect(self, flow: str) -> None:
        """Take note that a message of this flow did not come."""
        with self._lock:
            self._share.suspect(flow)
        if self._trimming is None:
            loop = asyncio.get_running_loop()
            self._trimming = loop.call_later(_TRIM_SECONDS, self._trim, loop)

    def too_much(self) -> SightlineError:
        """Return the error for a call that there is no room for."""
        bound = f"{self.bounds.most} bytes of requests in flight"
        message = f"the server has no room for the request: it takes {bound}"
        return _exhausted("TOO_MUCH_IN_FLIGHT", message, bound)

    def stalled(self, room: "Room") -> SightlineError:
        """Return the error for a call whose message did not come."""
        seconds = self.time - room.since
        bound = f"{self.bounds.receive_seconds:g} s for a message to arrive"
        return _exhausted(
            "MESSAGE_STALLED",
            f"the message did not arrive within {seconds:.1f} s: the server allows {bound}, and"
            f" {self.bounds.stalled_seconds:g} s while others wait; close a stream that has nothing"
            " to send",
            bound,
        )

    def _refuse(self, waiter: "_Waiter") -> None:
        """End the wait of a call; it leaves its line by itself."""
        del self._waiting[waiter]
        if not waiter.turn.done():
            waiter.turn.set_exception(self.too_much())

    def _leave(self, waiter: "_Waiter") -> None:
        """Forget a call that does not wait any more: it gave up, or was refused."""
        self._waiting.pop(waiter, None)
        turn = waiter.turn
        if turn.done() and not turn.cancelled() and turn.exception() is None:
            self.give(waiter.flow, self.need)  # its turn came, but too late
            return
        with self._lock:
            self._share.leave(waiter.flow, waiter)

    def _tick_on(self) -> None:
        if self._ticking is None:
            loop = asyncio.get_running_loop()
            self._ticked = loop.time()
            self._ticking = loop.call_later(_TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        """End what is late, for as long as there is something that may be.

        Time during which this process did not run does not count: it is no fault of the sender's,
        and its message may be here.
        """
        self._ticking = None
        passed = asyncio.get_running_loop().time() - self._ticked
        self.time += min(passed, 2 * _TICK_SECONDS)
        self._evict(self.time)
        for waiter in self._waited(self.time - self.bounds.patience_seconds):
            self._refuse(waiter)
        if self._receiving or self._waiting:
            self._tick_on()

    def _trim(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give what was held of messages that did not come back to the system."""
        self._trimming = None
        loop.run_in_executor(None, free_memory.trim)

    def _evict(self, now: float) -> None:
        """End calls that hold room without filling it."""
        for room in self._began(now - self.bounds.receive_seconds):
            room.give_up()
        stuck = [waiter.flow for waiter in self._waited(now - self.bounds.stuck_seconds)]
        if stuck:
            stalled = [(room.flow, room) for room in self._began(now - self.bounds.stalled_seconds)]
            for room in self._victims(stuck, stalled):
                room.give_up()

    def _victims(self, stuck: list[str], stalled: list[tuple[str, "Room"]]) -> list["Room"]:
        with self._lock:
            return self._share.victims(self.need, stuck, stalled)

    def _began(self, latest: float) -> list["Room"]:
        """Return the rooms that have been empty since then, the oldest first."""
        return list(takewhile(lambda room: room.since <= latest, self._receiving))

    def _waited(self, latest: float) -> list["_Waiter"]:
        """Return those who have waited since then, the oldest first."""
        return list(takewhile(lambda waiter: waiter.since <= latest, self._waiting))


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    """One call that waits for room."""

    flow: str
    since: float
    turn: asyncio.Future[None]


class Lease:
    """Bytes of a message that outlive the reading of the next one, or its call."""

    __slots__ = ("_flow", "_pool", "_size")

    def __init__(self, pool: BytesInFlight | None = None, flow: str = "", size: int = 0) -> None:
        self._pool = pool
        self._flow = flow
        self._size = size

    def give(self) -> None:
        """Give the bytes back, once; on the event loop's thread."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.give(self._flow, self._size)


class Room:
    """Bytes that one call holds, from before its first message is read until it has ended."""

    def __init__(self, pool: BytesInFlight, flow: str) -> None:
        self.flow = flow
        self.since = 0.0
        """Since when the message that is awaited has had its room, on the clock of its pool."""
        self._pool = pool
        self._message = 0  # bytes of the last message, or the room for the one that is awaited
        self._ahead = 0  # the room for the next message, where it is kept
        self._turn_left = 0
        self._turn_began = 0.0
        self._more = 0  # what the handler has counted besides
        self._open = False
        self._lock = threading.Lock()
        self._reader: asyncio.Task[object] | None = None
        self._given_up = False

    async def __aenter__(self) -> Self:
        """Raise SightlineError as `BytesInFlight.begin`."""
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
        self._pool.end(self.flow)
        if error is None:
            self._pool.give(self.flow, self.held)
            return
        # gRPC holds what has come of a message, and the error's frames hold a whole one, until the
        # call has been answered.
        loop = asyncio.get_running_loop()
        loop.call_later(_ANSWER_SECONDS, self._pool.give, self.flow, self.held)

    async def receive(
        self,
        read: Callable[[], Awaitable[T]],
        size: Callable[[T], int],
        *,
        reads_on: bool = False,
    ) -> T:
        """Return what `read` gives, and keep no more than its size, instead of the last message's.

        Args:
            read: reads a message.
            size: returns the bytes of a message.
            reads_on: whether more messages follow. While others wait, the room is then kept for
                the next one until its turn is over, see `TURN_BYTES`.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED: `TOO_MUCH_IN_FLIGHT`, there was no room;
                `MESSAGE_STALLED`, it did not come. INVALID_ARGUMENT, `MESSAGE_TOO_LARGE`.
        """
        pool = self._pool
        self._drop(self._message)
        if not self._ahead:
            if not pool.take(self.flow, pool.need):
                await pool.wait(self.flow)
            self._begin_turn()
        self._message, self._ahead = pool.need, 0
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
            self._message, self._ahead = length + pool.bounds.message_cost, pool.need
        else:
            self._drop(pool.need - length - pool.bounds.message_cost)
        self._check(length)
        return message

    @property
    def held(self) -> int:
        """Bytes of the last message, of the room for the next one, and of what else it holds."""
        return self._message + self._ahead + self._more

    def hold(self, size: int) -> None:
        """As the function `hold`."""
        with self._lock:
            if not self._open:  # the call has ended, and what it reads is dropped at once
                return
            if not self._pool.take(self.flow, size):
                raise self._pool.too_much()
            self._more += size

    def keep_message(self) -> Lease:
        """As the function `keep_message`."""
        lease, self._message = Lease(self._pool, self.flow, self._message), 0
        return lease

    def count_all(self) -> int:
        """Return the bytes that all calls hold together."""
        return self._pool.held

    def give_up(self) -> None:
        """End the read that is under way."""
        self._pool.received(self)  # once is enough
        self._pool.suspect(self.flow)
        self._given_up = True
        if self._reader is not None:
            self._reader.cancel()

    def _begin_turn(self) -> None:
        self._turn_left, self._turn_began = TURN_BYTES, self._pool.time

    def _may_go_on(self, size: int) -> bool:
        """Take room for a message besides the room that it came into, if the turn goes on."""
        pool = self._pool
        self._turn_left -= size
        return (
            pool.waiting > 0
            and self._turn_left > 0
            and pool.time < self._turn_began + TURN_SECONDS
            and pool.take(self.flow, size)
        )

    def _why_cancelled(self) -> BaseException:
        """Return what to raise for a cancelled read: the call may have been cancelled, too."""
        if self._given_up and self._reader is not None and not self._reader.uncancel():
            return self._pool.stalled(self)
        return asyncio.CancelledError()

    def _drop(self, size: int) -> None:
        if size:
            self._message -= size
            self._pool.give(self.flow, size)

    def _check(self, size: int) -> None:
        accepted = self._pool.bounds.accepted
        if accepted is not None and size > accepted:
            raise SightlineError(
                grpc.StatusCode.INVALID_ARGUMENT,
                "MESSAGE_TOO_LARGE",
                f"the request of this method must be at most {accepted} bytes (got {size})",
            )


_current: ContextVar[Room | None] = ContextVar("sightline_room", default=None)


def held() -> int:
    """Return the bytes that the call being handled holds; 0: nobody counts them."""
    room = _current.get()
    return 0 if room is None else room.held


def counter() -> Callable[[], int]:
    """Return a function that tells the bytes that all calls hold together, in any thread.

    Of the server that handles the current call; 0: nobody counts them.
    """
    room = _current.get()
    return (lambda: 0) if room is None else room.count_all


def hold(size: int) -> None:
    """Count further bytes that the call being handled holds until it ends; from any thread.

    Raises:
        SightlineError: RESOURCE_EXHAUSTED, `TOO_MUCH_IN_FLIGHT`: there is no room for them.
    """
    room = _current.get()
    if room is not None:
        room.hold(size)


def keep_message() -> Lease:
    """Return the bytes of the message that was read last, which then count until they are given.

    For a handler that passes a message on: else its bytes count until the next one is read, or the
    call has ended.
    """
    room = _current.get()
    return Lease() if room is None else room.keep_message()


def _exhausted(reason: str, message: str, bound: str) -> SightlineError:
    return SightlineError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        reason,
        message,
        quotas=[QuotaViolation("server", bound)],
        retry_after=1.0,
    )
