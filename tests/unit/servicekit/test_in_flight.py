"""The room for requests: who gets in, who waits, and that everything is given back."""

import asyncio

import grpc
import pytest

from servicekit import in_flight
from servicekit.errors import SightlineError, from_rpc_error
from servicekit.in_flight import BytesInFlight, hold
from servicekit.interceptors import GuardInterceptor
from servicekit.status import report_errors
from tests.unit.servicekit.echo import ECHO, KINDS, Context, call, serving


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_flight, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(in_flight, "SLOW_SECONDS", 0.0)


async def give(request: bytes) -> bytes:
    return request


async def until_waiting(rooms: BytesInFlight, count: int) -> None:
    async with asyncio.timeout(5):
        while len(rooms._waiting) < count:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)


def check_refused(error: SightlineError) -> None:
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.reason == "TOO_MUCH_IN_FLIGHT"
    assert error.retry_after
    assert error.quotas[0].description == "100 bytes of requests in flight"


async def test_a_request_takes_the_most_until_it_is_there() -> None:
    rooms = BytesInFlight(100, 40)
    async with rooms.room() as room:
        assert rooms.held == 40
        assert await room.receive(lambda: give(b"seven.."), len) == b"seven.."
        assert rooms.held == 7
        hold(50)
        assert rooms.held == 57
    assert rooms.held == 0


async def test_who_finds_no_room_gets_it_in_turn() -> None:
    rooms, order = BytesInFlight(100, 40), list[int]()

    async def call(number: int, go: asyncio.Event) -> None:
        async with rooms.room():
            order.append(number)
            await go.wait()

    events = [asyncio.Event() for _ in range(4)]
    calls = [asyncio.create_task(call(n, event)) for n, event in enumerate(events)]
    await until_waiting(rooms, 2)
    assert order == [0, 1]
    events[1].set()
    await calls[1]
    await asyncio.sleep(0)
    assert order == [0, 1, 2]
    for event in events:
        event.set()
    await asyncio.gather(*calls)
    assert order == [0, 1, 2, 3]
    assert rooms.held == 0


async def test_nobody_overtakes_those_who_wait() -> None:
    rooms = BytesInFlight(100, 100)
    async with rooms.room():
        first = asyncio.create_task(rooms.enter())
        await until_waiting(rooms, 1)
        second = asyncio.create_task(rooms.enter())
        await until_waiting(rooms, 2)
    await first
    assert not second.done()
    rooms.give(100)
    await second
    rooms.give(100)
    assert rooms.held == 0


async def test_nobody_waits_for_ever() -> None:
    rooms = BytesInFlight(100, 100)
    async with rooms.room() as room:
        await room.receive(lambda: give(bytes(100)), len)
        with pytest.raises(SightlineError) as caught:
            await rooms.room().__aenter__()
        check_refused(caught.value)
        assert not rooms._waiting
    assert rooms.held == 0


async def test_a_sender_that_dawdles_makes_room() -> None:
    rooms = BytesInFlight(100, 100)

    async def dawdle() -> None:
        async with rooms.room() as room:
            await room.receive(asyncio.Event().wait, lambda _: 0)

    slow = asyncio.create_task(dawdle())
    await asyncio.sleep(0)
    with pytest.raises(SightlineError):
        await rooms.room().__aenter__()
    with pytest.raises(SightlineError) as caught:
        await slow
    check_refused(caught.value)
    async with rooms.room():
        pass
    assert rooms.held == 0


async def test_many_may_be_told_no_because_of_one_who_dawdles() -> None:
    rooms = BytesInFlight(100, 100)
    async with rooms.room() as room:
        slow = asyncio.create_task(room.receive(asyncio.Event().wait, lambda _: 0))
        await asyncio.sleep(0)
        while not slow.done():  # somebody is told so in every state that the slow one can be in
            rooms._evict_slow()
            await asyncio.sleep(0)
        with pytest.raises(SightlineError) as caught:
            await slow
        check_refused(caught.value)


