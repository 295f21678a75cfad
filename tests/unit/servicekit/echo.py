"""A service of all four kinds whose calls do what a test says, behind a real server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from servicekit.lifecycle import add_methods

ECHO = "test.v1.Echo"
MALFORMED = b"\xff"
KINDS = ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream")
Context = grpc.aio.ServicerContext[Any, Any]
Act = Callable[[Context], Awaitable[None]]


def parse(data: bytes) -> bytes:
    """Return the bytes as a message, except `MALFORMED`."""
    if data == MALFORMED:
        raise DecodeError("no message")
    return data


class Echo:
    """Calls `act`, then echoes bytes; `StreamUnary` joins them, `Written` writes by itself."""

    def __init__(self, act: Act) -> None:
        self.act = act

    async def unary_unary(self, request: bytes, context: Context) -> bytes:
        await self.act(context)
        return request

    async def unary_stream(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        yield request
        await self.act(context)
        yield request

    async def stream_unary(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        received = [request async for request in requests]
        await self.act(context)
        return b"".join(received)

    async def stream_stream(
        self, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        async for request in requests:
            await self.act(context)
            yield request

    async def written(self, request: bytes, context: Context) -> None:
        await self.act(context)
        await context.write(request)

    def register(self, server: grpc.aio.Server) -> None:
        handlers = {
            "UnaryUnary": grpc.unary_unary_rpc_method_handler(self.unary_unary, parse),
            "UnaryStream": grpc.unary_stream_rpc_method_handler(self.unary_stream, parse),
            "StreamUnary": grpc.stream_unary_rpc_method_handler(self.stream_unary, parse),
            "StreamStream": grpc.stream_stream_rpc_method_handler(self.stream_stream, parse),
            "Written": grpc.unary_stream_rpc_method_handler(self.written, parse),
        }
        add_methods(server, ECHO, handlers)


@contextlib.asynccontextmanager
async def serving(act: Act, interceptors: Sequence[Any]) -> AsyncIterator[str]:
    """Serve `Echo` on a free port of the loopback; yield its address."""
    server = grpc.aio.server(interceptors=interceptors)
    Echo(act).register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def call(
    channel: grpc.aio.Channel, kind: str, requests: Sequence[bytes] = (b"a",), **options: Any
) -> list[bytes]:
    """Return the responses of one call of `Echo`; raise AioRpcError."""
    method = f"/{ECHO}/{kind}"
    match kind:
        case "UnaryUnary":
            return [await channel.unary_unary(method, None, None)(requests[0], **options)]
        case "StreamUnary":
            return [await channel.stream_unary(method, None, None)(iter(requests), **options)]
        case "StreamStream":
            return [
                r
                async for r in channel.stream_stream(method, None, None)(iter(requests), **options)
            ]
        case _:
            return [
                r async for r in channel.unary_stream(method, None, None)(requests[0], **options)
            ]


def call_sync(channel: grpc.Channel, kind: str, requests: Sequence[bytes] = (b"a",)) -> list[bytes]:
    """Return the responses of one call of `Echo`; raise grpc.RpcError."""
    method = f"/{ECHO}/{kind}"
    match kind:
        case "UnaryUnary":
            return [channel.unary_unary(method, None, None)(requests[0])]
        case "StreamUnary":
            return [channel.stream_unary(method, None, None)(iter(requests))]
        case "StreamStream":
            return list(channel.stream_stream(method, None, None)(iter(requests)))
        case _:
            return list(channel.unary_stream(method, None, None)(requests[0]))


async def until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; raise TimeoutError after 5 s."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what changes it has no event to wait for
            await asyncio.sleep(0.01)
