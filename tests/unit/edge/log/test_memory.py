import threading
from collections import deque
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import ClosedError
from edge.log.memory import Logged, Memory, OnFull
from edge.records import Prediction
from edge.spool.entries import Dropped, GapReason
from tests.unit.edge.samples import eventually


def memory(on_full: OnFull, most: int = 3, most_bytes: int = 1 << 30) -> Memory:
    return Memory(on_full, most, most_bytes, on_first=lambda: None, on_half=lambda: None)


def image(number: int) -> Prediction:
    return Prediction(str(number), "m")


def seen(taken: Sequence[Logged | Dropped]) -> list[str | Dropped]:
    return [entry if isinstance(entry, Dropped) else entry[0].image_id for entry in taken]


def test_what_is_put_is_taken_once_and_in_order() -> None:
    queue = memory("block")
    assert [queue.enter(image(number)) for number in (1, 2, 3)] == [1, 2, 3]
    assert len(queue) == 3
    assert seen(queue.take()) == ["1", "2", "3"]
    queue.put(image(4))
    assert queue.enter(image(5)) == 5
    assert (len(queue), queue.logged) == (2, 5)
    assert seen(queue.take()) == ["4", "5"]
    assert queue.take() == []
    assert queue.enter(image(6)) == 6


def test_what_is_put_without_the_lock_counts_like_the_rest() -> None:
    queue = memory("block", most=100)
    queue.put(image(0))
    queue.take()
    with queue._room:  # whoever needs the lock now waits for ever
        for number in range(1, 11):
            queue.put(image(number))
    assert (len(queue), queue.logged) == (10, 11)
    assert queue.enter(image(11)) == 12
    assert seen(queue.take()) == [str(number) for number in range(1, 12)]
    assert (len(queue), queue.logged) == (0, 12)


def test_drop_oldest() -> None:
    queue = memory("drop_oldest")
    for number in range(1, 7):
        queue.put(image(number))
    assert seen(queue.take()) == [Dropped(3, GapReason.DROPPED_OLDEST), "4", "5", "6"]
    assert queue.logged == 6


def test_drop_newest() -> None:
    queue = memory("drop_newest")
    for number in range(1, 7):
        queue.put(image(number))
    assert seen(queue.take()) == ["1", "2", "3", Dropped(3, GapReason.DROPPED_NEWEST)]
    assert queue.logged == 6


def test_bytes_bound_memory_too() -> None:
    queue = memory("drop_oldest", 100, 3 * image(1).size)
    for number in range(1, 6):
        queue.put(image(number))
    assert seen(queue.take()) == [Dropped(2, GapReason.DROPPED_OLDEST), "3", "4", "5"]


def test_a_big_one_drops_as_many_as_it_needs() -> None:
    queue = memory("drop_oldest", 100, 4 * image(1).size)
    for number in range(1, 5):
        queue.put(image(number))
    big = Prediction("b" * 50, "m")
    queue.put(big)
    assert seen(queue.take()) == [Dropped(2, GapReason.DROPPED_OLDEST), "3", "4", big.image_id]


@given(
    st.sampled_from(["drop_oldest", "drop_newest"]),
    st.integers(1, 5),
    st.lists(st.sampled_from(["put", "put", "enter", "take"]), max_size=60),
)
def test_every_ordinal_is_an_entry_or_in_a_drop(
    on_full: OnFull, most: int, steps: list[str]
) -> None:
    queue, taken = memory(on_full, most), list[Logged | Dropped]()
    number = 0
    for step in steps:
        if step == "take":
            taken += queue.take()
            continue
        number += 1
        if step == "enter":
            assert queue.enter(image(number)) == number
        else:
            queue.put(image(number))
        assert len(queue) <= most
        assert queue.logged == number
    ordinal = 0
    for entry in [*taken, *queue.take()]:
        if isinstance(entry, Dropped):
            ordinal += entry.count
        else:
            ordinal += 1
            assert entry[0].image_id == str(ordinal)
    assert ordinal == queue.logged == number


def test_block_waits_for_room() -> None:
    queue = memory("block", most=1)
    queue.put(image(1))
    ordinals = list[int]()
    waiting = threading.Thread(target=lambda: ordinals.append(queue.enter(image(2))))
    waiting.start()
    assert not eventually(lambda: bool(ordinals), 0.05)
    assert seen(queue.take()) == ["1"]
    waiting.join(10)
    assert ordinals == [2]
    assert seen(queue.take()) == ["2"]


def test_block_gives_up_after_its_timeout_and_logs_nothing() -> None:
    queue = memory("block", most=1)
    queue.put(image(1))
    with pytest.raises(TimeoutError, match=r"0\.01 s"):
        queue.put(image(2), 0.01)
    assert queue.logged == 1
    assert seen(queue.take()) == ["1"]


@pytest.mark.parametrize("on_full", ["block", "drop_oldest", "drop_newest"])
def test_a_closed_memory_refuses_but_can_be_taken(on_full: OnFull) -> None:
    queue = memory(on_full)
    queue.put(image(1))
    queue.close()
    with pytest.raises(ClosedError):
        queue.put(image(2))
    assert seen(queue.take()) == ["1"]
    with pytest.raises(ClosedError):
        queue.put(image(3))


def test_closing_wakes_who_blocks() -> None:
    queue = memory("block", most=1)
    queue.put(image(1))
    raised = list[type[Exception]]()

    def put() -> None:
        try:
            queue.put(image(2))
        except ClosedError as error:
            raised.append(type(error))

    waiting = threading.Thread(target=put)
    waiting.start()
    assert not eventually(lambda: bool(raised), 0.05)
    queue.close()
    waiting.join(10)
    assert raised == [ClosedError]


