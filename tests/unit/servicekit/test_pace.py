"""The delay of a peer that is too fast."""

import pytest

from servicekit.pace import Pace


def test_a_burst_is_answered_at_once_and_the_next_waits_its_turn() -> None:
    pace = Pace(per_second=10, burst=3, longest=1)
    assert [pace.delay("a", 0.0) for _ in range(5)] == pytest.approx([0, 0, 0, 0.1, 0.2])
    assert pace.delay("b", 0.0) == 0


def test_a_rest_pays_the_debt() -> None:
    pace = Pace(per_second=10, burst=3, longest=1)
    for _ in range(5):
        pace.delay("a", 0.0)
    assert pace.delay("a", 0.1) == pytest.approx(0.2)
    assert pace.delay("a", 10.0) == 0


def test_nobody_waits_longer_than_the_longest_and_the_debt_is_bounded() -> None:
    pace = Pace(per_second=10, burst=3, longest=1)
    delays = [pace.delay("a", 0.0) for _ in range(1000)]
    assert max(delays) == 1
    assert pace.delay("a", 2.0) == 0


def test_connections_are_forgotten_beyond_a_bound() -> None:
    pace = Pace(per_second=1, burst=1, longest=1)
    for number in range(20_000):
        pace.delay(str(number), 0.0)
    assert pace.delay("0", 0.0) == 0
    assert pace.delay("19999", 0.0) > 0
