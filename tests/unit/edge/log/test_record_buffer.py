import threading
from collections import deque
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import ClosedError
from edge.log.record_buffer import Logged, RecordBuffer
from edge.options import OnFull
from edge.records import Prediction
from edge.spool.entries import Dropped, GapReason
from tests.unit.edge.samples import eventually


def small_buffer(on_full: OnFull, limit: int = 3, max_bytes: int = 1 << 30) -> RecordBuffer:
    return RecordBuffer(on_full, limit, max_bytes, on_first=lambda: None, on_half=lambda: None)


def image(number: int) -> Prediction:
    return Prediction(str(number), "m")


def seen(drained: Sequence[Logged | Dropped]) -> list[str | Dropped]:
    return [entry if isinstance(entry, Dropped) else entry[0].image_id for entry in drained]


def test_what_is_put_is_taken_once_and_in_order() -> None:
    queue = small_buffer("block")
    assert [queue.add(image(number)) for number in (1, 2, 3)] == [1, 2, 3]
    assert len(queue) == 3
    assert seen(queue.drain()) == ["1", "2", "3"]
    queue.put(image(4))
    assert queue.add(image(5)) == 5
    assert (len(queue), queue.logged) == (2, 5)
    assert seen(queue.drain()) == ["4", "5"]
    assert queue.drain() == []
    assert queue.add(image(6)) == 6


def test_what_is_put_without_the_lock_counts_like_the_rest() -> None:
    queue = small_buffer("block", limit=100)
    queue.put(image(0))
    queue.drain()
    with queue._changed:  # whoever needs the lock now waits for ever
        for number in range(1, 11):
            queue.put(image(number))
    assert (len(queue), queue.logged) == (10, 11)
    assert queue.add(image(11)) == 12
    assert seen(queue.drain()) == [str(number) for number in range(1, 12)]
    assert (len(queue), queue.logged) == (0, 12)


def test_drop_oldest() -> None:
    queue = small_buffer("drop_oldest")
    for number in range(1, 7):
        queue.put(image(number))
    assert seen(queue.drain()) == [Dropped(3, GapReason.DROPPED_OLDEST), "4", "5", "6"]
    assert queue.logged == 6


def test_drop_newest() -> None:
    queue = small_buffer("drop_newest")
    for number in range(1, 7):
        queue.put(image(number))
    assert seen(queue.drain()) == ["1", "2", "3", Dropped(3, GapReason.DROPPED_NEWEST)]
    assert queue.logged == 6


def test_bytes_bound_memory_too() -> None:
    queue = small_buffer("drop_oldest", 100, 3 * image(1).size)
    for number in range(1, 6):
        queue.put(image(number))
    assert seen(queue.drain()) == [Dropped(2, GapReason.DROPPED_OLDEST), "3", "4", "5"]


def test_a_big_one_drops_as_many_as_it_needs() -> None:
    queue = small_buffer("drop_oldest", 100, 4 * image(1).size)
    for number in range(1, 5):
        queue.put(image(number))
    big = Prediction("b" * 50, "m")
    queue.put(big)
    assert seen(queue.drain()) == [Dropped(2, GapReason.DROPPED_OLDEST), "3", "4", big.image_id]


@given(
    st.sampled_from(["drop_oldest", "drop_newest"]),
    st.integers(1, 5),
    st.lists(st.sampled_from(["put", "put", "add", "take"]), max_size=60),
)
def test_every_ordinal_is_an_entry_or_in_a_drop(
    on_full: OnFull, limit: int, steps: list[str]
) -> None:
    queue, drained = small_buffer(on_full, limit), list[Logged | Dropped]()
    number = 0
    for step in steps:
        if step == "take":
            drained += queue.drain()
            continue
        number += 1
        if step == "add":
            assert queue.add(image(number)) == number
        else:
            queue.put(image(number))
        assert len(queue) <= limit
        assert queue.logged == number
    ordinal = 0
    for entry in [*drained, *queue.drain()]:
        if isinstance(entry, Dropped):
            ordinal += entry.count
        else:
            ordinal += 1
            assert entry[0].image_id == str(ordinal)
    assert ordinal == queue.logged == number


def test_block_waits_for_space() -> None:
    queue = small_buffer("block", limit=1)
    queue.put(image(1))
    ordinals = list[int]()
    waiting = threading.Thread(target=lambda: ordinals.append(queue.add(image(2))))
    waiting.start()
    assert not eventually(lambda: bool(ordinals), 0.05)
    assert seen(queue.drain()) == ["1"]
    waiting.join(10)
    assert ordinals == [2]
    assert seen(queue.drain()) == ["2"]


def test_block_gives_up_after_its_timeout_and_logs_nothing() -> None:
    queue = small_buffer("block", limit=1)
    queue.put(image(1))
    with pytest.raises(TimeoutError, match=r"0\.01 s"):
        queue.put(image(2), 0.01)
    assert queue.logged == 1
    assert seen(queue.drain()) == ["1"]


@pytest.mark.parametrize("on_full", ["block", "drop_oldest", "drop_newest"])
def test_a_closed_memory_refuses_but_can_be_taken(on_full: OnFull) -> None:
    queue = small_buffer(on_full)
    queue.put(image(1))
    queue.close()
    with pytest.raises(ClosedError):
        queue.put(image(2))
    assert seen(queue.drain()) == ["1"]
    with pytest.raises(ClosedError):
        queue.put(image(3))


