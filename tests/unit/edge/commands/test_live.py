"""The progress of a run on a terminal and in a journal."""

import io
import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from edge.commands.live import Display, Glance, Rate


def glance(**more: Any) -> Glance:
    counts: dict[str, Any] = {
        "by_device": 6,
        "by_cloud": 2,
        "failed": 1,
        "dropped": 0,
        "lost": (),
        "unreachable": (),
        "committed": 5,
        "waiting": 3,
    }
    return Glance(**counts | more)


def test_a_line_says_all_of_it() -> None:
    line = glance().line(24.06)
    assert line == "9 images, 24.1 fps; 5 committed, 3 spooled; fallback 25.0%; 1 failed"


def test_a_line_says_what_cameras_cost_where_they_do() -> None:
    line = glance(dropped=1200, lost=("rtsp://gate/1", "camera-0")).line(1.0)
    assert line.endswith("; 1,200 dropped; camera lost: rtsp://gate/1, camera-0")
    line = glance(unreachable=("rtsp://gate/2",)).line(1.0)
    assert line.endswith("; camera not reachable: rtsp://gate/2")


@pytest.mark.parametrize(
    ("done", "rate", "shown"),
    [
        (0, 0.0, "0%; "),
        (50, 2.0, "25%, 1:15 left; "),
        (50, 0.02, "25%, 2:05:00 left; "),
        (200, 2.0, "100%; "),
        (210, 2.0, "100%; "),  # a container may promise fewer frames than it has
    ],
)
def test_a_line_begins_with_percent_and_time_left_where_the_length_is_known(
    done: int, rate: float, shown: str
) -> None:
    assert glance(done=done, length=200).line(1.0, rate).startswith(shown + "9 images")
    assert glance(done=done).line(1.0, rate).startswith("9 images")


def test_without_an_answer_nobody_fell_back() -> None:
    assert glance(by_device=0, by_cloud=0).fallback_rate == 0.0


def test_the_rate_is_that_of_the_last_seconds() -> None:
    rate = Rate()
    assert rate.at(100.0, 0) == 0.0
    assert rate.at(101.0, 10) == pytest.approx(10.0)
    for second in range(2, 20):
        last = rate.at(100.0 + second, 10 + second)
    assert last == pytest.approx(1.0)
    assert rate.at(1000.0, 28) == pytest.approx(0.0, abs=0.01)


class Lines(io.StringIO):
    """Notes when something is written for the n-th time."""

    def __init__(self, wanted: str, times: int) -> None:
        super().__init__()
        self.there = threading.Event()
        self._wanted, self._times = wanted, times

    def write(self, text: str) -> int:
        written = super().write(text)
        if self.getvalue().count(self._wanted) >= self._times:
            self.there.set()
        return written


def shown(out: Lines, *, terminal: bool, say: Callable[[Display], None] = lambda _: None) -> str:
    clock = itertools.count(100)
    console = Console(file=out, force_terminal=terminal, width=120)
    with Display(console, glance, lambda: next(clock), every=0.01) as display:
        say(display)
        assert out.there.wait(10)
    return out.getvalue()


def test_a_journal_gets_plain_lines() -> None:
    text = shown(Lines("9 images", 2), terminal=False)
    assert "\x1b" not in text
    assert "\r" not in text
    assert all("5 committed, 3 spooled" in line for line in text.splitlines())


def test_a_terminal_gets_one_line_that_is_redrawn() -> None:
    text = shown(Lines("9 images", 2), terminal=True)
    assert "\x1b[" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_a_sentence_in_between_is_a_line_of_its_own(terminal: bool) -> None:
    out = Lines("9 images", 1)
    text = shown(out, terminal=terminal, say=lambda display: display.say("a.jpg: [broken]"))
    assert "a.jpg: [broken]\n" in text
