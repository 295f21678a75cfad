"""The memory budget around the handlers of calls."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from servicekit.calls import memory_budget
from servicekit.calls.budget_bounds import BudgetBounds
from servicekit.calls.budgets import SMALL_BYTES, MemoryBudgets
from servicekit.calls.interceptors import BudgetFor, GuardInterceptor
from servicekit.calls.memory_budget import (
    MemoryBudget,
)
from servicekit.calls.status import report_errors
from servicekit.errors import from_rpc_error
from tests.unit.servicekit.calls.memory_budgets import check_refused, nothing, pool_of
from tests.unit.servicekit.echo import ECHO, KINDS, Context, call, serving, until


def guarded(pool: MemoryBudget) -> GuardInterceptor:
    return GuardInterceptor([ECHO], [report_errors], None, lambda _: pool)


@pytest.mark.parametrize("kind", KINDS)
async def test_requests_of_every_kind_reach_their_handlers(kind: str) -> None:
    pool, held = pool_of(1000, 100), set[int]()

    async def note(_context: Context) -> None:
        held.add(pool.held)

    async with (
        serving(note, [guarded(pool)]) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        assert b"".join(await call(channel, kind, (b"abc",))).startswith(b"abc")
    # A stream that has ended holds nothing any more.
    assert held == {0 if kind == "StreamUnary" else 3}
    assert pool.held == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_request_that_never_comes_is_ended(kind: str) -> None:
    pool = pool_of(100, 100, receive_seconds=0.05)
    async with (
        serving(nothing, [guarded(pool)]) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        never = channel.stream_unary(f"/{ECHO}/{kind}", None, None)(endless())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await never
    check_refused(from_rpc_error(caught.value), "MESSAGE_STALLED")
    await until(lambda: pool.held == 0)


async def endless() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


class Tracked(bytes):
    """A message that says when it is gone."""

    alive = 0

    def __new__(cls, data: bytes) -> "Tracked":
        cls.alive += 1
        return super().__new__(cls, data)

    def __del__(self) -> None:
        type(self).alive -= 1


class Sender:
    """The context of a call whose messages come at once; counts those that are still there."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.alive: list[int] = []

    def peer(self) -> str:
        return "test"

    async def read(self) -> object:
        self.alive.append(Tracked.alive)
        self.left -= 1
        return grpc.aio.EOF if self.left < 0 else Tracked(b"message")  # type: ignore[attr-defined]


async def test_nothing_keeps_a_message_while_the_next_is_waited_for() -> None:
    async def handle(requests: AsyncIterator[bytes], _context: Context) -> bytes:
        async for request in requests:
            assert Tracked.alive == 1
            del request
        return b""

    handler = grpc.stream_unary_rpc_method_handler(handle, lambda data: data)
    interceptor = GuardInterceptor([ECHO], [], lambda *_: None, lambda _: pool_of(100, 10))
    guarded = interceptor._guard(handler, f"/{ECHO}/StreamUnary")
    function: Any = guarded.stream_unary
    sender = Sender(3)
    await function(None, sender)
    assert sender.alive == [0, 0, 0, 0]


LARGE, SMALL = f"/{ECHO}/UnaryUnary", f"/{ECHO}/UnaryStream"


def two_pools() -> MemoryBudgets:
    return MemoryBudgets(
        BudgetBounds(16 * 1024 * 1024, 1024 * 1024, patience_seconds=0.05), [LARGE]
    )


async def test_what_only_asks_never_waits_behind_uploads() -> None:
    budgets = two_pools()
    budget_for: BudgetFor = budgets.of
    interceptor = GuardInterceptor([ECHO], [report_errors], None, budget_for)
    pool = budgets.for_large
    for flow in ("a", "b", "c", "d", "e", "f", "g", "h"):  # as full as it can be
        while pool.reserve(flow, pool.largest_bytes):
            pass
    async with (
        serving(nothing, [interceptor]) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        assert await call(channel, "UnaryStream", (b"a",)) == [b"a", b"a"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, "UnaryUnary", (b"a",))
        check_refused(from_rpc_error(caught.value))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, "UnaryStream", (bytes(SMALL_BYTES + 1),))
    error = from_rpc_error(caught.value)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_TOO_LARGE")
    assert f"must be at most {SMALL_BYTES} bytes (got {SMALL_BYTES + 1})" in error.message


async def test_health_and_reflection_are_bounded_as_well() -> None:
    budgets = MemoryBudgets(BudgetBounds(1000, 100, receive_seconds=0.05), ())
    interceptor = GuardInterceptor(["another.Service"], [], None, budgets.of)
    async with (
        serving(nothing, [interceptor]) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        assert await call(channel, "UnaryUnary", (b"a",)) == [b"a"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.stream_unary(LARGE, None, None)(endless())
    check_refused(from_rpc_error(caught.value), "MESSAGE_STALLED")


@pytest.mark.parametrize(
    ("most", "largest", "large", "small"),
    [(512, 16, 448, 64), (64, 16, 43, 21), (112, 8, 80, 32), (16, 16, 16, 16)],
)
def test_what_only_asks_has_four_rooms_if_they_fit(
    most: int, largest: int, large: int, small: int
) -> None:
    budgets = MemoryBudgets(BudgetBounds(most, largest), ["/x/Y"])
    assert budgets.of("/x/Y") is budgets.for_large
    assert budgets.of("/x/Z") is budgets.for_small
    assert (budgets.for_large.bounds.limit, budgets.for_small.bounds.limit) == (large, small)


async def test_a_request_that_does_not_come() -> None:
    async with (
        serving(nothing, [guarded(pool_of(100, 100))]) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        method = channel.stream_unary(f"/{ECHO}/UnaryUnary", None, None)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(iter(()))
    error = from_rpc_error(caught.value)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MISSING")


async def test_what_all_calls_hold_is_told_to_other_threads() -> None:
    """Item 3: decoded pictures count together with the requests."""
    pool = pool_of(1000, 100)
    assert memory_budget.counter()() == 0
    async with pool.reservation("one"):
        count = memory_budget.counter()
        memory_budget.reserve(300)
        assert await asyncio.to_thread(count) == pool.held == 300
