"""The handler of Query: SQL of callers, few queries at a time, each in a process of its own."""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from sightline.ingest.v1 import reads_pb2

from ingest_service.read.sql_run import SqlQuery, SqlRun, SqlSummary, out_of_time
from ingest_service.store.protocol import PredictionStore
from servicekit.auth.caller import Scope, current_caller
from servicekit.errors import SightlineError, invalid

_Context = grpc.aio.ServicerContext[Any, Any]

MAX_SQL_BYTES = 64 * 1024
MAX_ROWS = 1_000_000
DEFAULT_ROWS = 10_000


class SqlQueries:
    """The handler of Query. Used from one event loop.

    Args:
        store: the store to read.
        at_once: queries that run at the same time, >= 1; more are refused.
        memory_bytes: memory of the process of a query beyond that of its libraries.
        seconds: maximum duration of a query, > 0; an earlier deadline of the call counts.
    """

    ACCESS: Mapping[str, Scope] = {"Query": Scope.READ}
    """Required scopes by method."""
    UNLIMITED: Sequence[str] = ()
    """Methods whose calls get no default deadline."""

    def __init__(
        self, store: PredictionStore, *, at_once: int, memory_bytes: int, seconds: float
    ) -> None:
        self._store = store
        self._at_once = at_once
        self._memory_bytes = memory_bytes
        self._seconds = seconds
        self._running = 0
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="sql", initializer=_run_last)

    def handlers(self) -> "dict[str, grpc.RpcMethodHandler[Any, Any]]":
        """Return the gRPC handlers by the method's short name."""
        return {
            "Query": grpc.unary_stream_rpc_method_handler(
                self.query,
                request_deserializer=reads_pb2.QueryRequest.FromString,
                response_serializer=reads_pb2.QueryResponse.SerializeToString,
            )
        }

    async def query(
        self, request: reads_pb2.QueryRequest, context: _Context
    ) -> AsyncIterator[reads_pb2.QueryResponse]:
        """Stream the rows of a query, then a summary."""
        current_caller().require_all_devices()
        left = context.time_remaining()
        seconds = self._seconds if left is None else min(self._seconds, max(left, 0.001))
        query = SqlQuery(_sql(request.sql), _rows(request.max_rows), seconds, self._memory_bytes)
        began = time.monotonic()
        async with contextlib.aclosing(self._run(query)) as parts:
            async for part in parts:
                if isinstance(part, bytes):
                    yield reads_pb2.QueryResponse(data=part)
                else:
                    summary = reads_pb2.QuerySummary(**part._asdict())
                    summary.elapsed.FromNanoseconds(round((time.monotonic() - began) * 1e9))
                    yield reads_pb2.QueryResponse(summary=summary)

    def close(self) -> None:
        """Wait for the running queries to end, and end the threads."""
        self._threads.shutdown(cancel_futures=True)

    async def _run(self, query: SqlQuery) -> AsyncGenerator[bytes | SqlSummary, None]:
        """Yield the parts of the result, the summary last."""
        if self._running >= self._at_once:
            raise SightlineError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "TOO_MANY_QUERIES",
                f"{self._at_once} SQL queries run already, which is the limit",
                retry_after=1.0,
            )
        self._running += 1
        loop = asyncio.get_running_loop()
        work = _SqlWork(query, self._store)
        end = loop.time() + query.seconds
        # Even while a caller takes no rows: `yield` lasts until it does.
        timer = loop.call_at(end, self._end, work)
        step: asyncio.Future[bytes | SqlSummary] | None = None
        try:
            part: bytes | SqlSummary = b""
            while isinstance(part, bytes):
                if work.ended:
                    raise out_of_time(query.seconds)
                step = loop.run_in_executor(self._threads, work.next_part)
                done, _ = await asyncio.wait([step], timeout=end - loop.time())
                if work.ended or not done:
                    raise out_of_time(query.seconds)
                part = step.result()
                yield part
        finally:
            timer.cancel()
            if step is not None:
                step.cancel()  # nobody waits for its result
            self._end(work)

    def _end(self, work: "_SqlWork") -> None:
        """End a query, unless it has ended, and free its place."""
        if work.ended:
            return
        work.ended = True
        work.kill()
        # Behind the step that may still run, on a thread that is free as soon as that ends.
        closing = asyncio.get_running_loop().run_in_executor(self._threads, work.close)
        closing.add_done_callback(self._closed)

    def _closed(self, closing: asyncio.Future[None]) -> None:
        self._running -= 1
        if not closing.cancelled():
            closing.result()


class _SqlWork:
    """A run that begins with its first part, and that may be killed before it begins.

    Attributes:
        ended: True once its place is given up; used from the event loop.
    """

    def __init__(self, query: SqlQuery, store: PredictionStore) -> None:
        self._query = query
        self._store = store
        self.ended = False
        self._run: SqlRun | None = None
        self._killed = False
        self._lock = threading.Lock()
        self._step = threading.Lock()

    def next_part(self) -> bytes | SqlSummary:
        with self._step:
            if self._run is None:
                self._begin()
            assert self._run is not None  # noqa: S101 # `_begin` has set it or raised
            return self._run.next_part()

    def kill(self) -> None:
        with self._lock:
            self._killed = True
            if self._run is not None:
                self._run.kill()

    def close(self) -> None:
        with self._step:  # a step that was left to itself ends soon, because it was killed
            if self._run is not None:
                self._run.close()

    def _begin(self) -> None:
        reader = self._store.reader()
        try:
            run = SqlRun(self._query, reader)
        except BaseException:
            reader.close()
            raise
        with self._lock:
            self._run = run
            if self._killed:
                run.kill()


def _run_last() -> None:
    """Let the threads that read for queries run only when no other thread of the service does."""
    with contextlib.suppress(OSError, AttributeError):  # a priority of a thread is Linux's
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def _sql(text: str) -> str:
    size = len(text.encode())
    if not 1 <= size <= MAX_SQL_BYTES:
        raise invalid("sql", f"must be 1 to {MAX_SQL_BYTES} bytes, got {size}")
    return text


def _rows(number: int) -> int:
    if not 0 <= number <= MAX_ROWS:
        raise invalid("max_rows", f"must be 0 (for {DEFAULT_ROWS}) to {MAX_ROWS}, got {number}")
    return number or DEFAULT_ROWS
