"""Writes text to a stream by a thread of its own, many lines at a time.

Everything that a process says goes this way (`servicekit.telemetry.background_stderr`): a reader
of the log that stops reading would otherwise stop the server, and lines about calls would cost a
system call each.
"""

import atexit
import logging
import threading
from collections import deque
from typing import Protocol

logger = logging.getLogger(__name__)

_MAX_WAITING = 20_000
"""Lines that wait at most, some 10 MB; what comes then is dropped, and counted."""
_GATHER_SECONDS = 0.05
"""How long the first of some lines waits for others."""
_CLOSE_SECONDS = 1.0
"""How long the last lines may take when the process ends."""


class Writable(Protocol):
    """What text is written to."""

    def write(self, text: str, /) -> object:
        """Write text, or wait until it can."""

    def flush(self) -> object:
        """Keep nothing back."""


class BackgroundLines:
    """A queue of lines and the thread that writes them; safe in several threads.

    A crash or SIGKILL loses the lines of the last moments. An ordinary end of the process does not.

    Args:
        stream: what is written to; it is flushed, but never closed.
        max_waiting: lines that wait at most.
    """

    def __init__(self, stream: Writable, max_waiting: int = _MAX_WAITING) -> None:
        self._stream = stream
        self._max_waiting = max_waiting
        self._lines: deque[str] = deque()
        self._dropped = 0  # since the start; written where lines come in
        self._told = 0  # how many of them the log knows of; written by the thread
        self._some = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def put(self, line: str) -> None:
        """Queue a line, given without its end; never block."""
        self.write(f"{line}\n")

    def write(self, text: str) -> None:
        """Queue text as it is; never block."""
        if len(self._lines) >= self._max_waiting:
            self._dropped += 1
            return
        self._lines.append(text)
        if not self._some.is_set():
            self._some.set()

    def close(self) -> None:
        """Write what is left, if that takes no longer than a second, and end the thread."""
        atexit.unregister(self.close)
        self._closing.set()
        self._some.set()
        self._thread.join(_CLOSE_SECONDS)

    def _work(self) -> None:
        while not self._closing.is_set():
            self._some.wait()
            self._closing.wait(_GATHER_SECONDS)
            self._some.clear()  # before lines are taken: one that comes meanwhile sets it again
            self._write()

    def _write(self) -> None:
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        try:
            self._stream.write("".join(lines))
            self._stream.flush()
        except (OSError, ValueError):  # it is closed, or nobody reads it: nowhere to say so
            self._closing.set()
        if dropped := self._dropped - self._told:
            self._told += dropped
            logger.warning(
                "dropped %d lines of the log: they come faster than they are read", dropped
            )
