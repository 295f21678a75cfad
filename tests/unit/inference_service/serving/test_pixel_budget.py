"""Item 3: room for decoded pictures, with real threads."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from inference_service.serving.pixel_budget import PixelBudget
from servicekit.calls import memory_budget
from servicekit.errors import SightlineError

LIMIT = 1600
SMALL = LIMIT // 16


@contextmanager
def reserving(budget: PixelBudget, size: int) -> Iterator[threading.Event]:
    """Another thread holds room, once it gets it; yields what says that it has."""
    got, go = threading.Event(), threading.Event()

    def reserve() -> None:
        with budget.for_call()(size):
            got.set()
            assert go.wait(10)

    thread = threading.Thread(target=reserve)
    thread.start()
    try:
        yield got
    finally:
        go.set()
        thread.join(10)


def test_pixels_are_held_within_the_block_only() -> None:
    budget = PixelBudget(LIMIT)
    with budget.for_call()(1000):
        assert budget.reserved == 1000
        with budget.for_call()(SMALL):
            assert budget.reserved == 1000 + SMALL
    assert budget.reserved == 0


def test_an_image_waits_for_the_one_before_it() -> None:
    budget = PixelBudget(LIMIT)
    with budget.for_call()(1000):
        waiting = reserving(budget, 1000)
        second = waiting.__enter__()
        assert not second.wait(0.1)
    assert second.wait(10)
    waiting.__exit__(None, None, None)
    assert budget.reserved == 0


def test_one_image_is_decoded_however_large_it_is() -> None:
    budget = PixelBudget(LIMIT)
    with budget.for_call()(10 * LIMIT):
        assert budget.reserved == 10 * LIMIT


def test_a_small_image_does_not_wait_for_a_large_one() -> None:
    budget = PixelBudget(LIMIT)
    with budget.for_call()(10 * LIMIT), budget.for_call()(SMALL):
        assert budget.reserved == 10 * LIMIT + SMALL


def test_who_finds_no_room_for_long_may_try_again() -> None:
    budget = PixelBudget(LIMIT, patience=0.05)
    with budget.for_call()(1000), pytest.raises(SightlineError) as caught, budget.for_call()(1000):
        pass
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.reason == "TOO_MUCH_IN_FLIGHT"
    assert caught.value.retry_after
    assert budget.reserved == 0
    with budget.for_call()(1000):  # it does not wait behind the one that gave up
        pass


def test_requests_in_flight_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [1000]
    monkeypatch.setattr(memory_budget, "counter", lambda: lambda: requests[0])
    budget = PixelBudget(LIMIT)
    with budget.for_call()(300), reserving(budget, 400) as second:
        assert not second.wait(0.1)
        requests[0] = 0
        assert second.wait(10)


def test_large_images_are_not_passed_for_ever() -> None:
    budget = PixelBudget(LIMIT)
    order: list[int] = []

    def reserve(size: int) -> None:
        with budget.for_call()(size):
            order.append(size)

    with budget.for_call()(1000):
        threads = []
        for size in (1500, 500):
            threads.append(threading.Thread(target=reserve, args=(size,)))
            threads[-1].start()
            end = time.monotonic() + 10
            while len(budget._waiting) < len(threads):
                assert time.monotonic() < end
                time.sleep(0.001)
    for thread in threads:
        thread.join(10)
    assert order == [1500, 500]


def test_a_caller_that_holds_nothing_passes_one_that_holds_some() -> None:
    budget = PixelBudget(LIMIT)
    with budget.for_call("flood")(1000):
        waiting = threading.Thread(target=_hold, args=(budget, "flood", 1000))
        waiting.start()
        end = time.monotonic() + 10
        while not budget._waiting:
            assert time.monotonic() < end
            time.sleep(0.001)
        with budget.for_call("good")(500):
            assert budget.reserved == 1500
    waiting.join(10)
    assert budget.reserved == 0


def _hold(budget: PixelBudget, flow: str, size: int) -> None:
    with budget.for_call(flow)(size):
        pass