def test_closing_wakes_who_blocks() -> None:
    queue = small_buffer("block", limit=1)
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
    queue = RecordBuffer(
        "drop_oldest",
        10,
        1 << 30,
        on_first=lambda: calls.append("first"),
        on_half=lambda: calls.append("half"),
    )
    for number in range(9):
        queue.put(image(number))
    queue.drain()
    queue.put(image(9))
    assert calls == ["first", "half"]  # whoever took something comes again by himself
    for number in range(5):
        queue.put(image(number))
    assert calls == ["first", "half", "half"]
    queue.drain()
    queue.drain()
    queue.put(image(9))
    assert calls == ["first", "half", "half", "first"]


def test_a_big_one_takes_the_lock_and_its_turn() -> None:
    size = image(1).size
    queue = small_buffer("drop_oldest", 100, 50 * 2 * size)
    queue.put(image(0))
    queue.drain()
    for item in (image(1), Prediction("b" * size, "m"), image(2), image(3)):
        queue.put(item)
    assert seen(queue.drain()) == ["1", "b" * size, "2", "3"]


def test_bytes_bound_the_inbox_too() -> None:
    queue = small_buffer("drop_oldest", 100, 10 * image(0).size)
    queue.put(image(0))
    queue.drain()
    for number in range(30):
        queue.put(image(number))
    assert len(queue) <= 10


class RacingInbox:
    """An inbox in which another thread acts between the check of its size and the append."""

    def __init__(self, queue: RecordBuffer, act: Callable[[], object]) -> None:
        self._queue, self._inbox, self._act = queue, queue._inbox, act

    def __len__(self) -> int:
        return len(self._inbox)

    def append(self, entry: Logged) -> None:
        self._queue._inbox = self._inbox
        self._act()
        self._inbox.append(entry)


def test_a_put_while_the_buffer_falls_idle_calls_on_first() -> None:
    calls = list[str]()
    queue = RecordBuffer("block", 10, 1 << 30, lambda: calls.append("first"), lambda: None)
    queue.put(image(0))
    queue.drain()
    queue._inbox = RacingInbox(queue, queue.drain)  # type: ignore[assignment]
    queue.put(image(1))
    assert calls == ["first", "first"]
    assert seen(queue.drain()) == ["1"]
    assert queue.logged == 2


class LateInbox(deque[Logged]):
    """An inbox that receives an entry just after `drain` has found it empty."""

    def __init__(self, come: Callable[[], object]) -> None:
        super().__init__()
        self._looks, self._come = 0, threading.Thread(target=come)

    def __len__(self) -> int:
        size = super().__len__()
        if threading.current_thread() is threading.main_thread():
            self._looks += 1
            if self._looks == 2:
                self._come.start()
                self._come.join(0.2)
        return size


def test_a_put_after_the_last_look_calls_on_first() -> None:
    calls = list[str]()
    queue = RecordBuffer("block", 10, 1 << 30, lambda: calls.append("first"), lambda: None)
    queue.put(image(0))
    queue.drain()
    queue._inbox = late = LateInbox(lambda: queue.put(image(1)))
    queue.drain()
    late._come.join(20)
    assert calls == ["first", "first"]
    assert seen(queue.drain()) == ["1"]


def test_a_blocked_prediction_follows_those_added_meanwhile() -> None:
    queue, ordinals = small_buffer("block", limit=4), list[int]()
    for number in range(4):
        queue.put(image(number))
    blocked = threading.Thread(target=lambda: ordinals.append(queue.add(image(99))))
    blocked.start()
    assert eventually(lambda: bool(queue._changed._waiters))  # type: ignore[attr-defined]
    wake, queue._changed.notify_all = queue._changed.notify_all, lambda: None  # type: ignore[method-assign]
    queue.drain()
    for number in (4, 5):
        queue.put(image(number))
    with queue._changed:
        wake()
    blocked.join(20)
    assert ordinals == [7]
    assert seen(queue.drain()) == ["4", "5", "99"]


def test_a_put_while_the_buffer_closes_is_refused() -> None:
    queue = small_buffer("block", limit=10)
    queue.put(image(0))
    queue.drain()
    queue._inbox = RacingInbox(queue, queue.close)  # type: ignore[assignment]
    with pytest.raises(ClosedError):
        queue.put(image(1))
    assert queue.drain() == []
    assert (len(queue), queue.logged) == (0, 1)


def test_threads_lose_nothing() -> None:
    queue, drained = small_buffer("block", limit=50), list[Logged | Dropped]()

    def put(thread: int) -> None:
        for number in range(500):
            queue.put(Prediction(f"{thread}/{number}", "m"))

    threads = [threading.Thread(target=put, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()

    def all_taken() -> bool:
        drained.extend(queue.drain())
        return len(drained) == 2000

    assert eventually(all_taken)
    names = [str(name) for name in seen(drained)]
    for number in range(4):
        own = [name for name in names if name.startswith(f"{number}/")]
        assert own == [f"{number}/{count}" for count in range(500)]


@pytest.mark.parametrize("on_full", ["block", "drop_oldest", "drop_newest"])
def test_what_was_taken_before_the_closing_is_not_lost(on_full: OnFull) -> None:
    queue, accepted = small_buffer(on_full, limit=40), [0] * 4
    drained = list[Logged | Dropped]()

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
        drained += queue.drain()
    queue.close()
    for thread in threads:
        thread.join(20)
    drained += queue.drain()
    counts = [entry.count if isinstance(entry, Dropped) else 1 for entry in drained]
    assert sum(counts) == sum(accepted) == queue.logged
