"""Threads that serve callers in turn."""

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future

import pytest

from inference_service.fair_threads import FairThreads


@pytest.fixture
def single() -> Iterator[FairThreads]:
    created = FairThreads(1, "test")
    yield created
    created.close()


def test_callers_are_served_in_turn_and_each_in_its_own_order(single: FairThreads) -> None:
    """Item 4: what waits before the queue is shared between callers as well."""
    began, go, done = threading.Event(), threading.Event(), list[str]()

    def wait() -> None:
        began.set()
        assert go.wait(10)

    def note(name: str) -> "Future[None]":
        return single.submit(name.partition(" ")[0], lambda: done.append(name))

    first = single.submit("flood", wait)
    assert began.wait(10)
    jobs = [note(f"flood {number}") for number in range(50)]
    jobs += [note(f"good {number}") for number in range(2)]
    go.set()
    for job in (first, *jobs):
        job.result(10)
    assert done[:5] == ["flood 0", "good 0", "flood 1", "good 1", "flood 2"]
    assert done[5:] == [f"flood {n}" for n in range(3, 50)]


def test_as_many_as_there_are_threads_work_at_a_time() -> None:
    threads, both = FairThreads(2, "test"), threading.Barrier(2)
    jobs = [threads.submit("one", lambda: both.wait(10)) for _ in range(2)]
    for job in jobs:
        job.result(10)
    threads.close()


def test_what_fails_fails_its_own_caller_only(single: FairThreads) -> None:
    bad = single.submit("one", lambda: 1 / 0)
    good = single.submit("one", lambda: 7)
    with pytest.raises(ZeroDivisionError):
        bad.result(10)
    assert good.result(10) == 7


def test_what_is_cancelled_is_not_done(single: FairThreads) -> None:
    go, done = threading.Event(), list[int]()
    first = single.submit("one", lambda: go.wait(10))
    gone = single.submit("one", lambda: done.append(1))
    assert gone.cancel()
    go.set()
    first.result(10)
    with pytest.raises(CancelledError):
        gone.result(10)
    assert single.submit("one", lambda: list(done)).result(10) == []


def test_nothing_is_taken_once_they_have_ended() -> None:
    threads = FairThreads(1, "test")
    left = threads.submit("one", lambda: 7)
    threads.close()
    assert left.result(0) == 7
    with pytest.raises(RuntimeError):
        threads.submit("one", lambda: 8)
