"""Memory budget of decoded images and masks, which bounds the memory that small files can use.

A file of 140 kB may contain 50 million pixels. An image is therefore decoded when its turn comes;
its pixels count together with the requests in flight while they exist, and an image that does not
fit into the budget waits in its worker for earlier ones. The next image is that of the caller with
the lowest reservation.
"""

import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import grpc

from servicekit.calls import memory_budget
from servicekit.errors import QuotaViolation, SightlineError

PATIENCE_SECONDS = 10.0
"""Maximum wait of an image for its reservation, s."""
_RETRY_SECONDS = 1.0
_SMALL_SHARE, _SMALL_BUDGET_SHARE = 1 / 16, 1 / 8  # of the budget
_POLL_SECONDS = 0.02  # of the requests in flight, which send no notification
_MIB = 1024 * 1024

Reserve = Callable[[int], AbstractContextManager[None]]
"""Function that reserves bytes for the duration of a block."""


def reserve_none(_size: int) -> AbstractContextManager[None]:
    """Reserve nothing: the `Reserve` of work outside of a call."""
    return nullcontext()


class PixelBudget:
    """The memory budget of decoded images. Thread-safe.

    One image may always be decoded, or a server full of requests would never make progress. The
    pixels therefore use up to `limit` bytes, or as much as one image. An eighth of the budget is
    reserved for small images, which do not wait for large ones.

    Args:
        limit: maximum bytes of requests and pixels.
        patience: maximum wait of an image, s.
    """

    def __init__(self, limit: int, patience: float = PATIENCE_SECONDS) -> None:
        self._limit = limit
        self._patience = patience
        self._reserved = self._reserved_small = 0
        self._changed = threading.Condition()
        self._reserved_by: Counter[str] = Counter()  # bytes by caller, without small images
        self._waiting: dict[object, str] = {}  # caller by turn, oldest first

    @property
    def reserved(self) -> int:
        """Reserved bytes."""
        return self._reserved + self._reserved_small

    def for_call(self, flow: str = "") -> Reserve:
        """Return the function that reserves memory for images of the current call.

        Args:
            flow: key of its caller.
        """
        return functools.partial(self._reservation, flow, memory_budget.counter())

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
            fits = self._reserved_small + size <= self._limit * _SMALL_BUDGET_SHARE
            if size > self._limit * _SMALL_SHARE or not fits:
                return False
            self._reserved_small += size
            return True

    def _reserve(self, flow: str, requests: Callable[[], int], size: int) -> None:
        """Reserve memory, or raise RESOURCE_EXHAUSTED, `TOO_MUCH_IN_FLIGHT`, after the patience."""
        turn = object()
        until = time.monotonic() + self._patience
        with self._changed:
            self._waiting[turn] = flow
            try:
                while self._next() is not turn or not self._fits(requests, size):
                    if time.monotonic() >= until:
                        raise self._too_much(size)
                    self._changed.wait(_POLL_SECONDS)
                self._reserved += size
                self._reserved_by[flow] += size
            finally:
                del self._waiting[turn]
                self._changed.notify_all()

    def _next(self) -> object:
        """Return the turn of the caller with the lowest reservation.

        An image is overtaken only while its caller has a higher reservation, never forever.
        """
        return min(self._waiting, key=lambda turn: self._reserved_by[self._waiting[turn]])

    def _fits(self, requests: Callable[[], int], size: int) -> bool:
        return not self._reserved or requests() + self.reserved + size <= self._limit

    def _too_much(self, size: int) -> SightlineError:
        bound = f"{self._limit} bytes of requests and pixels in flight"
        return SightlineError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "TOO_MUCH_IN_FLIGHT",
            f"the server has no memory for the {size // _MIB} MiB that the pixels of an image take:"
            f" the limit is {bound}",
            quotas=[QuotaViolation("server", bound)],
            retry_after=_RETRY_SECONDS,
        )
