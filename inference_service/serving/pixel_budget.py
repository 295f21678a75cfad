"""How many bytes of decoded pictures there are at a time, so that small files cannot take memory.

A file of 140 kB may hold 50 million pixels. So a picture is decoded when its turn comes, its pixels
count together with the requests in flight for as long as they exist, and one that finds no room
waits in its worker for those before it. The next one is of the caller whose pictures hold least.
"""

import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import grpc

from servicekit.calls import in_flight
from servicekit.errors import QuotaViolation, SightlineError

PATIENCE_SECONDS = 10.0
"""How long a picture waits for room at most, s: for the pictures before it to be decoded."""
_RETRY_SECONDS = 1.0
_SMALL_SHARE, _SMALL_ROOM_SHARE = 1 / 16, 1 / 8  # of the room
_LOOK_SECONDS = 0.02  # between two looks at the requests in flight, of which nobody tells
_MIB = 1024 * 1024

Reserve = Callable[[int], AbstractContextManager[None]]
"""Reserve so many bytes within a block."""


def reserve_none(_size: int) -> AbstractContextManager[None]:
    """Count nothing: the `Reserve` of work that is part of no call."""
    return nullcontext()


class PixelBudget:
    """The room for decoded pictures; safe in several threads.

    One picture is decoded whatever there is, or a server full of requests would never get on. So
    the pixels take up to `limit` bytes, or as much as one picture does. An eighth of that is kept
    for small pictures, which so do not wait for large ones.

    Args:
        limit: bytes of requests and pixels at a time.
        patience: seconds that a picture waits at most.
    """

    def __init__(self, limit: int, patience: float = PATIENCE_SECONDS) -> None:
        self._limit = limit
        self._patience = patience
        self._reserved = self._reserved_small = 0
        self._changed = threading.Condition()
        self._reserved_by: Counter[str] = Counter()  # bytes by caller, without small pictures
        self._waiting: dict[object, str] = {}  # whose each is, by turn; the oldest first

    @property
    def reserved(self) -> int:
        """Bytes of pixels, now."""
        return self._reserved + self._reserved_small

    def for_call(self, flow: str = "") -> Reserve:
        """Return what holds room for the pictures of the call that is being handled.

        Args:
            flow: key of its caller.
        """
        return functools.partial(self._reservation, flow, in_flight.counter())

    @contextmanager
    def _reservation(self, flow: str, requests: Callable[[], int], size: int) -> Iterator[None]:
        if self._reserve_small(size):
            try:
                yield
            finally:
                with self._changed:
                    self._reserved_small -= size
            return
        self._reserve(flow, requests, size)
        try:
            yield
        finally:
            with self._changed:
                self._reserved -= size
                self._reserved_by[flow] -= size
                if not self._reserved_by[flow]:
                    del self._reserved_by[flow]
                self._changed.notify_all()

    def _reserve_small(self, size: int) -> bool:
        with self._changed:
            fits = self._reserved_small + size <= self._limit * _SMALL_ROOM_SHARE
            if size > self._limit * _SMALL_SHARE or not fits:
                return False
            self._reserved_small += size
            return True

    def _reserve(self, flow: str, requests: Callable[[], int], size: int) -> None:
        """Raise SightlineError RESOURCE_EXHAUSTED, `TOO_MUCH_IN_FLIGHT`, for want of room."""
        turn = object()
        until = time.monotonic() + self._patience
        with self._changed:
            self._waiting[turn] = flow
            try:
                while self._next() is not turn or not self._fits(requests, size):
                    if time.monotonic() >= until:
                        raise self._too_much(size)
                    self._changed.wait(_LOOK_SECONDS)
                self._reserved += size
                self._reserved_by[flow] += size
            finally:
                del self._waiting[turn]
                self._changed.notify_all()

    def _next(self) -> object:
        """Return whose turn it is: a caller's pictures are passed only while others of it are held.

        So large ones wait for none that come later for ever.
        """
        return min(self._waiting, key=lambda turn: self._reserved_by[self._waiting[turn]])

    def _fits(self, requests: Callable[[], int], size: int) -> bool:
        return not self._reserved or requests() + self.reserved + size <= self._limit

    def _too_much(self, size: int) -> SightlineError:
        bound = f"{self._limit} bytes of requests and pixels in flight"
        return SightlineError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "TOO_MUCH_IN_FLIGHT",
            f"the server has no room for the {size // _MIB} MiB that a picture takes while it is"
            f" decoded: it takes {bound}",
            quotas=[QuotaViolation("server", bound)],
            retry_after=_RETRY_SECONDS,
        )
