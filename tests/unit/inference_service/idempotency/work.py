"""Work whose runs are counted and end as they are told, and a store that can be held up."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from typing import Any

from inference_service.idempotency.sqlite_store import SqliteStore


class CountedWork:
    """Work that counts its runs; each waits for `go` and ends as `ends` says, the last for good."""

    def __init__(self, *ends: bytes | BaseException, go: bool = True) -> None:
        self.ends = list(ends)
        self.runs = 0
        self.cancelled = 0
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        if go:
            self.go.set()

    async def __call__(self) -> bytes:
        self.runs += 1
        end = self.ends[min(self.runs, len(self.ends)) - 1]
        self.started.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(end, BaseException):
            raise end
        return end


class HeldStore(SqliteStore):
    """Does nothing while it is held; counts transactions."""

    def __init__(self, path: str = "") -> None:
        super().__init__(path)
        self.held = threading.Event()
        self.let_go = threading.Event()
        self.transactions = 0

    def hold(self) -> None:
        """Hold up the next use, until `let_go` is set."""
        self.let_go.clear()
        self.held.set()

    def _pass(self) -> None:
        if self.held.is_set():
            assert self.let_go.wait(10)
            self.held.clear()

    @contextmanager
    def transaction(self) -> Any:
        self._pass()
        self.transactions += 1
        with super().transaction():
            yield

    def claim(self, *arguments: Any, **named: Any) -> Any:
        self._pass()
        return super().claim(*arguments, **named)

    def renew(self, *arguments: Any, **named: Any) -> bool:
        self._pass()
        return super().renew(*arguments, **named)

    def settle(self, *arguments: Any, **named: Any) -> bool:
        self._pass()
        return super().settle(*arguments, **named)

    def release(self, *arguments: Any, **named: Any) -> bool:
        self._pass()
        return super().release(*arguments, **named)


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - often another thread's
            await asyncio.sleep(0.002)


async def ends_soon(call: "Awaitable[Any]") -> bool:
    """Return True if a task ends within a short time; for what must not happen yet."""
    done, _ = await asyncio.wait({asyncio.ensure_future(call)}, timeout=0.05)
    return bool(done)
