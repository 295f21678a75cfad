"""The cost of a connection for others before it is authenticated (issue 11, item 6).

Real servers in processes of their own, and a raw HTTP/2 client that does what no library would.
"""

import asyncio
import contextlib
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from bench.isolation import frames, raw
from bench.isolation.raw import Connection, Stream
from servicekit.auth.caller import Scope
from servicekit.auth.key_file import KeyFile
from servicekit.calls.tarpit import BURST, LONGEST_SECONDS, PER_SECOND
from tests.integration.servicekit.test_lifecycle import Process, check, started
from tests.unit.edge.samples import eventually
from tests.unit.servicekit.echo import ECHO, call
from tests.unit.servicekit.test_tls import issue

UNKNOWN = frames.block("/nowhere.v1.Nothing/Nothing")
KNOWN = frames.block(f"/{ECHO}/UnaryUnary")
STREAMING = frames.block(f"/{ECHO}/StreamUnary")
HEALTH = frames.block("/grpc.health.v1.Health/Check")
REFUSED_STREAM = 7
EMPTY = frames.message_head(0)
PLACES = 64
PROMPT_SECONDS = LONGEST_SECONDS / 2
"""Maximum duration of a call whose answer is not delayed, on a busy machine, s."""


@contextlib.asynccontextmanager
async def served(*flags: str) -> AsyncIterator[tuple[Process, str]]:
    """Run the echo service; yield it and its address."""
    places = ("--max-concurrent-streams", str(PLACES))
    async with started(*places, "--no-access-log", *flags) as process:
        ready = await process.ready()
        yield process, str(ready["address"])


def flood(connection: Connection, block: bytes, count: int) -> list[Stream]:
    """Begin calls with an empty request each."""
    streams = []
    for _ in range(count):
        streams.append(connection.open(block))
        connection.write(frames.data(streams[-1].number, EMPTY, end=True))
    return streams


def reset_flood(connection: Connection, block: bytes, count: int) -> None:
    """Begin calls and resets each at once."""
    for _ in range(count):
        connection.reset(connection.open(block))


async def answered(address: str) -> float:
    """Return how long a well-behaved caller waits for its answer, s."""
    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()
        began = time.monotonic()
        assert await call(channel, "UnaryUnary", (b"x",), timeout=10) == [b"x"]
        return time.monotonic() - began


async def is_full(connection: Connection) -> bool:
    """Return True if gRPC itself refuses most further calls of the connection."""
    await asyncio.sleep(0.2)  # what is not answered late has ended
    # As many again may be on their way out.
    probes = [connection.open(STREAMING) for _ in range(2 * PLACES)]

    def most_are_refused() -> bool:
        return sum(probe.reset_code == REFUSED_STREAM for probe in probes) > PLACES

    return await asyncio.to_thread(eventually, most_are_refused, PROMPT_SECONDS)


async def test_unknown_methods_fill_their_own_connection_only() -> None:
    async with served() as (_, address), raw.connect(address) as connection:
        began = time.monotonic()
        streams = []
        while time.monotonic() - began < 1:
            streams += flood(connection, UNKNOWN, 10)
            await connection.drain()
            await asyncio.sleep(0.001)
        found = Counter((s.status or s.reset_code) for s in streams if s.ended)
        assert await is_full(connection)
        assert await answered(address) < PROMPT_SECONDS
        most = BURST + PER_SECOND * (time.monotonic() - began) + 1
    assert BURST <= found["12"] <= most, found
    assert found[REFUSED_STREAM] > PLACES, found
    assert set(found) == {"12", REFUSED_STREAM}


@pytest.mark.parametrize(
    "block", [KNOWN, STREAMING, UNKNOWN, HEALTH], ids=["unary", "stream", "unknown", "health"]
)
async def test_rapid_resets_fill_their_own_connection_only(block: bytes) -> None:
    async with served() as (_, address), raw.connect(address) as connection:
        for _ in range(20):
            reset_flood(connection, block, PLACES)
            await connection.drain()
            await asyncio.sleep(0.05)
        assert await is_full(connection)
        assert await answered(address) < PROMPT_SECONDS


async def test_calls_whose_deadline_is_over_at_once_are_as_resets() -> None:
    block = frames.block(f"/{ECHO}/UnaryUnary", timeout="1m")
    async with served() as (_, address), raw.connect(address) as connection:
        for _ in range(20):
            for _ in range(PLACES):
                connection.open(block)
            await connection.drain()
            await asyncio.sleep(0.05)
        assert await is_full(connection)
        assert await answered(address) < PROMPT_SECONDS


