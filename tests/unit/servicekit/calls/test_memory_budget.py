"""The memory budget of requests: reservations, waits, evictions, and complete releases."""

import asyncio
import time

import pytest

from servicekit.calls import memory_budget
from servicekit.calls.budget_bounds import BudgetBounds
from servicekit.calls.memory_budget import (
    MemoryBudget,
    MessageReservation,
    Reservation,
    keep_message,
    reserve,
)
from servicekit.errors import SightlineError
from tests.unit.servicekit.calls.memory_budgets import check_refused, pool_of
from tests.unit.servicekit.echo import until


async def give(request: bytes) -> bytes:
    return request


async def receive(reservation: Reservation, request: bytes = b"") -> bytes:
    return await reservation.receive(lambda: give(request), len)


async def stall(pool: MemoryBudget, flow: str = "slow") -> None:
    async with pool.reservation(flow) as reservation:
        await reservation.receive(asyncio.Event().wait, lambda _: 0)


async def hold_all(pool: MemoryBudget, done: asyncio.Event, flow: str = "big") -> None:
    """Hold a whole message until the event is set."""
    async with pool.reservation(flow) as reservation:
        await receive(reservation, bytes(pool.bounds.largest))
        await done.wait()


async def test_a_message_takes_the_most_until_it_is_there() -> None:
    pool, come = pool_of(100, 40), asyncio.Event()

    async def read() -> bytes:
        await come.wait()
        return b"seven.."

    async with pool.reservation("a") as reservation:
        assert pool.held == 0
        reading = asyncio.create_task(reservation.receive(read, len))
        await until(lambda: pool.held == 40)
        come.set()
        assert await reading == b"seven.."
        assert pool.held == reservation.held == 7
        reserve(30)
        assert pool.held == 37
        await receive(reservation, b"four")
        assert pool.held == 34, "the message before is dropped, what is held besides is not"
    assert pool.held == 0


async def test_a_message_that_is_passed_on_counts_until_it_is_given_back() -> None:
    pool = pool_of(100, 40, message_cost=5)
    async with pool.reservation("a") as reservation:
        await receive(reservation, b"seven..")
        lease = keep_message()
        assert pool.held == 12
        await receive(reservation, b"four")
        assert pool.held == 12 + 9
    assert pool.held == 12
    lease.release()
    lease.release()
    assert pool.held == 0


async def test_who_finds_no_room_gets_it_in_turn_flow_by_flow() -> None:
    pool, order, done = pool_of(40, 40, 5), list[str](), asyncio.Event()
    holding = asyncio.create_task(hold_all(pool, done))
    await until(lambda: pool.held == 40)

    async def wait(name: str) -> None:
        async with pool.reservation(name[0]) as reservation:
            await receive(reservation, bytes(40))
            order.append(name)

    calls = []
    for name in ("a1", "a2", "a3", "b1", "b2", "c1"):
        calls.append(asyncio.create_task(wait(name)))
        await until(lambda: pool.waiting == len(calls))
    done.set()
    await asyncio.gather(holding, *calls)
    assert order == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert pool.held == 0


async def read_on(pool: MemoryBudget, name: str, count: int, order: list[str]) -> None:
    """Read messages of 10 bytes, as a stream's handler does that passes them on."""
    async with pool.reservation(name) as reservation:
        for _ in range(count):
            await reservation.receive(lambda: give(bytes(10)), len, reads_on=True)
            order.append(name)
            keep_message().release()
        await reservation.receive(lambda: give(b""), len, reads_on=True)
        assert reservation.held == 0, "nothing is kept of a stream that has ended"


async def test_streams_take_turns_of_several_messages_while_others_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory_budget, "TURN_BYTES", 40)
    monkeypatch.setattr(memory_budget, "TURN_SECONDS", 60)
    assert await order_of_two(pool_of(150, 100, 5), 6) == "aaaabbbbaabb"


async def order_of_two(pool: MemoryBudget, count: int) -> str:
    """Make two streams wait for memory, and return the order of their messages."""
    order, done = list[str](), asyncio.Event()
    holding = asyncio.create_task(hold_all(pool, done))
    await until(lambda: pool.held == 100)
    streams = [asyncio.create_task(read_on(pool, name, count, order)) for name in "ab"]
    await until(lambda: pool.waiting == 2)
    done.set()
    await asyncio.gather(holding, *streams)
    assert pool.held == 0
    return "".join(order)


async def test_a_turn_is_over_when_it_has_lasted_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_budget, "TURN_SECONDS", 0.02)
    pool, order = MemoryBudget(BudgetBounds(150, 100, patience_seconds=30)), list[str]()

    async def slow() -> bytes:
        await asyncio.sleep(0.05)
        return b"x"

    async with pool.reservation("slow") as reservation:
        reading = asyncio.create_task(reservation.receive(slow, len, reads_on=True))
        await until(lambda: pool.held == 100)
        other = asyncio.create_task(read_on(pool, "b", 1, order))
        await reading
        await asyncio.wait_for(other, 1)
    assert order == ["b"]


