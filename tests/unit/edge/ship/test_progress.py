import threading

import pytest

from edge.ship.progress import Progress
from edge.spool.caps import Lost
from edge.spool.entries import GapReason
from tests.unit.edge.samples import eventually


def lost(first: int, last: int) -> Lost:
    return Lost(first, last, GapReason.SPOOL_AGE, last - first + 1)


def test_waiting_ends_when_it_is_so() -> None:
    progress, results = Progress(), list[bool]()
    waiting = threading.Thread(
        target=lambda: results.append(progress.wait(lambda: progress.spooled >= 2, 20))
    )
    waiting.start()
    for number in (1, 2):
        assert results == []
        with progress.update():
            progress.spooled = number
    waiting.join(20)
    assert results == [True]


def test_waiting_ends_when_time_is_up() -> None:
    assert Progress().wait(lambda: False, 0.01) is False


def test_what_was_lost_before_anyone_asked() -> None:
    progress = Progress()
    progress.lost(lost(3, 5))
    assert progress.wait_for_outcome(4, lambda: False, 0.01) is GapReason.SPOOL_AGE
    with pytest.raises(TimeoutError):
        progress.wait_for_outcome(6, lambda: False, 0.01)


def test_what_is_lost_while_one_waits() -> None:
    progress, results = Progress(), list[GapReason | None]()
    waiting = threading.Thread(
        target=lambda: results.append(progress.wait_for_outcome(4, lambda: False, 20))
    )
    waiting.start()
    assert eventually(lambda: 4 in progress._awaited)
    progress.lost(lost(5, 9))
    progress.lost(lost(1, 4))
    waiting.join(20)
    assert results == [GapReason.SPOOL_AGE]
    assert progress._awaited == {}


def test_what_is_not_lost_is_told_so() -> None:
    assert Progress().wait_for_outcome(1, lambda: True, 0.01) is None


def test_the_lost_are_counted_by_reason() -> None:
    progress = Progress()
    progress.lost(lost(1, 3))
    progress.lost(Lost(3, 4, GapReason.UNREADABLE, 1))
    progress.lost(lost(9, 9))
    assert progress.dropped == {"spool_age": 4, "unreadable": 1}


def test_what_is_lost_is_known_by_its_ordinal() -> None:
    progress = Progress()
    assert not progress.has_lost(0, 100)
    progress.lost(lost(5, 7))
    assert [progress.has_lost(after, 100) for after in (0, 4, 5, 6, 7, 8)] == [True] * 4 + [
        False
    ] * 2
    assert [progress.has_lost(0, through) for through in (4, 5, 7)] == [False, True, True]


def test_so_is_what_was_lost_long_ago() -> None:
    progress = Progress()
    for number in range(1000):
        progress.lost(lost(3 * number + 1, 3 * number + 1))
    assert progress.has_lost(0, 5000)
    assert progress.has_lost(-1.0, 1000)
    assert not progress.has_lost(2998, 5000)
