"""A gate for gRPC calls: one at a time, interruptible, and none while the process forks.

gRPC survives a fork only if no thread is inside it; otherwise calls of the child may hang. So a
fork interrupts the calls that pass through a gate and holds every gate until the fork is complete.

No call object may remain either. gRPC acquires a lock to destroy a call. In the child that lock may
be held forever by a thread that does not exist there, and the garbage collector may destroy the
call at any time.
"""

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import grpc

from servicekit.errors import SightlineError, from_rpc_error

if TYPE_CHECKING:
    from grpc import CallFuture

_FORK_PATIENCE_SECONDS = 2.0
_T = TypeVar("_T")
_gates: "weakref.WeakSet[CallGate]" = weakref.WeakSet()


class CallGate:
    """A gate for the calls of one thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held during a call
        self._cancel: Callable[[], object] | None = None  # cancels the current call
        self._is_closed = False
        self._is_held = False
        _gates.add(self)

    def run(self, start: "Callable[[], CallFuture[_T]]") -> _T:
        """Start a call, wait for it and return its response.

        Raises:
            SightlineError: the error of the call; CANCELLED if it was interrupted.
        """
        with self._lock:
            outcome = self._outcome(start)
        if isinstance(outcome, SightlineError):
            raise outcome
        return outcome

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Delay forks of the process while gRPC is used for something other than a call."""
        with self._lock:
            yield

    def close(self) -> None:
        """Interrupt the current call, and every later one at once."""
        self._is_closed = True
        self._interrupt()

    def hold(self) -> None:
        """Interrupt the current call and start no other until `release`."""
        deadline = time.monotonic() + _FORK_PATIENCE_SECONDS
        while not self._is_held and time.monotonic() < deadline:
            self._interrupt()
            self._is_held = self._lock.acquire(timeout=0.01)

    def release(self) -> None:
        """Allow calls again."""
        if self._is_held:
            self._is_held = False
            self._lock.release()

    def _outcome(self, start: "Callable[[], CallFuture[_T]]") -> _T | SightlineError:
        """Return the result of a call, leaving no reference to the call object."""
        call = start()
        self._cancel = call.cancel
        if self._is_closed:
            self._interrupt()
        try:
            return call.result()
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            error.__traceback__ = None  # it refers to the call, which may be the error itself
            return _failure(error)
        finally:
            self._cancel = None

    def _interrupt(self) -> None:
        cancel = self._cancel
        if cancel is not None:
            cancel()


def _failure(error: grpc.RpcError | grpc.FutureCancelledError) -> SightlineError:
    if isinstance(error, grpc.RpcError):
        return from_rpc_error(error)
    return SightlineError(grpc.StatusCode.CANCELLED, "INTERRUPTED", "the call was interrupted here")


def _hold_all() -> None:
    for gate in list(_gates):
        gate.hold()


def _release_all() -> None:
    for gate in list(_gates):
        gate.release()


os.register_at_fork(before=_hold_all, after_in_parent=_release_all)