async def test_a_turn_is_over_while_its_handler_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for the next message must not stay reserved while a handler writes the last one."""
    monkeypatch.setattr(memory_budget, "TURN_SECONDS", 0.02)
    pool, order = MemoryBudget(BudgetBounds(150, 100)), list[str]()
    done, written = asyncio.Event(), asyncio.Event()
    holding = asyncio.create_task(hold_all(pool, done))
    await until(lambda: pool.held == 100)
    busy = asyncio.create_task(handle_slowly(pool, written))
    await until(lambda: pool.waiting == 1)
    other = asyncio.create_task(read_on(pool, "b", 1, order))
    await until(lambda: pool.waiting == 2)
    done.set()
    await asyncio.wait_for(asyncio.gather(holding, other), 1)
    assert order == ["b"]
    assert not busy.done()
    assert pool.held == 10, "the message that is being written stays reserved"
    written.set()
    assert await busy == b"next"
    assert pool.held == 0


async def handle_slowly(pool: MemoryBudget, written: asyncio.Event) -> bytes:
    """Read a message of 10 bytes, write it until the event is set, and read the next one."""
    async with pool.reservation("busy") as reservation:
        await reservation.receive(lambda: give(bytes(10)), len, reads_on=True)
        await written.wait()
        return await reservation.receive(lambda: give(b"next"), len, reads_on=True)


async def test_a_turn_takes_no_more_than_there_is_room_for() -> None:
    # Beside the only reservation there is none for a message, so each is followed by the other's.
    assert await order_of_two(pool_of(100, 100, 5), 3) == "ababab"


async def test_nobody_waits_for_ever() -> None:
    pool, done = pool_of(100, 100), asyncio.Event()
    holding = asyncio.create_task(hold_all(pool, done))
    await until(lambda: pool.held == 100)
    async with pool.reservation("a") as reservation:
        with pytest.raises(SightlineError) as caught:
            await receive(reservation)
    check_refused(caught.value)
    assert pool.waiting == 0
    done.set()
    await holding
    assert pool.held == 0


async def test_a_sender_that_stalls_makes_room_while_others_wait() -> None:
    pool = pool_of(100, 100, 5)
    slow = asyncio.create_task(stall(pool))
    await until(lambda: pool.held == 100)
    async with pool.reservation("a") as reservation:
        assert await receive(reservation, b"x") == b"x"
    with pytest.raises(SightlineError) as caught:
        await slow
    check_refused(caught.value, "MESSAGE_STALLED")
    await until(lambda: pool.held == 0)


async def test_a_sender_that_stalls_is_ended_also_if_nobody_waits() -> None:
    pool = pool_of(100, 50, receive_seconds=0.05)
    with pytest.raises(SightlineError) as caught:
        await stall(pool)
    check_refused(caught.value, "MESSAGE_STALLED")
    assert "0.05 s for a message to arrive" in caught.value.message
    assert pool.held == 50, "gRPC has not let go of what has come of it"
    await until(lambda: pool.held == 0)


async def test_a_pause_of_this_process_is_no_fault_of_the_sender_s() -> None:
    pool, come = pool_of(100, 50, receive_seconds=0.3), asyncio.Event()

    async def read() -> bytes:
        await come.wait()
        return b"x"

    async with pool.reservation("a") as reservation:
        reading = asyncio.create_task(reservation.receive(read, len))
        await until(lambda: pool.held == 50)
        time.sleep(0.5)  # noqa: ASYNC251 - as SIGSTOP would
        for _ in range(3):  # timers that are due come before what has arrived
            await asyncio.sleep(0)
        come.set()
        assert await reading == b"x"


async def test_a_newcomer_finds_room_beside_a_flow_that_stalls_as_often_as_it_can() -> None:
    pool = pool_of(100, 10, 5)
    flood = [asyncio.create_task(stall(pool, "flood")) for _ in range(50)]
    await until(lambda: pool.waiting > 0)
    async with pool.reservation("a") as reservation:
        async with asyncio.timeout(10):
            await receive(reservation, b"x")
        assert pool.held > 50, "the flood holds what a suspect may"
    for each in flood:
        each.cancel()
    await asyncio.gather(*flood, return_exceptions=True)
    await until(lambda: pool.held == 0)


async def test_a_sender_within_the_time_harms_nobody_while_there_is_room() -> None:
    pool, come = pool_of(100, 50), asyncio.Event()

    async def slow() -> None:
        async with pool.reservation("slow") as reservation:
            await reservation.receive(come.wait, lambda _: 1)

    call = asyncio.create_task(slow())
    await asyncio.sleep(0.1)
    async with pool.reservation("a") as reservation:
        await receive(reservation)
        come.set()
        await call


async def test_one_flow_cannot_take_every_place_to_wait() -> None:
    pool, done = pool_of(100, 100, 30, waiting=16, window=1), asyncio.Event()
    holding = asyncio.create_task(hold_all(pool, done))
    await until(lambda: pool.held == 100)

    async def wait(flow: str) -> None:
        async with pool.reservation(flow) as reservation:
            await receive(reservation)

    flood = [asyncio.create_task(wait("flood")) for _ in range(17)]
    await until(flood[16].done)
    other = asyncio.create_task(wait("other"))
    await until(flood[15].done)
    for refused in flood[15:]:
        with pytest.raises(SightlineError) as caught:
            await refused
        check_refused(caught.value)
    assert pool.waiting == 16
    done.set()
    await asyncio.gather(holding, other, *flood[:15])
    assert (pool.held, pool.waiting) == (0, 0)


@pytest.mark.parametrize("granted", [False, True])
async def test_who_gives_up_takes_nothing_with_it(granted: bool) -> None:
    pool, done = pool_of(100, 100, 5), asyncio.Event()
    holding = asyncio.create_task(hold_all(pool, done))
    await until(lambda: pool.held == 100)
    waiting = asyncio.create_task(stall(pool, "a"))
    await until(lambda: pool.waiting == 1)
    if granted:
        done.set()
        await holding  # its turn has come, and it does not know it yet
    waiting.cancel()
    if not granted:
        done.set()
        await holding  # it has given up, and has not left yet
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(lambda: (pool.held, pool.waiting) == (0, 0))


async def test_a_call_that_is_cancelled_while_it_is_given_up_stays_cancelled() -> None:
    pool = pool_of(100, 100)
    budgets: list[Reservation] = []

    async def run() -> None:
        async with pool.reservation("a") as reservation:
            budgets.append(reservation)
            await reservation.receive(asyncio.Event().wait, lambda _: 0)

    call = asyncio.create_task(run())
    await until(lambda: pool.held == 100)
    budgets[0].give_up()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: pool.held == 0)


async def test_streams_are_capped_by_flow() -> None:
    pool = pool_of(100, 10, streams=2)
    async with pool.reservation("a"), pool.reservation("a"), pool.reservation("b"):
        with pytest.raises(SightlineError) as caught:
            await pool.reservation("a").__aenter__()
        check_refused(caught.value, "TOO_MANY_STREAMS")
    async with pool.reservation("a"), pool.reservation("a"):
        pass


async def test_more_than_there_is_room_for_cannot_be_held() -> None:
    pool = pool_of(100, 40)
    async with pool.reservation("a") as reservation:
        await receive(reservation, bytes(40))
        reserve(40)
        with pytest.raises(SightlineError) as caught:
            reserve(20)
        check_refused(caught.value)
    assert pool.held == 0


async def test_what_is_held_counts_to_the_flow() -> None:
    pool = pool_of(100, 10)
    async with pool.reservation("a"):
        reserve(70)
        with pytest.raises(SightlineError):
            reserve(20)
    async with pool.reservation("a"), pool.reservation("b"):
        reserve(20)


async def test_what_a_thread_holds_after_the_call_is_not_counted() -> None:
    pool = pool_of(100, 40)
    async with pool.reservation("a") as reservation:
        pass
    await asyncio.to_thread(reservation.reserve, 30)
    assert pool.held == 0


async def test_a_timeout_of_the_reader_s_own_stays_what_it_is() -> None:
    async def read() -> bytes:
        raise TimeoutError

    async with pool_of(100, 40).reservation("a") as reservation:
        with pytest.raises(TimeoutError):
            await reservation.receive(read, len)


async def test_a_message_larger_than_is_accepted_is_refused() -> None:
    async with pool_of(100, 40, accepted=3).reservation("a") as reservation:
        await receive(reservation, b"123")
        with pytest.raises(SightlineError) as caught:
            await receive(reservation, b"1234")
    assert caught.value.reason == "MESSAGE_TOO_LARGE"
    assert "at most 3 bytes (got 4)" in caught.value.message


def test_without_a_room_nothing_is_counted() -> None:
    reserve(1 << 60)
    keep_message().release()
    MessageReservation().release()


def test_there_must_be_room_for_one() -> None:
    with pytest.raises(ValueError, match="limit must be at least largest, 10"):
        BudgetBounds(9, 10)
    with pytest.raises(ValueError, match="limit must be at least largest, 10"):
        BudgetBounds(10, 10, message_cost=1)
