import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import grpc
import pytest

from servicekit.calls.interceptors import Guard, GuardInterceptor
from servicekit.calls.status import report_errors
from servicekit.errors import SightlineError
from tests.unit.servicekit.echo import ECHO, Context, call, call_sync, serving

EXPECTED = {
    "UnaryUnary": [b"a"],
    "UnaryStream": [b"a", b"a"],
    "StreamUnary": [b"ab"],
    "StreamStream": [b"a", b"b"],
    "Written": [b"a"],
}


async def nothing(_context: Context) -> None:
    """Answer as most calls of these tests expect."""


def noting(notes: list[str], name: str) -> Guard:
    async def guard(method: str, _context: Context, proceed: Callable[[], Awaitable[Any]]) -> Any:
        notes.append(f"{name} before {method}")
        try:
            return await proceed()
        finally:
            notes.append(f"{name} after")

    return guard


@pytest.mark.parametrize("kind", EXPECTED)
async def test_guards_nest_around_every_kind(kind: str) -> None:
    notes: list[str] = []
    interceptor = GuardInterceptor([ECHO], [noting(notes, "outer"), noting(notes, "inner")])
    async with (
        serving(nothing, [interceptor]) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        assert await call(channel, kind, (b"a", b"b")) == EXPECTED[kind]
    method = f"/{ECHO}/{kind}"
    assert notes == [
        f"outer before {method}",
        f"inner before {method}",
        "inner after",
        "outer after",
    ]


async def test_sync_clients_get_every_kind(kind: str) -> None:
    def use(address: str) -> list[bytes]:
        with grpc.insecure_channel(address) as channel:
            return call_sync(channel, kind, (b"a", b"b"))

    async with serving(nothing, [GuardInterceptor([ECHO], [noting([], "guard")])]) as address:
        assert await asyncio.to_thread(use, address) == EXPECTED[kind]


async def test_other_services_are_left_alone() -> None:
    notes: list[str] = []
    interceptor = GuardInterceptor(["test.v1.Ech", "other.Echo"], [noting(notes, "guard")])
    async with (
        serving(nothing, [interceptor]) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        assert await call(channel, "UnaryUnary") == [b"a"]
    assert notes == []


async def test_an_unknown_method_is_unimplemented() -> None:
    async with (
        serving(nothing, [GuardInterceptor([ECHO], [])]) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(f"/{ECHO}/Nowhere", None, None)(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


class Details(grpc.HandlerCallDetails):
    method = f"/{ECHO}/M"
    invocation_metadata = ()


def intercept(interceptor: GuardInterceptor, handler: Any) -> Callable[[], Any]:
    async def continuation(_details: grpc.HandlerCallDetails) -> Any:
        return handler

    return lambda: interceptor.intercept_service(continuation, Details())


async def test_serializers_are_kept_and_guards_put_on_once() -> None:
    async def handle(request: str, _context: Context) -> str:
        return request

    handler = grpc.unary_unary_rpc_method_handler(
        handle, request_deserializer=bytes.decode, response_serializer=str.encode
    )
    again = intercept(GuardInterceptor([ECHO], [noting([], "guard")]), handler)
    guarded = await again()
    assert guarded.request_deserializer is None  # requests are parsed inside the guards
    assert await guarded.unary_unary(b"x", cast("Context", None)) == b"x"
    assert guarded.response_serializer is None  # and one response is serialized there
    assert guarded.unary_unary is not handle
    assert await again() is guarded


async def test_a_message_is_passed_on_and_not_copied() -> None:
    async def handle(request: bytearray, _context: Context) -> bytearray:
        return request

    again = intercept(
        GuardInterceptor([ECHO], [noting([], "guard")]), grpc.unary_unary_rpc_method_handler(handle)
    )
    message = bytearray(b"x")
    assert await (await again()).unary_unary(message, cast("Context", None)) is message


async def test_a_handler_that_would_block_the_loop_is_refused() -> None:
    def handle(request: bytes, _context: Context) -> bytes:
        return request

    handler = grpc.unary_unary_rpc_method_handler(handle)
    with pytest.raises(TypeError, match=r"/test\.v1\.Echo/M: the handler must be async"):
        await intercept(GuardInterceptor([ECHO], []), handler)()


async def test_a_generator_is_closed_when_its_call_fails() -> None:
    closed = []

    async def generate(request: bytes, _context: Context) -> AsyncIterator[bytes]:
        try:
            yield request
        finally:
            closed.append(True)

    class Gone:
        async def write(self, _message: bytes) -> None:
            raise ConnectionError

    handler = grpc.unary_stream_rpc_method_handler(generate)
    guarded = await intercept(GuardInterceptor([ECHO], []), handler)()
    with pytest.raises(ConnectionError):
        await guarded.unary_stream(b"x", cast("Context", Gone()))
    assert closed == [True]


@pytest.mark.parametrize("kind", EXPECTED)
async def test_each_message_is_counted_before_the_handler_gets_it(kind: str) -> None:
    counted: list[tuple[str, int]] = []

    def count(method: str, size: int, _first: bool) -> None:
        counted.append((method, size))
        if len(counted) == 2:
            raise SightlineError(grpc.StatusCode.RESOURCE_EXHAUSTED, "ENOUGH", "enough")

    interceptor = GuardInterceptor([ECHO], [report_errors], count)
    async with (
        serving(nothing, [interceptor]) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        assert await call(channel, kind, (b"four",)) != []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, kind, (b"a",))  # the last: nothing is written to a call that ended
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert counted == [(f"/{ECHO}/{kind}", 4), (f"/{ECHO}/{kind}", 1)]


async def test_a_handler_may_set_a_code_and_return_nothing() -> None:
    async def handle(_request: bytes, context: Context) -> None:
        context.set_code(grpc.StatusCode.NOT_FOUND)

    def serialize(response: bytes) -> bytes:
        return response + b""  # fails for None, as that of a message does

    handler = grpc.unary_unary_rpc_method_handler(handle, response_serializer=serialize)
    server = grpc.aio.server(interceptors=[GuardInterceptor([ECHO], [report_errors])])
    service = grpc.method_handlers_generic_handler(ECHO, {"UnaryUnary": handler})
    server.add_generic_rpc_handlers([service])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(channel, "UnaryUnary")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    finally:
        await server.stop(None)
