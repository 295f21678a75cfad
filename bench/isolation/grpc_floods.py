"""Floods of an ordinary gRPC client with large or slow requests."""

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Sequence

import grpc

from bench.ingest import header, payloads
from bench.isolation import raw, target
from bench.isolation.target import INGEST, STREAMING, UNARY, Target

CALLS = 128
"""Concurrent calls of a flood whose calls wait long."""
LARGE_CALLS = 16
"""Concurrent calls of a flood of large messages."""
_PAUSE_SECONDS = 0.02
"""Pause after a refused call."""
_LARGE_SECONDS, _LONG_SECONDS, _SHORT_SECONDS = 30.0, 300.0, 1.0
_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
Call = Callable[[grpc.aio.Channel, float], Awaitable[object]]


async def large_pictures(aim: Target) -> int:
    """Send requests with as many and as large images as are allowed."""
    request = target.infer_request(target.large_picture(), 16)
    return await _keep_calling(aim, LARGE_CALLS, _LARGE_SECONDS, _infer(aim, request))


async def long_runs(aim: Target) -> int:
    """Send images that each take longer than the other caller's whole deadline."""
    request = target.infer_request(target.slow_picture(), 16)
    return await _keep_calling(aim, LARGE_CALLS, _LARGE_SECONDS, _infer(aim, request))


async def many_batches(aim: Target) -> int:
    """Keep many calls with many images in flight, with the other caller's short deadline."""
    request = target.infer_request(target.small_picture(), 16)
    return await _keep_calling(aim, CALLS, _SHORT_SECONDS, _infer(aim, request))


async def large_messages(aim: Target) -> int:
    """Log messages of the maximum size."""
    return await _keep_calling(
        aim, LARGE_CALLS, _LARGE_SECONDS, _log(aim, [target.large_message()])
    )


async def long_deadlines(aim: Target) -> int:
    """Keep many calls with long deadlines waiting."""
    if aim.service == INGEST:
        call = _log(aim, payloads(1, 512, 256))
    else:
        call = _infer(aim, target.infer_request(target.small_picture(), 16))
    return await _keep_calling(aim, CALLS, _LONG_SECONDS, call)


def _infer(aim: Target, request: bytes) -> Call:
    metadata = raw.bearer(aim.key)

    async def call(channel: grpc.aio.Channel, seconds: float) -> None:
        infer = channel.unary_unary(UNARY[aim.service], None, None)
        await infer(request, timeout=seconds, metadata=metadata)

    return call


def _log(aim: Target, messages: Sequence[bytes]) -> Call:
    metadata = raw.bearer(aim.key)

    async def call(channel: grpc.aio.Channel, seconds: float) -> None:
        spool = str(uuid.uuid4())
        log = channel.stream_unary(STREAMING[aim.service], None, None)
        stream = iter([header(f"flood-{spool}", spool), *messages])
        await log(stream, timeout=seconds, metadata=metadata)

    return call


async def _keep_calling(aim: Target, callers: int, seconds: float, call: Call) -> int:
    """Return the number of calls answered or refused until the end of the flood."""
    ended = 0

    async def keep(channel: grpc.aio.Channel) -> None:
        nonlocal ended
        while True:
            try:
                await call(channel, seconds)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(_PAUSE_SECONDS)
            ended += 1

    async with grpc.aio.insecure_channel(aim.address, options=_OPTIONS) as channel:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(aim.left):
                await asyncio.gather(*(keep(channel) for _ in range(callers)))
    return ended
