"""Fair sharing: reservations, queues, turns and victims."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.calls.fair_share import FairShare


def fill(share: FairShare[str], flow: str, size: int) -> int:
    """Reserve blocks of this size until there is no more memory, and return their number."""
    taken = 0
    while share.reserve(flow, size):
        taken += 1
    return taken


def test_one_flow_alone_leaves_a_fifth() -> None:
    share = FairShare[str](100, 10)
    assert fill(share, "a", 1) == 80
    assert share.held == share.held_by("a") == 80


@pytest.mark.parametrize("flows", [2, 3, 10])
def test_flows_that_take_all_they_can_get_the_same_in_the_end(flows: int) -> None:
    share = FairShare[str](1000, 10)
    names = [str(number) for number in range(flows)]
    for name in names:
        fill(share, name, 1)
    for _ in range(1000):  # each gives one back, and then takes what it can
        for name in names:
            if share.held_by(name):
                share.release(name, 1)
        for name in names:
            fill(share, name, 1)
    held = [share.held_by(name) for name in names]
    expected = 4 * 1000 / (4 * flows + 1)
    assert max(held) <= 1.6 * min(held)
    assert sum(held) == pytest.approx(flows * expected, rel=0.1)


def test_who_holds_nothing_gets_the_last_room() -> None:
    share = FairShare[str](40, 10)
    assert fill(share, "a", 10) == 3
    assert not share.reserve("a", 10)
    assert share.reserve("b", 10)
    assert not share.reserve("c", 10)


def test_one_room_is_for_anyone() -> None:
    share = FairShare[str](10, 1)
    assert share.reserve("a", 10)
    share.release("a", 10)
    assert share.reserve("b", 10)


def test_flows_take_turns() -> None:
    share = FairShare[str](10, 100)
    assert share.reserve("z", 10)
    for waiter in ("a1", "a2", "a3", "b1", "c1", "c2"):
        assert share.enqueue(waiter[0], waiter) is None
    served, last = [], "z"
    while share.waiting:
        share.release(last[0], 10)
        found = share.next(10)
        assert found is not None
        assert share.next(10) is None
        served.append(found)
        last = found
    assert served == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_a_flow_that_holds_too_much_is_passed_over() -> None:
    share = FairShare[str](40, 100)
    fill(share, "a", 10)
    assert share.reserve("c", 10)
    share.enqueue("a", "a1")
    share.enqueue("b", "b1")
    share.release("c", 10)
    assert share.next(10) == "b1"
    assert share.next(10) is None


def test_the_longest_line_loses_its_last_for_want_of_places() -> None:
    share = FairShare[str](10, 4)
    for waiter in ("a1", "a2", "a3", "b1"):
        assert share.enqueue(waiter[0], waiter) is None
    assert share.enqueue("a", "a4") == "a4"
    assert share.enqueue("c", "c1") == "a3"
    assert share.enqueue("b", "b2") == "b2", "of equals it loses that comes last"
    assert share.waiting == 4


def test_a_suspect_loses_its_place_first() -> None:
    share = FairShare[str](10, 3)
    for waiter in ("a1", "a2", "b1"):
        assert share.enqueue(waiter[0], waiter) is None
    share.suspect("b")
    assert share.enqueue("c", "c1") == "b1"
    assert share.enqueue("b", "b2") == "b2"


def test_who_leaves_is_forgotten() -> None:
    share = FairShare[str](10, 1)
    assert share.enqueue("a", "a1") is None
    assert share.enqueue("b", "b1") == "b1"
    share.remove("a", "a1")
    share.remove("a", "a1")
    assert share.waiting == 0
    assert share.next(10) is None
    assert share.enqueue("b", "b1") is None


def test_a_flow_that_sent_nothing_waits_behind_the_others_until_it_does() -> None:
    share = FairShare[str](10, 100)
    assert share.reserve("z", 10)
    for waiter in ("a1", "a2", "b1", "c1"):
        assert share.enqueue(waiter[0], waiter) is None
    share.suspect("a")
    share.suspect("b")
    served, last = [], "z"
    while found := served_after(share, last):
        served.append(found)
        last = found[0]
        if found == "a1":
            share.suspect("a")
        if found == "b1":
            share.trust("a")
    assert served == ["c1", "a1", "b1", "a2"]


def served_after(share: FairShare[str], flow: str) -> str | None:
    share.release(flow, 10)
    return share.next(10)


def test_all_that_sent_nothing_hold_half_together() -> None:
    share = FairShare[str](100, 10)
    assert share.reserve("a", 10)
    for flow in "abc":
        share.suspect(flow)
    assert fill(share, "b", 10) == 4
    assert not share.reserve("c", 10)
    assert fill(share, "d", 10) == 4
    share.release("b", 40)
    share.trust("a")
    assert fill(share, "c", 10) == 4
    share.release("c", 40)
    share.release("a", 10)
    share.release("d", 40)
    assert share.held == share._suspected == 0


def test_one_room_is_for_a_flow_that_sent_nothing_too() -> None:
    share = FairShare[str](10, 1)
    share.suspect("a")
    assert share.reserve("a", 10)


def test_suspects_are_bounded() -> None:
    share = FairShare[str](100, 10)
    for number in range(20_000):
        share.suspect(str(number))
    assert len(share._suspects) == 10_000
    assert "19999" in share._suspects


def test_the_flow_that_holds_most_loses_its_oldest_room() -> None:
    share = FairShare[str](100, 10)
    for flow, rooms in (("a", 4), ("b", 2)):
        for _ in range(rooms):
            assert share.reserve(flow, 10)
    stalled = [("b", "b1"), ("a", "a1"), ("a", "a2"), ("a", "a3"), ("a", "a4"), ("b", "b2")]
    assert share.victims(10, ["c"], stalled) == ["a1"]
    assert share.victims(10, ["c", "c"], stalled) == ["a1", "a2"]
    assert share.victims(10, ["c", "d", "e", "f"], stalled) == ["a1", "a2", "b1", "a3"]


def test_a_slow_sender_within_its_share_loses_nothing_to_a_flood() -> None:
    share = FairShare[str](100, 10)
    assert share.reserve("slow", 10)
    for _ in range(5):
        assert share.reserve("flood", 10)
    assert share.victims(10, ["flood"] * 5, [("slow", "s")]) == []
    assert share.victims(10, ["flood"], [("slow", "s"), ("flood", "f")]) == ["f"]


def test_a_slow_sender_loses_nothing_to_suspects_which_could_not_take_it() -> None:
    share = FairShare[str](100, 10)
    assert share.reserve("slow", 10)
    assert share.reserve("other", 10)
    share.suspect("flood")
    assert share.victims(10, ["flood"] * 5, [("slow", "s"), ("other", "o")]) == []
    share.suspect("other")
    assert share.victims(10, ["flood"], [("slow", "s"), ("other", "o")]) == ["o"]
    share.trust("flood")
    assert share.victims(10, ["flood"], [("slow", "s")]) == ["s"], "or it would wait for ever"


def test_nothing_stalled_is_nothing_to_lose() -> None:
    assert FairShare[str](100, 10).victims(10, ["a"], []) == []


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40), st.booleans())))
def test_the_books_balance(steps: list[tuple[str, int, bool]]) -> None:
    share, held = FairShare[str](100, 5), dict.fromkeys("abc", 0)
    for flow, size, takes in steps:
        if takes and share.reserve(flow, size):
            held[flow] += size
        elif not takes:
            size = min(size, held[flow])
            share.release(flow, size)
            held[flow] -= size
        assert share.held == sum(held.values()) <= 100
        assert {name: share.held_by(name) for name in held} == held
