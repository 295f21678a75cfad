"""The progress of `sightline log` on stderr: one line that is redrawn, or a line now and then.

A terminal gets one line that is redrawn; a file or a journal gets a plain line every few seconds.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner

_WINDOW_SECONDS = 5.0
_REDRAWS_PER_SECOND = 4.0
_LINE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Glance:
    """The counts of a run at one moment."""

    by_device: int
    by_cloud: int
    failed: int
    dropped: int
    """Frames of cameras that were dropped because answering took too long."""
    lost: tuple[str, ...]
    """Names of the cameras that are lost and being reconnected."""
    unreachable: tuple[str, ...]
    """Names of the cameras that were never connected, and are tried again."""
    committed: int
    """Predictions that the ingest service has, those of earlier runs included."""
    waiting: int
    """Predictions that are logged and not committed yet, those of earlier runs included."""
    done: int = 0
    """Frames of all sources that need no more work: answered, failed, skipped, dropped, damaged."""
    length: int | None = None
    """Frames of all sources together; None: not known."""
    stopped: int = 0
    """Frames that were read and not answered when the reading was stopped; `done` has them."""

    @property
    def unanswered(self) -> int:
        """Frames that the end of the reading left: read ones, and unread ones if it is known."""
        if self.length is None:
            return self.stopped
        return max(self.length - self.done, 0) + self.stopped

    @property
    def pictures(self) -> int:
        """Images so far, answered or failed."""
        return self.by_device + self.by_cloud + self.failed

    @property
    def fallback_rate(self) -> float:
        """Share of the answers that came from the cloud, 0 to 1; 0 without an answer."""
        answered = self.by_device + self.by_cloud
        return self.by_cloud / answered if answered else 0.0

    def line(self, fps: float, frames_per_second: float = 0.0) -> str:
        """Return the line that a person sees.

        Args:
            fps: images answered per second.
            frames_per_second: frames done per second, for the time left; 0: not known.
        """
        return (
            self._progress(frames_per_second)
            + f"{self.pictures:,} images, {fps:.1f} fps; {self.committed:,} committed, "
            f"{self.waiting:,} spooled; fallback {self.fallback_rate:.1%}; {self.failed:,} failed"
            + (f"; {self.dropped:,} dropped" if self.dropped else "")
            + (f"; camera lost: {', '.join(self.lost)}" if self.lost else "")
            + (f"; camera not reachable: {', '.join(self.unreachable)}" if self.unreachable else "")
        )

    def _progress(self, frames_per_second: float) -> str:
        """Return percent and time left; empty: the length is not known."""
        if not self.length:
            return ""
        done = min(self.done, self.length)
        text = f"{done / self.length:.0%}"
        if frames_per_second > 0 and done < self.length:
            minutes, seconds = divmod(round((self.length - done) / frames_per_second), 60)
            hours, minutes = divmod(minutes, 60)
            clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
            text += f", {clock} left"
        return f"{text}; "


class Rate:
    """A rate per second over the last five seconds. Pure: the time is an argument."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def at(self, now: float, count: int) -> float:
        """Return the rate.

        Args:
            now: seconds of a clock that never goes back; not before that of the last call.
            count: the number so far.
        """
        self._points.append((now, count))
        while len(self._points) > 2 and self._points[1][0] <= now - _WINDOW_SECONDS:
            self._points.popleft()
        began, first = self._points[0]
        return (count - first) / (now - began) if now > began else 0.0


class Display:
    """A context manager that shows the progress of a run on a console.

    Args:
        console: a console on stderr.
        look: returns the counts of the run as they are now; called from a thread.
        clock: seconds, never going back.
        every: seconds between two lines where the console is no terminal, > 0.
    """

    def __init__(
        self,
        console: Console,
        look: Callable[[], Glance],
        clock: Callable[[], float],
        every: float = _LINE_SECONDS,
    ) -> None:
        self._console = console
        self._look = look
        self._clock = clock
        self._every = every
        self._rate = Rate()
        self._frame_rate = Rate()
        self._ended = threading.Event()
        self._live: Live | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        now = self._clock()
        self._rate.at(now, 0)
        self._frame_rate.at(now, 0)
        if self._console.is_terminal:
            spinner = Spinner("dots")
            self._live = Live(
                console=self._console,
                get_renderable=lambda: self._redrawn(spinner),
                refresh_per_second=_REDRAWS_PER_SECOND,
                transient=True,
            )
            self._live.start()
        else:
            self._thread = threading.Thread(target=self._print_lines, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._live is not None:
            self._live.stop()
        if self._thread is not None:
            self._thread.join()

    def say(self, text: str) -> None:
        """Print a line of its own. May be called from any thread."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _redrawn(self, spinner: Spinner) -> Spinner:
        spinner.update(text=self._line())
        return spinner

    def _line(self) -> str:
        seen, now = self._look(), self._clock()
        frame_rate = self._frame_rate.at(now, seen.done)
        return seen.line(self._rate.at(now, seen.pictures), frame_rate)

    def _print_lines(self) -> None:
        while not self._ended.wait(self._every):
            self.say(self._line())
