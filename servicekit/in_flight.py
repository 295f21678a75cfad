"""How many bytes of requests a server holds at a time, so that a flood cannot take its memory.

gRPC says how large a message is only when it has it, and holds what has come of it until then. So a
call waits its turn before its request is read, and takes room for the largest that there may be;
once the request is there, it keeps the room for its real size until it ends.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Self, TypeVar

import grpc

from servicekit.errors import QuotaViolation, SightlineError

T = TypeVar("T")
PATIENCE_SECONDS = 1.0
"""How long a call waits for room at most, s."""
SLOW_SECONDS = 10.0
"""How long a request may take to arrive while others wait for its room, s."""
MAX_WAITING = 128
"""Calls that wait for room at most."""
_WINDOW_BYTES = 512 * 1024
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
)
"""Server options that make the bound hold: gRPC would widen the windows of fast connections until
it holds whole requests that nobody has asked it for. With this window a request of up to 512 KiB is
still sent without waiting for the server, and a larger one waits a round trip longer."""


class BytesInFlight:
    """The room for requests. For one event loop; only `hold` works from other threads, too.

    Args:
        most: bytes of requests at a time, >= largest.
        largest: the largest request that is accepted, bytes, >= 1.
    """

    def __init__(self, most: int, largest: int) -> None:
        if not 1 <= largest <= most:
            raise ValueError(f"most must be at least largest, {largest} (got {most})")
        self.most = most
        self.largest = largest
        self.held = 0
        """Bytes, now."""
        self._lock = threading.Lock()  # of `held`
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._receiving: dict[Room, None] = {}  # the oldest first

    def room(self) -> "Room":
        """Returns a call's room; to be entered before its request is read."""
        return Room(self)

    def take(self, size: int) -> bool:
        """Takes so many bytes if there is room for them."""
        with self._lock:
            if self.held + size > self.most:
                return False
            self.held += size
            return True

    def give(self, size: int) -> None:
        """Gives so many bytes back, and lets in who waits for them."""
        with self._lock:
            self.held -= size
        while self._waiting and self.take(self.largest):
            turn = self._waiting.popleft()
            if turn.done():  # gave up, and has not come round to leaving the queue
                self.give(self.largest)
            else:
                turn.set_result(None)

    async def enter(self) -> None:
        """Waits for room for the largest request.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED, `TOO_MUCH_IN_FLIGHT`: there was none for a second,
                or too many wait already.
        """
        if not self.take(self.largest):
            await self._turn()

    @contextmanager
    def receiving(self, room: "Room") -> Iterator[None]:
        """Lets a request be given up, within the block, if it dawdles and others wait."""
        self._receiving[room] = None
        try:
            yield
        finally:
            self._receiving.pop(room, None)

    def too_much(self) -> SightlineError:
        """Returns the error for a call that there is no room for."""
        bound = f"{self.most} bytes of requests in flight"
        return SightlineError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "TOO_MUCH_IN_FLIGHT",
            f"the server has no room for the request: it takes {bound}",
            quotas=[QuotaViolation("server", bound)],
            retry_after=PATIENCE_SECONDS,
        )

    async def _turn(self) -> None:
        if len(self._waiting) >= MAX_WAITING:
            raise self.too_much()
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # it came, but too late
                self.give(self.largest)
            elif turn in self._waiting:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                self._evict_slow()
                raise self.too_much() from error
            raise

    def _evict_slow(self) -> None:
        """Gives up requests that dawdle: they hold room without filling it."""
        latest = asyncio.get_running_loop().time() - SLOW_SECONDS
        for room in list(self._receiving):
            if room.since > latest:
                break
            del self._receiving[room]  # once is enough
            room.give_up()


class Room:
    """One call's share, from before its request is read until the call has ended."""

    def __init__(self, all_rooms: BytesInFlight) -> None:
        self.since = 0.0
        """When it was entered, on the loop's clock."""
        self._all = all_rooms
        self._held = 0
        self._open = False
        self._lock = threading.Lock()
        self._limit = asyncio.timeout(None)

    async def __aenter__(self) -> Self:
        """Raises SightlineError as `BytesInFlight.enter`."""
        await self._all.enter()
        self.since = asyncio.get_running_loop().time()
        self._held, self._open = self._all.largest, True
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
        self._all.give(self._held)

    async def receive(self, read: Callable[[], Awaitable[T]], size: Callable[[T], int]) -> T:
        """Returns what `read` gives, and keeps no more than its size.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED, `TOO_MUCH_IN_FLIGHT`: it did not come for ten
                seconds, and others wait.
        """
        try:
            async with self._limit:
                with self._all.receiving(self):
                    request = await read()
        except TimeoutError as error:
            if not self._limit.expired():
                raise
            raise self._all.too_much() from error
        unused = self._all.largest - size(request)
        self._held -= unused
        self._all.give(unused)
        return request

    @property
    def held(self) -> int:
        """Bytes of the request, and of what else the call holds."""
        return self._held

    def hold(self, size: int) -> None:
        """As the function `hold`."""
        with self._lock:
            if not self._open:  # the call has ended, and what it reads is dropped at once
                return
            if not self._all.take(size):
                raise self._all.too_much()
            self._held += size

    def give_up(self) -> None:
        """Ends `receive`."""
        self._limit.reschedule(self.since)


_current: ContextVar[Room | None] = ContextVar("sightline_room", default=None)


def held() -> int:
    """Returns the bytes that the call being handled holds; 0: nobody counts them."""
    room = _current.get()
    return 0 if room is None else room.held


def hold(size: int) -> None:
    """Counts further bytes that the call being handled holds until it ends; from any thread.

    Raises:
        SightlineError: RESOURCE_EXHAUSTED, `TOO_MUCH_IN_FLIGHT`: there is no room for them.
    """
    room = _current.get()
    if room is not None:
        room.hold(size)
