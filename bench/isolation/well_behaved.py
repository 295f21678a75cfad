"""The caller that must not notice the flood: a few small calls per second, each with a deadline."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
from sightline.ingest.v1 import ingest_service_pb2

from bench.infer.figures import OK, Call
from bench.ingest import header, payloads
from bench.isolation import raw, target
from bench.isolation.target import INGEST, STREAMING, UNARY

PER_SECOND = 20.0
DEADLINE_SECONDS = 1.0
_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]
Ask = Callable[[], Awaitable[object]]


@asynccontextmanager
async def caller(service: str, address: str, key: str) -> AsyncIterator[Ask]:
    """Yield a function that makes one call, on its own connection."""
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        make = _logging if service == INGEST else _inferring
        yield make(channel, key)


async def calls(ask: Ask, seconds: float) -> list[Call]:
    """Make calls at a steady rate, without waiting for earlier answers."""
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = []
        for number in range(max(int(seconds * PER_SECOND), 1)):
            await asyncio.sleep(began + number / PER_SECOND - time.perf_counter())
            tasks.append(group.create_task(_timed(ask)))
    return [task.result() for task in tasks]


async def _timed(ask: Ask) -> Call:
    sent, code = time.perf_counter(), OK
    try:
        await ask()
    except grpc.aio.AioRpcError as error:
        code = error.code().name
    except asyncio.CancelledError:  # gRPC raises this when the deadline has passed
        code = "CANCELLED"
    return Call(sent, time.perf_counter(), code)


def _inferring(channel: grpc.aio.Channel, key: str) -> Ask:
    request = target.infer_request(target.small_picture())
    infer = channel.unary_unary(UNARY[target.INFERENCE], None, None)

    async def ask() -> None:
        await infer(request, timeout=DEADLINE_SECONDS, metadata=raw.bearer(key))

    return ask


def _logging(channel: grpc.aio.Channel, key: str) -> Ask:
    """Return a device's turn: get the watermark, log, and wait for the commit."""
    messages = payloads(1, 8, 8)
    watermark = channel.unary_unary(UNARY[INGEST], None, None)
    log = channel.stream_unary(STREAMING[INGEST], None, None)

    async def ask() -> None:
        end, spool = time.monotonic() + DEADLINE_SECONDS, str(uuid.uuid4())
        request = ingest_service_pb2.GetWatermarkRequest(device_id="gate-1", spool_id=spool)
        metadata = raw.bearer(key)
        await watermark(request.SerializeToString(), timeout=DEADLINE_SECONDS, metadata=metadata)
        stream = iter([header("gate-1", spool), *messages])
        await log(stream, timeout=max(end - time.monotonic(), 0.001), metadata=metadata)

    return ask
