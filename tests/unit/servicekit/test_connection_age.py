"""Connections that are ended at their age: what that does to the calls of a client."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from servicekit.server_options import server_options
from tests.unit.servicekit.echo import ECHO, call
from tests.unit.servicekit.test_lifecycle import Settings, served

AGE = 0.1


def test_by_default_no_connection_is_ended() -> None:
    assert [name for name in server_options(Settings()) if "connection_age" in name] == []


@pytest.mark.parametrize("grace", [None, 60.0])
async def test_calls_outlive_the_age_of_their_connection(
    capsys: pytest.CaptureFixture[str], grace: float | None
) -> None:
    settings = Settings(
        max_connection_age_seconds=AGE, connection_grace_seconds=grace, access_log=False
    )
    async with served(capsys, settings) as (channel, _):
        states: list[grpc.ChannelConnectivity] = []
        watching = asyncio.ensure_future(watch(channel, states))
        end = asyncio.Event()

        async def messages() -> AsyncIterator[bytes]:
            yield b"before"
            await end.wait()
            yield b"after"

        stream = channel.stream_unary(f"/{ECHO}/StreamUnary", None, None)(messages())
        async with asyncio.timeout(30):
            while states.count(grpc.ChannelConnectivity.READY) < 4:
                assert await call(channel, "UnaryUnary") == [b"a"]
        end.set()
        assert await stream == b"beforeafter"
        watching.cancel()


async def watch(channel: grpc.aio.Channel, states: list[grpc.ChannelConnectivity]) -> None:
    """Note each state of the channel's connection."""
    while True:
        states.append(channel.get_state())
        await channel.wait_for_state_change(states[-1])


async def test_a_call_that_outlives_the_grace_ends_as_unavailable(
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = Settings(max_connection_age_seconds=AGE, connection_grace_seconds=0.1)
    async with served(capsys, settings) as (channel, _):

        async def messages() -> AsyncIterator[bytes]:
            yield b"before"
            await asyncio.sleep(60)

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.stream_unary(f"/{ECHO}/StreamUnary", None, None)(messages())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
