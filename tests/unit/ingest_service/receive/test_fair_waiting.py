"""The messages of a caller do not wait behind all messages of another caller."""

import pytest

from ingest_service.receive.fair_waiting import QUANTUM_BYTES, FairWaiting

GROUP = 8 * QUANTUM_BYTES


def filled(*messages: tuple[str, int]) -> FairWaiting[str]:
    waiting: FairWaiting[str] = FairWaiting()
    for number, (flow, size) in enumerate(messages):
        waiting.put(flow, size, f"{flow}{number}")
    return waiting


def test_a_small_message_does_not_wait_for_all_of_a_flood() -> None:
    waiting = filled(*[("flood", GROUP // 2)] * 100, ("gate", 100))
    assert "gate100" in waiting.take(GROUP)


def test_a_flow_s_messages_keep_their_order() -> None:
    waiting = filled(*[("a", QUANTUM_BYTES // 3), ("b", QUANTUM_BYTES * 2)] * 20)
    taken = []
    while waiting:
        taken += waiting.take(GROUP)
    assert len(taken) == 40
    for flow in "ab":
        numbers = [int(name[1:]) for name in taken if name.startswith(flow)]
        assert numbers == sorted(numbers)
    assert waiting.bytes == 0


def test_flows_that_send_all_they_can_get_the_same_bytes() -> None:
    waiting = filled(*[("a", QUANTUM_BYTES * 4)] * 50, *[("b", 1000)] * 20_000)
    taken = {"a": 0, "b": 0}
    for _ in range(10):
        for name in waiting.take(GROUP):
            taken[name[0]] += QUANTUM_BYTES * 4 if name[0] == "a" else 1000
    assert taken["a"] == pytest.approx(taken["b"], rel=0.1)


@pytest.mark.parametrize("size", [0, 1, GROUP, 100 * GROUP])
def test_a_group_holds_one_message_and_then_no_more_than_fits(size: int) -> None:
    waiting = filled(("a", size), ("a", GROUP), ("a", GROUP))
    first = waiting.take(GROUP)
    assert first[0] == "a0"
    assert len(first) == (2 if size < GROUP else 1)


def test_nothing_waits() -> None:
    waiting = filled()
    assert not waiting
    assert waiting.take(GROUP) == []
