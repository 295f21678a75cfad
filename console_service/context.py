"""The parts of the console that routes share, and how they read one request."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request
from sightline.inference.v1.inference_service_pb2 import ListModelsRequest

from console_service.backend import INFERENCE, INGEST, Backend, HttpCall
from console_service.errors import FACTS
from console_service.front import TIMINGS
from console_service.metrics import ConsoleMetrics
from console_service.places import RequestPlaces
from console_service.session import authorization_of
from console_service.settings import ConsoleSettings
from servicekit.errors import invalid
from servicekit.telemetry.tracing import trace_id

TIMEOUT_HEADER = "sightline-timeout"
MAX_TIMEOUT_SECONDS = 3600.0
_QUEUE = 4
"""Requests that may wait for each place."""


@dataclass(slots=True)
class Console:
    """The parts of a running console."""

    settings: ConsoleSettings
    backend: Backend
    metrics: ConsoleMetrics
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the process has to end: event streams end then."""
    reads: RequestPlaces = field(init=False)
    uploads: RequestPlaces = field(init=False)
    strangers: RequestPlaces = field(init=False)
    live: RequestPlaces = field(init=False)

    def __post_init__(self) -> None:
        count = self.settings.max_requests
        fewer = max(1, count // 4)
        what = "requests at the same time (setting max_requests): try again"
        self.reads = RequestPlaces(count, _QUEUE * count, "CONSOLE_BUSY", what)
        # Each holds its images in memory.
        images = "requests with images at the same time, a quarter of max_requests: try again"
        self.uploads = RequestPlaces(fewer, _QUEUE * fewer, "CONSOLE_BUSY", images)
        strangers = "requests at the same time whose credential is not known yet: try again"
        self.strangers = RequestPlaces(fewer, _QUEUE * fewer, "CONSOLE_BUSY", strangers)
        self.live = RequestPlaces(
            self.settings.max_live, 0, "TOO_MANY_LIVE", "event streams (setting max_live)"
        )

    @asynccontextmanager
    async def entry(self, service: str, call: HttpCall) -> AsyncIterator[None]:
        """Hold one of the few places of strangers, if the credential is not known to a service.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED; no place was free in time.
        """
        if self.backend.known.has(service, call.authorization):
            yield
            return
        async with self.strangers.place(call.remaining):
            yield

    async def judge_before_upload(self, call: HttpCall) -> None:
        """Ask the inference service whether it accepts a credential, if that is not known yet.

        A body may take long to arrive: it must not do so in one of the few places of strangers.

        Raises:
            SightlineError: the service refuses the credential, or cannot be reached.
        """
        if not self.backend.known.has(INFERENCE, call.authorization):
            async with self.entry(INFERENCE, call):
                method = self.backend.inference.ListModels
                await self.backend.ask(INFERENCE, method, ListModelsRequest(), call)


def console_of(request: Request) -> Console:
    """Return the console that answers a request."""
    return cast("Console", request.app.state.console)


def call_of(request: Request) -> HttpCall:
    """Return what calls of the services take over from a request.

    Raises:
        SightlineError: UNAUTHENTICATED: a malformed credential; INVALID_ARGUMENT: the header
            Sightline-Timeout is no number of seconds.
    """
    headers = request.headers
    traceparent = headers.get("traceparent", "")
    trace = trace_id(traceparent)
    if trace:
        request.scope[FACTS]["trace_id"] = trace
    call = HttpCall(
        authorization_of(headers.get("authorization"), headers.get("cookie")),
        traceparent if trace else None,
        time.monotonic() + _timeout(request),
    )
    call.timings = request.scope[TIMINGS]
    return call


def _timeout(request: Request) -> float:
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return console_of(request).settings.deadline_seconds
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_TIMEOUT_SECONDS:
        raise invalid(
            "Sightline-Timeout",
            f"must be a number of seconds above 0 and up to {MAX_TIMEOUT_SECONDS:g}, got {text!r}",
        )
    return seconds


def _service_of(request: Request) -> str:
    return INFERENCE if request.url.path == "/models/loaded" else INGEST


async def _read_place(
    request: Request,
    console: Annotated[Console, Depends(console_of)],
    call: Annotated[HttpCall, Depends(call_of)],
) -> AsyncIterator[None]:
    begun = time.monotonic()
    async with (
        console.entry(_service_of(request), call),
        console.reads.place(call.remaining),
    ):
        call.spent("wait", begun)
        with console.metrics.in_flight.labels("reads").track_inprogress():
            yield


async def _upload_place(
    console: Annotated[Console, Depends(console_of)], call: Annotated[HttpCall, Depends(call_of)]
) -> AsyncIterator[None]:
    begun = time.monotonic()
    await console.judge_before_upload(call)
    async with console.uploads.place(call.remaining):
        call.spent("wait", begun)
        with console.metrics.in_flight.labels("uploads").track_inprogress():
            yield


Here = Annotated[Console, Depends(console_of)]
Calling = Annotated[HttpCall, Depends(call_of)]
READ = Depends(_read_place)
UPLOAD = Depends(_upload_place)
