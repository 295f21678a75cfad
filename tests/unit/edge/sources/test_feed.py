"""Concurrent reading of several sources: queues, drops and ends."""

import threading
from collections.abc import Iterator

import pytest

from edge.sources.counts import SourceCounts, SourceState
from edge.sources.feed import Feed
from edge.sources.frame import Frame, SourceMonitor

LONG = 10.0


class Numbers:
    """A source that yields frames named 0, 1, 2, ... without a pause."""

    def __init__(self, name: str, count: int, *, live: bool = False, fails: bool = False) -> None:
        self.name = name
        self.live = live
        self._count = count
        self._fails = fails
        self.delivered = threading.Event()

    def frames(self, monitor: SourceMonitor) -> Iterator[Frame]:
        monitor.found()
        for number in range(self._count):
            yield Frame(b"", f"{self.name}{number}")
        self.delivered.set()
        if self._fails:
            raise OSError("the disk is gone")
        if self.live:
            while not monitor.wait(LONG):
                pass


def feed_of(*sources: Numbers, queue_size: int = 4) -> tuple[Feed, list[SourceCounts]]:
    counts = [SourceCounts() for _ in sources]
    return Feed(dict(zip(sources, counts, strict=True)), queue_size), counts


def taken(feed: Feed) -> list[str]:
    names = []
    while (item := feed.next_frame()) is not None:
        names.append(item[1].image_id)
    return names


def test_no_frame_of_a_file_is_dropped_and_they_stay_in_order() -> None:
    feed, (counts,) = feed_of(Numbers("a", 100), queue_size=1)
    assert taken(feed) == [f"a{n}" for n in range(100)]
    stats = counts.stats()
    assert (stats.read, stats.dropped, stats.state) == (100, 0, SourceState.ENDED)


def test_the_oldest_frames_of_a_camera_go_when_there_is_no_room() -> None:
    source = Numbers("cam", 100, live=True)
    feed, (counts,) = feed_of(source, queue_size=4)
    assert source.delivered.wait(LONG)
    first = [feed.next_frame() for _ in range(4)]
    assert [item[1].image_id for item in first if item] == ["cam96", "cam97", "cam98", "cam99"]
    stats = counts.stats()
    assert (stats.read, stats.dropped, stats.waiting) == (100, 96, 4)
    feed.close()


def test_sources_take_turns() -> None:
    first, second = Numbers("a", 4, live=True), Numbers("b", 4, live=True)
    feed, _ = feed_of(first, second)
    assert first.delivered.wait(LONG)
    assert second.delivered.wait(LONG)
    names = [item[1].image_id for item in (feed.next_frame() for _ in range(8)) if item]
    assert names == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3"]
    feed.close()


def test_a_source_that_fails_does_not_end_the_others() -> None:
    feed, (broken, whole) = feed_of(Numbers("a", 2, fails=True), Numbers("b", 50))
    assert sorted(taken(feed)) == sorted(["a0", "a1", *(f"b{n}" for n in range(50))])
    assert broken.stats().state is SourceState.FAILED
    assert broken.stats().last_error == "the disk is gone"
    assert whole.stats().state is SourceState.ENDED


@pytest.mark.parametrize("live", [False, True])
def test_closing_ends_readers_and_counts_what_waited_as_dropped(live: bool) -> None:
    source = Numbers("a", 10, live=live)
    feed, (counts,) = feed_of(source, queue_size=2)
    if live:
        assert source.delivered.wait(LONG)
    assert feed.next_frame() is not None
    feed.close(timeout=LONG)
    assert feed.next_frame() is None
    stats = counts.stats()
    assert stats.state is SourceState.ENDED
    assert stats.waiting == 1  # the caller of next_frame still processes it
    assert stats.read == stats.dropped + 1


def test_closing_wakes_whoever_waits_for_a_frame() -> None:
    feed, _ = feed_of(Numbers("a", 0, live=True))
    frames: list[object] = []
    waiting = threading.Thread(target=lambda: frames.append(feed.next_frame()))
    waiting.start()
    feed.close(timeout=LONG)
    waiting.join(LONG)
    assert frames == [None]


def test_even_an_exit_in_a_source_ends_that_source_alone() -> None:
    class Exiting(Numbers):
        def frames(self, monitor: SourceMonitor) -> Iterator[Frame]:
            yield Frame(b"", "first")
            raise SystemExit(3)

    feed, (broken, whole) = feed_of(Exiting("a", 0), Numbers("b", 3))
    assert sorted(taken(feed)) == ["b0", "b1", "b2", "first"]
    assert broken.stats().state is SourceState.FAILED
    assert whole.stats().state is SourceState.ENDED


def test_what_a_source_raises_when_it_is_closed_is_no_failure() -> None:
    class Clumsy(Numbers):
        def frames(self, monitor: SourceMonitor) -> Iterator[Frame]:
            yield Frame(b"", "first")
            monitor.wait(LONG)
            raise OSError("interrupted")

    feed, (counts,) = feed_of(Clumsy("a", 0, live=True))
    assert feed.next_frame() is not None
    feed.close(timeout=LONG)
    assert (counts.stats().state, counts.stats().last_error) == (SourceState.ENDED, "")


def test_a_source_that_was_never_found_was_never_lost() -> None:
    counts = SourceCounts()
    for _ in range(3):
        counts.set_state(SourceState.LOST, "OpenCV cannot open it")
    assert counts.stats().reconnects == 0
    for state in (SourceState.READING, SourceState.LOST, SourceState.LOST, SourceState.READING):
        counts.set_state(state)
    assert (counts.stats().reconnects, counts.stats().last_error) == (1, "OpenCV cannot open it")