async def test_a_sender_that_dawdles_harms_nobody_while_there_is_room() -> None:
    rooms, come = BytesInFlight(100, 50), asyncio.Event()

    async def slow() -> None:
        async with rooms.room() as room:
            await room.receive(come.wait, lambda _: 1)

    call = asyncio.create_task(slow())
    await asyncio.sleep(0.1)
    async with rooms.room():
        come.set()
        await call


async def test_too_many_who_wait_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_flight, "PATIENCE_SECONDS", 30)
    monkeypatch.setattr(in_flight, "MAX_WAITING", 1)
    rooms = BytesInFlight(100, 100)
    async with rooms.room():
        waiting = asyncio.create_task(rooms.enter())
        await until_waiting(rooms, 1)
        with pytest.raises(SightlineError) as caught:
            await rooms.room().__aenter__()
        check_refused(caught.value)
        waiting.cancel()


@pytest.mark.parametrize("granted", [False, True])
async def test_who_gives_up_takes_nothing_with_it(granted: bool) -> None:
    rooms = BytesInFlight(100, 100)
    async with rooms.room():
        waiting = asyncio.create_task(rooms.enter())
        await until_waiting(rooms, 1)
        if not granted:
            waiting.cancel()
    if granted:
        waiting.cancel()  # its turn has come, and it does not know it yet
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert rooms.held == 0
    assert not rooms._waiting


async def test_more_than_there_is_room_for_cannot_be_held() -> None:
    rooms = BytesInFlight(100, 40)
    async with rooms.room() as room:
        await room.receive(lambda: give(bytes(40)), len)
        hold(60)
        with pytest.raises(SightlineError) as caught:
            hold(1)
        check_refused(caught.value)
    assert rooms.held == 0


async def test_what_a_thread_holds_after_the_call_is_not_counted() -> None:
    rooms = BytesInFlight(100, 40)
    async with rooms.room() as room:
        pass
    await asyncio.to_thread(room.hold, 30)
    assert rooms.held == 0


async def test_a_timeout_of_the_reader_s_own_stays_what_it_is() -> None:
    async def read() -> bytes:
        raise TimeoutError

    async with BytesInFlight(100, 40).room() as room:
        with pytest.raises(TimeoutError):
            await room.receive(read, len)


def test_without_a_room_nothing_is_counted() -> None:
    hold(1 << 60)


def test_there_must_be_room_for_one() -> None:
    with pytest.raises(ValueError, match="most must be at least largest, 10"):
        BytesInFlight(9, 10)


async def nothing(_context: Context) -> None:
    pass


@pytest.mark.parametrize("kind", KINDS)
async def test_requests_of_every_kind_reach_their_handlers(kind: str) -> None:
    rooms, held = BytesInFlight(1000, 100), set[int]()

    async def note(_context: Context) -> None:
        held.add(rooms.held)

    async with (
        serving(note, [GuardInterceptor([ECHO], [report_errors], None, rooms)]) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        assert b"".join(await call(channel, kind, (b"abc",))).startswith(b"abc")
    # Requests of a stream are the handler's own affair.
    assert held == {0 if kind.startswith("Stream") else 3}
    assert rooms.held == 0


async def test_methods_that_are_unbounded_wait_for_no_room() -> None:
    rooms = BytesInFlight(100, 100)
    interceptor = GuardInterceptor([ECHO], [report_errors], None, rooms, [f"/{ECHO}/UnaryUnary"])
    async with (
        rooms.room(),
        serving(nothing, [interceptor]) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        assert await call(channel, "UnaryUnary", (b"a",)) == [b"a"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, "UnaryStream", (b"a",))
        check_refused(from_rpc_error(caught.value))


async def test_a_request_that_does_not_come() -> None:
    interceptor = GuardInterceptor([ECHO], [report_errors], None, BytesInFlight(100, 100))
    async with (
        serving(nothing, [interceptor]) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        method = channel.stream_unary(f"/{ECHO}/UnaryUnary", None, None)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(iter(()))
    error = from_rpc_error(caught.value)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MISSING")