def test_the_first_and_the_half_are_announced() -> None:
    calls = list[str]()
    queue = Memory(
        "drop_oldest",
        10,
        1 << 30,
        on_first=lambda: calls.append("first"),
        on_half=lambda: calls.append("half"),
    )
    for number in range(9):
        queue.put(image(number))
    queue.take()
    queue.put(image(9))
    assert calls == ["first", "half"]  # whoever took something comes again by himself
    for number in range(5):
        queue.put(image(number))
    assert calls == ["first", "half", "half"]
    queue.take()
    queue.take()
    queue.put(image(9))
    assert calls == ["first", "half", "half", "first"]


def test_a_big_one_takes_the_lock_and_its_turn() -> None:
    size = image(1).size
    queue = memory("drop_oldest", 100, 50 * 2 * size)
    queue.put(image(0))
    queue.take()
    for one in (image(1), Prediction("b" * size, "m"), image(2), image(3)):
        queue.put(one)
    assert seen(queue.take()) == ["1", "b" * size, "2", "3"]


def test_bytes_bound_the_inbox_too() -> None:
    queue = memory("drop_oldest", 100, 10 * image(0).size)
    queue.put(image(0))
    queue.take()
    for number in range(30):
        queue.put(image(number))
    assert len(queue) <= 10


class Crowd:
    """A memory in which another thread acts between the look at the inbox and the entry."""

    def __init__(self, queue: Memory, act: Callable[[], object]) -> None:
        self._queue, self._inbox, self._act = queue, queue._inbox, act

    def __len__(self) -> int:
        return len(self._inbox)

    def append(self, entry: Logged) -> None:
        self._queue._inbox = self._inbox
        self._act()
        self._inbox.append(entry)


def test_who_comes_while_the_memory_falls_idle_is_announced() -> None:
    calls = list[str]()
    queue = Memory("block", 10, 1 << 30, lambda: calls.append("first"), lambda: None)
    queue.put(image(0))
    queue.take()
    queue._inbox = Crowd(queue, queue.take)  # type: ignore[assignment]
    queue.put(image(1))
    assert calls == ["first", "first"]
    assert seen(queue.take()) == ["1"]
    assert queue.logged == 2


class Late(deque[Logged]):
    """An inbox into which something comes just after `take` has found it empty."""

    def __init__(self, come: Callable[[], object]) -> None:
        super().__init__()
        self._looks, self._come = 0, threading.Thread(target=come)

    def __len__(self) -> int:
        found = super().__len__()
        if threading.current_thread() is threading.main_thread():
            self._looks += 1
            if self._looks == 2:
                self._come.start()
                self._come.join(0.2)
        return found


def test_who_comes_after_the_last_look_is_announced() -> None:
    calls = list[str]()
    queue = Memory("block", 10, 1 << 30, lambda: calls.append("first"), lambda: None)
    queue.put(image(0))
    queue.take()
    queue._inbox = late = Late(lambda: queue.put(image(1)))
    queue.take()
    late._come.join(20)
    assert calls == ["first", "first"]
    assert seen(queue.take()) == ["1"]


def test_who_was_blocked_comes_after_those_who_entered_meanwhile() -> None:
    queue, ordinals = memory("block", most=4), list[int]()
    for number in range(4):
        queue.put(image(number))
    blocked = threading.Thread(target=lambda: ordinals.append(queue.enter(image(99))))
    blocked.start()
    assert eventually(lambda: bool(queue._room._waiters))  # type: ignore[attr-defined]
    wake, queue._room.notify_all = queue._room.notify_all, lambda: None  # type: ignore[method-assign]
    queue.take()
    for number in (4, 5):
        queue.put(image(number))
    with queue._room:
        wake()
    blocked.join(20)
    assert ordinals == [7]
    assert seen(queue.take()) == ["4", "5", "99"]


def test_who_comes_while_the_memory_closes_is_refused() -> None:
    queue = memory("block", most=10)
    queue.put(image(0))
    queue.take()
    queue._inbox = Crowd(queue, queue.close)  # type: ignore[assignment]
    with pytest.raises(ClosedError):
        queue.put(image(1))
    assert queue.take() == []
    assert (len(queue), queue.logged) == (0, 1)


def test_threads_lose_nothing() -> None:
    queue, taken = memory("block", most=50), list[Logged | Dropped]()

    def put(thread: int) -> None:
        for number in range(500):
            queue.put(Prediction(f"{thread}/{number}", "m"))

    threads = [threading.Thread(target=put, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()

    def all_taken() -> bool:
        taken.extend(queue.take())
        return len(taken) == 2000

    assert eventually(all_taken)
    found = [str(name) for name in seen(taken)]
    for number in range(4):
        own = [name for name in found if name.startswith(f"{number}/")]
        assert own == [f"{number}/{count}" for count in range(500)]


@pytest.mark.parametrize("on_full", ["block", "drop_oldest", "drop_newest"])
def test_what_was_taken_before_the_closing_is_not_lost(on_full: OnFull) -> None:
    queue, accepted = memory(on_full, most=40), [0] * 4
    taken = list[Logged | Dropped]()

    def put(thread: int) -> None:
        try:
            while True:
                queue.put(image(thread))
                accepted[thread] += 1
        except ClosedError:
            pass

    threads = [threading.Thread(target=put, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    while sum(accepted) < 5000:
        taken += queue.take()
    queue.close()
    for thread in threads:
        thread.join(20)
    taken += queue.take()
    counts = [entry.count if isinstance(entry, Dropped) else 1 for entry in taken]
    assert sum(counts) == sum(accepted) == queue.logged
