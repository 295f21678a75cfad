"""The lag of the event loop, which delays every call."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from prometheus_client import CollectorRegistry, Histogram

_PERIOD_SECONDS = 0.01
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


@contextlib.asynccontextmanager
async def loop_lag_measured(registry: CollectorRegistry) -> AsyncIterator[None]:
    """Measure the delay of a timer of 10 ms repeatedly, until the context ends.

    Metric: `sightline_event_loop_lag_seconds`, a histogram.
    """
    lag = Histogram(
        "sightline_event_loop_lag_seconds",
        "How late the event loop served a timer, s",
        buckets=_BUCKETS,
        registry=registry,
    )

    async def measure() -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _PERIOD_SECONDS
            await asyncio.sleep(_PERIOD_SECONDS)
            lag.observe(max(loop.time() - due, 0.0))

    measuring = asyncio.create_task(measure())
    try:
        yield
    finally:
        measuring.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await measuring
