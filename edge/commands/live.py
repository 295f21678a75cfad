"""What a run of `sightline log` shows while it goes on: one line that moves, or lines now and then.

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
    """A run at one moment."""

    by_device: int
    by_cloud: int
    failed: int
    dropped: int
    """Frames of cameras that nobody had time for."""
    lost: int
    """Cameras that are gone and being looked for."""
    committed: int
    """Predictions that the ingest service has, those of earlier runs included."""
    waiting: int
    """Predictions that are logged and not committed yet, those of earlier runs included."""

    @property
    def pictures(self) -> int:
        """All of them, answered or not."""
        return self.by_device + self.by_cloud + self.failed

    @property
    def fallback_rate(self) -> float:
        """Share of the answers that came from the cloud, 0 to 1; 0 without an answer."""
        answered = self.by_device + self.by_cloud
        return self.by_cloud / answered if answered else 0.0

    def line(self, fps: float) -> str:
        """Return it as a line for people.

        Args:
            fps: pictures a second.
        """
        return (
            f"{self.pictures:,} pictures, {fps:.1f} fps; {self.committed:,} committed, "
            f"{self.waiting:,} spooled; fallback {self.fallback_rate:.1%}; {self.failed:,} failed"
            + (f"; {self.dropped:,} dropped" if self.dropped else "")
            + (f"; cameras lost: {self.lost}" if self.lost else "")
        )


class Rate:
    """Pictures a second over the last five. Pure: the time comes in."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def at(self, now: float, count: int) -> float:
        """Return the rate.

        Args:
            now: seconds of a clock that never goes back; not before that of the last call.
            count: pictures so far.
        """
        self._seen.append((now, count))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _WINDOW_SECONDS:
            self._seen.popleft()
        began, first = self._seen[0]
        return (count - first) / (now - began) if now > began else 0.0


class Display:
    """Shows a run on a console until it is left. Use it as a context manager.

    Args:
        console: where; on stderr.
        look: returns the run as it is now; called from a thread.
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
        self._ended = threading.Event()
        self._live: Live | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._rate.at(self._clock(), 0)
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
        """Print a line of its own; from any thread."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _redrawn(self, spinner: Spinner) -> Spinner:
        spinner.update(text=self._line())
        return spinner

    def _line(self) -> str:
        seen = self._look()
        return seen.line(self._rate.at(self._clock(), seen.pictures))

    def _print_lines(self) -> None:
        while not self._ended.wait(self._every):
            self.say(self._line())
