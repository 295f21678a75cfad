"""The route of live events."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from starlette.responses import Response, StreamingResponse

from console_service.backend import INGEST
from console_service.context import Calling, Here
from console_service.live import LiveStream
from console_service.query import FilterParameters
from servicekit.errors import invalid

MAX_TOKEN_BYTES = 4096


router = APIRouter(tags=["log"])


class LiveParameters(FilterParameters):
    """Parameters of `/live`."""

    resume_token: str = Field(
        "",
        description="id of the last event that was seen; the header Last-Event-ID takes precedence",
    )
    max_per_second: int = Field(
        50, ge=1, le=50, description="predictions a second; the rest is counted in left_out"
    )


async def _opened(
    request: Request, here: Here, call: Calling, query: Annotated[LiveParameters, Query()]
) -> AsyncIterator[LiveStream]:
    """Yield a stream that the service has accepted, and hold a place for it."""
    token = request.headers.get("last-event-id") or query.resume_token
    if len(token) > MAX_TOKEN_BYTES or not token.isascii():
        raise invalid("Last-Event-ID", f"must be an id of an event, got {len(token)} characters")
    stream = LiveStream(here, call, query.filter(), token, query.max_per_second)
    try:
        async with AsyncExitStack() as held:
            async with here.entry(INGEST, call):
                # Before the call: the service has few places for followers, too.
                await held.enter_async_context(here.live.place(0.0))
                await stream.open()
            with here.metrics.live.track_inprogress():
                yield stream
    finally:
        stream.close()


@router.get(
    "/live",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def live(stream: Annotated[LiveStream, Depends(_opened)]) -> Response:
    """Follow the log by server-sent events, without a hole and without a double.

    Events: `predictions` with what was committed and `left_out`, the number of predictions beyond
    `max_per_second`; `waiting` with an error while the ingest service is away; `failed` with the
    error that ends the stream.
    """
    return StreamingResponse(
        stream.events(),
        media_type="text/event-stream",
        # nginx would hold events back.
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )
