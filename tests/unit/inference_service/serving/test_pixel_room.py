"""Item 3: room for decoded pictures, with real threads."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from inference_service.serving.pixel_room import PixelRoom
from servicekit.calls import in_flight
from servicekit.errors import SightlineError

MOST = 1600
SMALL = MOST // 16


@contextmanager
def holding(room: PixelRoom, size: int) -> Iterator[threading.Event]:
    """Another thread holds room, once it gets it; yields what says that it has."""
    got, go = threading.Event(), threading.Event()

    def hold() -> None:
        with room.for_call()(size):
            got.set()
            assert go.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield got
    finally:
        go.set()
        thread.join(10)


def test_pixels_are_held_within_the_block_only() -> None:
    room = PixelRoom(MOST)
    with room.for_call()(1000):
        assert room.held == 1000
        with room.for_call()(SMALL):
            assert room.held == 1000 + SMALL
    assert room.held == 0


def test_a_picture_waits_for_the_one_before_it() -> None:
    room = PixelRoom(MOST)
    with room.for_call()(1000):
        waiting = holding(room, 1000)
        second = waiting.__enter__()
        assert not second.wait(0.1)
    assert second.wait(10)
    waiting.__exit__(None, None, None)
    assert room.held == 0


def test_one_picture_is_decoded_however_large_it_is() -> None:
    room = PixelRoom(MOST)
    with room.for_call()(10 * MOST):
        assert room.held == 10 * MOST


def test_a_small_picture_does_not_wait_for_a_large_one() -> None:
    room = PixelRoom(MOST)
    with room.for_call()(10 * MOST), room.for_call()(SMALL):
        assert room.held == 10 * MOST + SMALL


def test_who_finds_no_room_for_long_may_try_again() -> None:
    room = PixelRoom(MOST, patience=0.05)
    with room.for_call()(1000), pytest.raises(SightlineError) as caught, room.for_call()(1000):
        pass
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.reason == "TOO_MUCH_IN_FLIGHT"
    assert caught.value.retry_after
    assert room.held == 0
    with room.for_call()(1000):  # it does not wait behind the one that gave up
        pass


def test_requests_in_flight_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [1000]
    monkeypatch.setattr(in_flight, "counter", lambda: lambda: requests[0])
    room = PixelRoom(MOST)
    with room.for_call()(300), holding(room, 400) as second:
        assert not second.wait(0.1)
        requests[0] = 0
        assert second.wait(10)


def test_large_pictures_are_not_passed_for_ever() -> None:
    room = PixelRoom(MOST)
    order: list[int] = []

    def hold(size: int) -> None:
        with room.for_call()(size):
            order.append(size)

    with room.for_call()(1000):
        threads = []
        for size in (1500, 500):
            threads.append(threading.Thread(target=hold, args=(size,)))
            threads[-1].start()
            end = time.monotonic() + 10
            while len(room._waiting) < len(threads):
                assert time.monotonic() < end
                time.sleep(0.001)
    for thread in threads:
        thread.join(10)
    assert order == [1500, 500]


def test_a_caller_that_holds_nothing_passes_one_that_holds_some() -> None:
    room = PixelRoom(MOST)
    with room.for_call("flood")(1000):
        waiting = threading.Thread(target=_hold, args=(room, "flood", 1000))
        waiting.start()
        end = time.monotonic() + 10
        while not room._waiting:
            assert time.monotonic() < end
            time.sleep(0.001)
        with room.for_call("good")(500):
            assert room.held == 1500
    waiting.join(10)
    assert room.held == 0


def _hold(room: PixelRoom, flow: str, size: int) -> None:
    with room.for_call(flow)(size):
        pass
