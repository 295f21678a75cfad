"""Live events: what is committed, one stream of the ingest service for each page.

The id of an event is the resume token of the log. A browser sends the last one that it saw as
`Last-Event-ID` when it connects again, to this console or to another. While the ingest service is
away, the stream stays open and continues after the last event: a browser that gets an error
instead never connects again.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import orjson
from sightline.ingest.v1.ingest_pb2 import PredictionFilter
from sightline.ingest.v1.reads_pb2 import WatchPredictionsRequest, WatchPredictionsResponse

from console_service.backend import INGEST, HttpCall
from console_service.context import Console
from console_service.errors import body_of
from servicekit.errors import SightlineError
from servicekit.plain import plain

logger = logging.getLogger(__name__)
RETRY_MILLISECONDS = 1000
"""Time after which a browser connects again, ms."""
FIRST_SECONDS = 1.0
"""Time to wait for a refusal before the answer begins, s; later ones are events."""
BEAT_SECONDS = 15.0
"""Time without an event after which a comment is sent, s: proxies cut connections without traffic,
and a client that has vanished is noticed by nothing else."""
END = grpc.aio.EOF  # type: ignore[attr-defined] # the published types lack it
_BACKOFF = (0.2, 0.5, 1.0, 2.0)


class LiveStream:
    """The events of one page.

    Args:
        console: the console; when it drains, the stream ends.
        call: the request; its deadline does not end the stream.
        wanted: the predictions to send.
        token: resume token of the last event that the page has seen; empty: from now on.
        rate: maximum number of predictions a second.
    """

    def __init__(
        self, console: Console, call: HttpCall, wanted: PredictionFilter, token: str, rate: int
    ) -> None:
        self._console = console
        self._call = call
        self._request = WatchPredictionsRequest(
            filter=wanted, resume_token=token, max_per_second=rate
        )
        self._running: Any = None
        self._reading: asyncio.Future[Any] | None = None

    async def open(self) -> None:
        """Begin to follow the log.

        Raises:
            SightlineError: the service refuses, and will refuse the next time.
        """
        await self._console.backend.prove(INGEST, self._call)
        reading = self._follow()
        await asyncio.wait({reading}, timeout=FIRST_SECONDS)
        if reading.done() and isinstance(refusal := reading.exception(), grpc.aio.AioRpcError):
            error = self._console.backend.explained(INGEST, refusal, self._call)
            if not _may_pass(error):
                raise error
        elif reading.done():
            self._console.backend.known.accept(INGEST, self._call.authorization)

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the events until the page goes, the console drains or the service refuses."""
        ending = asyncio.ensure_future(self._console.draining.wait())
        failures = 0
        yield f"retry: {RETRY_MILLISECONDS}\n\n".encode()
        try:
            while not ending.done():
                reading = self._reading or self._follow()
                await asyncio.wait(
                    {reading, ending}, timeout=BEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if not reading.done():
                    if not ending.done():
                        yield b":\n\n"
                    continue
                try:
                    message = reading.result()
                except grpc.aio.AioRpcError as refusal:
                    error = self._console.backend.explained(INGEST, refusal, self._call)
                    if not _may_pass(error):
                        yield _event("failed", body_of(error))
                        return
                    yield _event("waiting", body_of(error))
                    message = END
                if message is END:
                    self._running, self._reading = None, None
                    delay = _BACKOFF[min(failures, len(_BACKOFF) - 1)]
                    failures += 1
                    await asyncio.wait({ending}, timeout=delay)
                    continue
                failures = 0
                self._reading = asyncio.ensure_future(self._running.read())
                yield self._sent(message)
        finally:
            ending.cancel()
            self.close()

    def close(self) -> None:
        """Cancel the call of the service."""
        if self._reading is not None:
            self._reading.cancel()
        if self._running is not None:
            self._running.cancel()

    def _follow(self) -> "asyncio.Future[Any]":
        """Call the service, from after the last event on, and read."""
        watch = self._console.backend.ingest.WatchPredictions
        self._running = watch(self._request, metadata=self._call.metadata)
        self._reading = asyncio.ensure_future(self._running.read())
        return self._reading

    def _sent(self, message: WatchPredictionsResponse) -> bytes:
        self._request.resume_token = message.resume_token
        if message.left_out:
            self._console.metrics.left_out.inc(message.left_out)
        return _event("predictions", plain(message), message.resume_token)


def _may_pass(error: SightlineError) -> bool:
    """Return True if the same call may succeed later, as after a restart of the service."""
    return error.retryable or error.code is grpc.StatusCode.DEADLINE_EXCEEDED


def _event(kind: str, data: object, token: str = "") -> bytes:
    head = f"id: {token}\nevent: {kind}\n" if token else f"event: {kind}\n"
    return head.encode() + b"data: " + orjson.dumps(data) + b"\n\n"
