"""A loop that is held up shows."""

import asyncio
import time

from prometheus_client import CollectorRegistry

from servicekit.telemetry.loop_lag import loop_lag_measured

NAME = "sightline_event_loop_lag_seconds"


def at_most(registry: CollectorRegistry, seconds: str) -> float:
    return registry.get_sample_value(f"{NAME}_bucket", {"le": seconds}) or 0.0


async def test_what_blocks_the_loop_is_seen() -> None:
    registry = CollectorRegistry()
    async with loop_lag_measured(registry):
        await asyncio.sleep(0.05)
        before = at_most(registry, "+Inf") - at_most(registry, "0.25")
        time.sleep(0.3)  # noqa: ASYNC251 - what must not happen is what is tested
        await asyncio.sleep(0.05)
        assert at_most(registry, "+Inf") - at_most(registry, "0.25") == before + 1
    ended = at_most(registry, "+Inf")
    await asyncio.sleep(0.05)
    assert at_most(registry, "+Inf") == ended
