"""Floods of an ordinary gRPC client that asks for much, and for long."""

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Sequence

import grpc

from bench.ingest import header, payloads
from bench.isolation import raw, target
from bench.isolation.target import INGEST, STREAMING, UNARY, Target

CALLS = 128
"""Calls at a time of a flood that waits long."""
LARGE_CALLS = 16
"""Calls at a time of a flood of large messages."""
_PAUSE_SECONDS = 0.02
"""After a call that was refused."""
_LARGE_SECONDS, _LONG_SECONDS, _SHORT_SECONDS = 30.0, 300.0, 1.0
_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
Call = Callable[[grpc.aio.Channel, float], Awaitable[object]]


async def large_pictures(aim: Target) -> int:
    """Ask for requests of as many, and as large, pictures as one may hold."""
    request = target.infer_request(target.large_picture(), 16)
    return await _keep_calling(aim, LARGE_CALLS, _LARGE_SECONDS, _infer(aim, request))


async def long_runs(aim: Target) -> int:
    """Ask for pictures each of which takes longer than the other caller's whole deadline."""
    request = target.infer_request(target.slow_picture(), 16)
    return await _keep_calling(aim, LARGE_CALLS, _LARGE_SECONDS, _infer(aim, request))


async def many_batches(aim: Target) -> int:
    """Keep many calls of many pictures under way that have as little time as the other caller's."""
    request = target.infer_request(target.small_picture(), 16)
    return await _keep_calling(aim, CALLS, _SHORT_SECONDS, _infer(aim, request))


async def large_messages(aim: Target) -> int:
    """Log messages that are as large as they may be."""
    return await _keep_calling(
        aim, LARGE_CALLS, _LARGE_SECONDS, _log(aim, [target.large_message()])
    )


async def long_deadlines(aim: Target) -> int:
    """Keep many calls waiting that have all the time in the world."""
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
    """Return how many calls were answered or refused until the time was up."""
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