async def test_bad_credentials_are_answered_late(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.db")
    key, _ = keys.create("gate-1", devices=["*"], scopes=[Scope.LOG])
    other, _ = KeyFile(tmp_path / "others.db").create("x", devices=["*"], scopes=[Scope.LOG])
    bad = frames.block(f"/{ECHO}/UnaryUnary", raw.bearer(other))
    good = frames.block(f"/{ECHO}/UnaryUnary", raw.bearer(key))
    async with (
        served("--api-keys-file", str(tmp_path / "keys.db")) as (_, address),
        raw.connect(address) as connection,
        raw.connect(address) as well_behaved,
    ):
        began, refused = time.monotonic(), 0
        while time.monotonic() - began < 1:
            streams = flood(connection, bad, PLACES)
            await connection.drain()
            await asyncio.sleep(0.05)
            refused += sum(stream.status == "16" for stream in streams)
        most = BURST + PER_SECOND * (time.monotonic() - began) + 1
        for stream in flood(well_behaved, good, PLACES):
            async with asyncio.timeout(PROMPT_SECONDS):
                await stream.wait()
            assert stream.status == "0"
    assert 0 < refused <= most


async def test_health_checks_without_end_are_answered_late() -> None:
    async with served() as (_, address), raw.connect(address) as connection:
        began, served_checks = time.monotonic(), 0
        while time.monotonic() - began < 1:
            streams = flood(connection, HEALTH, PLACES)
            await connection.drain()
            await asyncio.sleep(0.05)
            served_checks += sum(stream.status == "0" for stream in streams)
        most = BURST + PER_SECOND * (time.monotonic() - began) + 1
        async with grpc.aio.insecure_channel(address) as channel:
            async with asyncio.timeout(PROMPT_SECONDS):
                await check(channel, "")
    assert 0 < served_checks <= most


async def test_calls_that_pile_up_do_not_cancel_those_of_others() -> None:
    """gRPC cancelled any of them by chance from 1000 on, whichever method they called."""
    async with served() as (_, address), contextlib.AsyncExitStack() as stack:
        blocking = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        await blocking.channel_ready()
        crowd = [await stack.enter_async_context(raw.connect(address)) for _ in range(70)]
        caller = await stack.enter_async_context(raw.connect(address))
        blocked = asyncio.create_task(call(blocking, "UnaryUnary", (b"block 2",)))
        await asyncio.sleep(0.2)
        for connection in crowd:
            flood(connection, UNKNOWN, PLACES)
            await connection.drain()
        streams = flood(caller, KNOWN, 40)
        await blocked
        async with asyncio.timeout(10):
            await asyncio.gather(*(stream.wait() for stream in streams))
    assert Counter(stream.status for stream in streams) == {"0": 40}


async def test_calls_that_wait_do_not_hold_up_the_end() -> None:
    async with served() as (process, address), raw.connect(address) as connection:
        flood(connection, UNKNOWN, PLACES)
        for _ in range(3):
            reset_flood(connection, KNOWN, PLACES)
            await connection.drain()
            await asyncio.sleep(0.1)
        began = time.monotonic()
        process.signal()
        code, _, _ = await process.end()
    assert code == 0
    assert time.monotonic() - began < 5


async def test_a_connection_beyond_the_bound_is_closed_at_once() -> None:
    async with served("--max-connections", "2") as (_, address), raw.connect(address):
        async with raw.connect(address):
            with pytest.raises((raw.ConnectionEndedError, OSError)):
                async with asyncio.timeout(5), raw.connect(address):
                    pass
        # A place is free again.
        async with asyncio.timeout(5):
            assert await answered(address) < 2


async def test_who_never_finishes_connecting_is_cut_off(tmp_path: Path) -> None:
    authority = issue(tmp_path, "authority")
    server = issue(tmp_path, "server", authority)
    tls = ("--tls-cert-file", str(server.cert_file), "--tls-key-file", str(server.key_file))
    async with served() as (_, plain), served(*tls) as (_, secure):
        began = time.monotonic()
        silent = [asyncio.open_connection(*plain.rsplit(":", 1)) for _ in range(20)]
        half = [_half_a_handshake(secure) for _ in range(20)]
        connections = await asyncio.gather(*silent, *half)
        async with asyncio.timeout(30):
            await asyncio.gather(*(_until_closed(reader) for reader, _ in connections))
        assert time.monotonic() - began > 5  # a slow device has time
        for _, writer in connections:
            writer.close()


async def _half_a_handshake(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(*address.rsplit(":", 1))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    handshake = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        handshake.do_handshake()
    writer.write(outgoing.read()[:100])
    return reader, writer


async def _until_closed(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(1 << 16):
            pass


async def test_a_busy_connection_is_not_refused_for_calls_that_were_answered() -> None:
    async with served() as (_, address), grpc.aio.insecure_channel(address) as channel:

        async def caller() -> None:
            for _ in range(20):
                assert await call(channel, "UnaryUnary", (b"x",), timeout=30) == [b"x"]

        await asyncio.gather(*(caller() for _ in range(4 * PLACES)))
