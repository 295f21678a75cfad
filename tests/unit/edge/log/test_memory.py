import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.log.entries import Dropped, GapReason
from edge.log.memory import ClosedError, Logged, Memory, OnFull
from edge.records import Prediction
from tests.unit.edge.samples import eventually


def memory(on_full: OnFull, most: int = 3, most_bytes: int = 1 << 30) -> Memory:
    return Memory(on_full, most, most_bytes, on_first=lambda: None, on_half=lambda: None)


def image(number: int) -> Prediction:
    return Prediction(str(number), "m")


def seen(taken: Sequence[Logged | Dropped]) -> list[str | Dropped]:
    return [entry if isinstance(entry, Dropped) else entry[0].image_id for entry in taken]


def test_what_is_put_is_taken_once_and_in_order() -> None:
    queue = memory("block")
    assert [queue.put(image(number)) for number in (1, 2, 3)] == [1, 2, 3]
    assert len(queue) == 3
    assert seen(queue.take()) == ["1", "2", "3"]
    assert queue.take() == []
    assert queue.put(image(4)) == 4


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
    st.lists(st.booleans(), max_size=60),
)
def test_every_ordinal_is_an_entry_or_in_a_drop(
    on_full: OnFull, most: int, steps: list[bool]
) -> None:
    queue, taken = memory(on_full, most), list[Logged | Dropped]()
    for number, take in enumerate(steps, 1):
        assert queue.put(image(number)) == number
        assert len(queue) <= most
        if take:
            taken += queue.take()
    ordinal = 0
    for entry in [*taken, *queue.take()]:
        if isinstance(entry, Dropped):
            ordinal += entry.count
        else:
            ordinal += 1
            assert entry[0].image_id == str(ordinal)
    assert ordinal == queue.logged == len(steps)


def test_block_waits_for_room() -> None:
    queue = memory("block", most=1)
    queue.put(image(1))
    ordinals = list[int]()
    waiting = threading.Thread(target=lambda: ordinals.append(queue.put(image(2))))
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
    assert calls == ["first", "half", "first"]


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
