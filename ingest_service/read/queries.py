"""Read queries on threads of their own, bounded in number and interrupted on cancellation."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import grpc

from ingest_service.store.protocol import PredictionStore, Reader
from servicekit.errors import SightlineError

T = TypeVar("T")
_INTERRUPT_SECONDS = 0.05
"""Time between two interrupts of a query, s."""


class Queries:
    """A bounded pool of read queries. Used from one event loop.

    Args:
        store: the store to read.
        threads: queries that run at the same time, >= 1.
        queue: queries that may wait for a thread, >= 0; more are refused.
    """

    def __init__(self, store: PredictionStore, *, threads: int, queue: int) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="query")
        self._limit = threads + queue
        self._running = 0

    async def run(self, query: Callable[[Reader], T]) -> T:
        """Return the query's result. A cancelled call interrupts its query.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED, too many queries wait; or the error of the query.
        """
        if self._running >= self._limit:
            raise SightlineError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "TOO_MANY_QUERIES",
                f"{self._limit} queries run or wait already, which is the limit",
                retry_after=1.0,
            )
        self._running += 1
        try:
            return await self._run(query)
        finally:
            self._running -= 1

    async def _run(self, query: Callable[[Reader], T]) -> T:
        readers: list[Reader] = []

        def read() -> T:
            with contextlib.closing(self._store.reader()) as reader:
                readers.append(reader)
                return query(reader)

        work = self._threads.submit(read)
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            _interrupt(work, readers, asyncio.get_running_loop())
            raise

    def close(self) -> None:
        """Wait for the running queries and end the threads."""
        self._threads.shutdown(cancel_futures=True)


def _interrupt(work: Future[T], readers: Sequence[Reader], loop: asyncio.AbstractEventLoop) -> None:
    """Interrupt repeatedly until the query ends: an interrupt between two of its steps is lost."""
    if work.done():
        return
    for reader in readers:
        reader.interrupt()
    loop.call_later(_INTERRUPT_SECONDS, _interrupt, work, readers, loop)
