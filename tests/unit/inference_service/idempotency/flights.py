"""A single flight with a clock of the test's, and calls to it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import pytest

from inference_service.idempotency.single_flight import CallResponse, SingleFlight
from servicekit.errors import SightlineError
from tests.unit.inference_service.idempotency.work import CountedWork, HeldStore

KEY, PRINT, OTHER_PRINT = b"k" * 32, b"f" * 32, b"g" * 32
KEEP = 1000.0
LATE = SightlineError(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "too late")


class StoreClock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> StoreClock:
    return StoreClock()


@pytest.fixture
def store() -> HeldStore:
    return HeldStore()


@pytest.fixture
def events() -> "Counter[str]":
    return Counter()


@pytest.fixture
async def single_flight(
    store: HeldStore, clock: StoreClock, events: "Counter[str]"
) -> AsyncIterator[SingleFlight]:
    created = SingleFlight(store, KEEP, clock, on_event=lambda event: events.update([event]))
    yield created
    store.let_go.set()
    await created.close()


def ask(
    single_flight: SingleFlight,
    work: Callable[[], Awaitable[bytes]],
    fingerprint: bytes = PRINT,
    seconds: float = 5.0,
) -> Awaitable[CallResponse]:
    return single_flight.answer(KEY, fingerprint, seconds, work)


def begin(
    single_flight: SingleFlight, work: Callable[[], Awaitable[bytes]], seconds: float = 5.0
) -> "asyncio.Task[CallResponse]":
    return asyncio.ensure_future(ask(single_flight, work, seconds=seconds))


async def begun(
    single_flight: SingleFlight, work: CountedWork, seconds: float = 5.0
) -> "asyncio.Task[CallResponse]":
    """Return a call whose work has started."""
    call = begin(single_flight, work, seconds)
    await work.started.wait()
    return call


async def refusal(call: Awaitable[CallResponse]) -> SightlineError:
    with pytest.raises(SightlineError) as caught:
        await call
    return caught.value
