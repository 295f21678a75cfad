import asyncio
import contextlib
import time
from collections.abc import AsyncIterable, AsyncIterator

import grpc
import pytest

from servicekit.calls import deadline
from servicekit.calls.deadline import DefaultDeadline
from servicekit.calls.interceptors import GuardInterceptor
from servicekit.calls.status import report_errors
from servicekit.errors import from_rpc_error
from tests.unit.servicekit.echo import ECHO, Act, Context, call, serving, until


@contextlib.asynccontextmanager
async def limited(act: Act, seconds: float) -> AsyncIterator[grpc.aio.Channel]:
    interceptor = GuardInterceptor([ECHO], [report_errors, DefaultDeadline(seconds)])
    async with (
        serving(act, [interceptor]) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield channel


async def for_ever(_context: Context) -> None:
    await asyncio.Event().wait()


async def test_a_call_without_a_deadline_gets_the_servers(kind: str) -> None:
    async with limited(for_ever, 0.1) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, kind)
    error = from_rpc_error(caught.value)
    assert (error.code, error.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    assert "0.1 s" in error.message


async def read_all(stream: AsyncIterable[bytes]) -> None:
    async for _ in stream:
        pass


async def test_it_strikes_while_a_slow_reader_holds_up_a_write() -> None:
    async def generate(_request: bytes, _context: Context) -> AsyncIterator[bytes]:
        while True:
            yield bytes(100_000)

    interceptor = GuardInterceptor([ECHO], [report_errors, DefaultDeadline(0.2)])
    server = grpc.aio.server(interceptors=[interceptor])
    handlers = {"Flood": grpc.unary_stream_rpc_method_handler(generate)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(ECHO, handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        flood = channel.unary_stream(f"/{ECHO}/Flood", None, None)(b"")
        await anext(aiter(flood))
        await asyncio.sleep(0.3)  # reads nothing past the deadline
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_all(flood)
    await server.stop(None)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_calls_own_deadline_is_not_cut_short() -> None:
    async def a_while(_context: Context) -> None:
        await asyncio.sleep(0.15)

    async with limited(a_while, 0.05) as channel:
        assert await call(channel, "UnaryUnary", timeout=5) == [b"a"]


async def test_a_handlers_own_timeout_is_not_taken_for_the_calls() -> None:
    async def act(_context: Context) -> None:
        raise TimeoutError("the disk")

    async with limited(act, 5) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, "UnaryUnary")
    assert caught.value.code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize(("limit", "most"), [(None, 7.0), (3.0, 3.0)])
async def test_remaining_is_of_whichever_deadline_holds(limit: float | None, most: float) -> None:
    left: list[float] = []

    async def act(context: Context) -> None:
        left.append(deadline.remaining(context))
        await asyncio.sleep(0.05)
        left.append(deadline.remaining(context))

    async with limited(act, 7.0) as channel:
        await call(channel, "UnaryUnary", timeout=limit)
    assert most - 1 < left[0] <= most + 0.1  # gRPC rounds a timeout up on the wire
    assert left[1] < left[0] - 0.02


async def test_remaining_never_turns_negative() -> None:
    left: list[float] = []

    async def act(context: Context) -> None:
        try:
            await asyncio.sleep(5)
        finally:
            time.sleep(0.01)  # noqa: ASYNC251 - the clock has to move on
            left.append(deadline.remaining(context))

    async with limited(act, 0.05) as channel:
        for timeout in (None, 0.05):
            with pytest.raises(grpc.aio.AioRpcError):
                await call(channel, "UnaryUnary", timeout=timeout)
        await until(lambda: len(left) == 2)
    assert left == [0.0, 0.0]
