"""One gRPC call at a time, which can be interrupted, and none while the process forks.

gRPC survives a fork only if no thread is inside it: else the child's own calls may hang. So a fork
interrupts the calls that pass through a gate, and holds every gate until it is done.

Nor may a call be left over. gRPC takes a lock to destroy one, which in the child may be held for
ever, by a thread that is not there; and the garbage collector destroys it wherever it is at work.
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
    """The gate of one thread that calls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held while a call is under way
        self._cancel: Callable[[], object] | None = None  # cancels the call under way
        self._is_closed = False
        self._is_held = False
        _gates.add(self)

    def run(self, start: "Callable[[], CallFuture[_T]]") -> _T:
        """Start a call and return its answer.

        Raises:
            SightlineError: what the call failed with; CANCELLED: it was interrupted.
        """
        with self._lock:
            outcome = self._outcome(start)
        if isinstance(outcome, SightlineError):
            raise outcome
        return outcome

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Keep the process from forking while gRPC is used for something else than a call."""
        with self._lock:
            yield

    def close(self) -> None:
        """Interrupt the call under way, and every later one at once."""
        self._is_closed = True
        self._interrupt()

    def hold(self) -> None:
        """Interrupt the call under way and start none until `release`."""
        deadline = time.monotonic() + _FORK_PATIENCE_SECONDS
        while not self._is_held and time.monotonic() < deadline:
            self._interrupt()
            self._is_held = self._lock.acquire(timeout=0.01)

    def release(self) -> None:
        """Let calls through again."""
        if self._is_held:
            self._is_held = False
            self._lock.release()

    def _outcome(self, start: "Callable[[], CallFuture[_T]]") -> _T | SightlineError:
        """Return when the call is over and nothing refers to it any more."""
        call = start()
        self._cancel = call.cancel
        if self._is_closed:
            self._interrupt()
        try:
            return call.result()
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            error.__traceback__ = None  # in which the call is, which may be the error itself
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
