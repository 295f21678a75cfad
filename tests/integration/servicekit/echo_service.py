"""A small service in a process of its own, for the tests of the lifecycle.

`UnaryUnary` does what its request says (see `EchoService`), or echoes.
`StreamUnary` joins its requests, and answers early when the server drains.
"""

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

from prometheus_client import CollectorRegistry
from pydantic import Field

from servicekit.lifecycle import Readiness, Service, run, serve
from servicekit.server_settings import ServerSettings
from servicekit.settings import load
from servicekit.telemetry import logs

sys.path.insert(0, str(Path(__file__).parents[3]))  # run as a script

from tests.unit.servicekit.echo import ECHO, Context, Echo


def say(what: str) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


class EchoSettings(ServerSettings):
    """Settings of the echo service."""

    part: ClassVar[str] = "ingest"
    warm_up_seconds: float = Field(default=0.0, description="how long start takes, s")
    warm_up_error: str = Field(default="", description="what start fails with; empty: nothing")
    stop_error: str = Field(default="", description="what stop fails with; empty: nothing")


class EchoService(Echo):
    """Understands `sleep <seconds>`, `block <seconds>`, `hang`, `make <bytes>`, `ready`, `unready`.

    `block` holds up the whole event loop.
    """

    def __init__(self, settings: EchoSettings) -> None:
        self.settings = settings
        self.draining = asyncio.Event()
        self.readiness: Readiness | None = None

    async def start(self, readiness: Readiness) -> None:
        say("starting")
        self.readiness = readiness
        await asyncio.sleep(self.settings.warm_up_seconds)
        if self.settings.warm_up_error:
            raise RuntimeError(self.settings.warm_up_error)

    async def drain(self) -> None:
        self.draining.set()

    async def stop(self) -> None:
        say("stopped")
        if self.settings.stop_error:
            raise RuntimeError(self.settings.stop_error)

    async def unary_unary(self, request: bytes, context: Context) -> bytes:
        word, _, argument = request.decode().partition(" ")
        if word == "sleep":
            await asyncio.sleep(float(argument))
        elif word == "block":
            time.sleep(float(argument))  # noqa: ASYNC251 - calls pile up meanwhile
        elif word == "hang":
            await self.hang()
        elif word == "make":
            return b"x" * int(argument)
        elif word in {"ready", "unready"}:
            assert self.readiness is not None
            thread = threading.Thread(target=self.readiness.set, args=[word == "ready"])
            thread.start()
        return request

    async def hang(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.3)  # what a handler has to put right takes a while
            say("unwound")

    async def stream_unary(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        received: list[bytes] = []

        async def receive() -> None:
            async for request in requests:
                received.append(request)

        receiving = asyncio.ensure_future(receive())
        draining = asyncio.ensure_future(self.draining.wait())
        await asyncio.wait({receiving, draining}, return_when=asyncio.FIRST_COMPLETED)
        receiving.cancel()
        draining.cancel()
        return b"".join(received)


async def main() -> None:
    settings = load(EchoSettings, sys.argv[1:], prog="echo")
    logs.configure(settings.log_level, settings.log_format, service="echo")
    echo = EchoService(settings)
    await serve(
        settings,
        [Service(ECHO, echo.register)],
        name="echo",
        start=echo.start,
        drain=echo.drain,
        stop=echo.stop,
        registry=CollectorRegistry(),
    )


if __name__ == "__main__":
    sys.exit(run(main, prog="echo"))
