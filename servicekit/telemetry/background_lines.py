"""A queue of text and the thread that writes it to a stream, many lines at a time.

All output of a process goes this way (`servicekit.telemetry.background_stderr`): otherwise a reader
that stops reading the log would stop the server, and each line would cost a system call.
"""

import atexit
import logging
import threading
from collections import deque
from typing import Protocol

logger = logging.getLogger(__name__)

_MAX_WAITING = 20_000
"""Maximum number of queued lines, about 10 MB; further ones are dropped and counted."""
_GATHER_SECONDS = 0.05
"""Time that a line waits for others to be written with, s."""
_CLOSE_SECONDS = 1.0
"""Maximum time for the last lines when the process ends, s."""


class Writable(Protocol):
    """A stream that text is written to."""

    def write(self, text: str, /) -> object:
        """Write text, and block until it is written."""

    def flush(self) -> object:
        """Write what is buffered."""


class BackgroundLines:
    """A thread-safe queue of lines and the thread that writes them.

    A crash or SIGKILL loses the lines of the last 50 ms. A normal exit of the process does not.

    Args:
        stream: the stream; it is flushed, but never closed.
        max_waiting: maximum number of queued lines.
    """

    def __init__(self, stream: Writable, max_waiting: int = _MAX_WAITING) -> None:
        self._stream = stream
        self._max_waiting = max_waiting
        self._lines: deque[str] = deque()
        self._dropped = 0  # since the start; written by the callers of `write`
        self._reported = 0  # how many of them were reported in the log; written by the thread
        self._unwritten = 0  # since the last write that succeeded; written by the thread
        self._some = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def put(self, line: str) -> None:
        """Queue a line, without its line end. Never block."""
        self.write(f"{line}\n")

    def write(self, text: str) -> None:
        """Queue text unchanged. Never block."""
        if len(self._lines) >= self._max_waiting:
            self._dropped += 1
            return
        self._lines.append(text)
        if not self._some.is_set():
            self._some.set()

    def close(self) -> None:
        """Write the remaining lines, for at most 1 s, and end the thread."""
        atexit.unregister(self.close)
        self._closing.set()
        self._some.set()
        self._thread.join(_CLOSE_SECONDS)

    def _work(self) -> None:
        while not self._closing.is_set():
            self._some.wait()
            self._closing.wait(_GATHER_SECONDS)
            self._some.clear()  # before the lines are read: a new line sets it again
            self._write()

    def _write(self) -> None:
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        try:
            self._stream.write("".join(lines))
            self._stream.flush()
        except ValueError:  # it is closed for good, which cannot be reported
            self._closing.set()
        except OSError:  # it has no reader or no room, and may have both again
            self._unwritten += len(lines)
        else:
            self._report()

    def _report(self) -> None:
        """Log how many lines are missing, now that the stream can be written."""
        unwritten, self._unwritten = self._unwritten, 0
        dropped, self._reported = self._dropped - self._reported, self._dropped
        if unwritten:
            logger.warning("lost %d lines of the log: they could not be written", unwritten)
        if dropped:
            logger.warning(
                "dropped %d lines of the log: they come faster than they are read", dropped
            )
