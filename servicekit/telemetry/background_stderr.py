"""A stderr that never blocks its process: for the log, tracebacks and native code.

A pipe whose reader has stopped reading is full after 64 KiB, and the next write blocks for ever,
for example in the thread that commits while the event loop waits for its lock. Native code writes
to descriptor 2 itself: gRPC does so for each failed handshake, which anyone can cause.
"""

import contextlib
import io
import os
import sys
import threading
from typing import TextIO, cast

from servicekit import standard_streams
from servicekit.standard_streams import Descriptor
from servicekit.telemetry.background_lines import BackgroundLines

_STDERR = 2
_PIPE_BYTES = 64 * 1024


class BackgroundStderr(io.TextIOBase):
    """A text stream whose writes never block; text that does not fit is dropped and counted.

    Attributes:
        lines: its queue, for callers that write whole lines.
    """

    def __init__(self, lines: BackgroundLines, descriptor: int) -> None:
        """Write to a queue of lines.

        Args:
            lines: the queue.
            descriptor: the descriptor that the text is written to, for `isatty`.
        """
        self.lines = lines
        self._descriptor = descriptor

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """UTF-8."""
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        """The handling of characters that UTF-8 cannot encode."""
        return "backslashreplace"

    def write(self, text: str) -> int:
        """Queue text and return its length."""
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, is {type(text).__name__}")
        if text:
            self.lines.write(text)
        return len(text)

    def writable(self) -> bool:
        """Return True."""
        return True

    def isatty(self) -> bool:
        """Return True if it is a terminal."""
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        """Return the descriptor of the process's stderr, for its children."""
        return _STDERR


def install() -> TextIO:
    """Replace stderr by one that never blocks, and return it. A second call changes nothing.

    From then on `sys.stderr` queues the text of Python code, and descriptor 2 does not block native
    code: text for a full pipe is dropped. A file stays a file. If stderr is closed, text is lost
    instead of being written into the next file that is opened.
    """
    standard_streams.install()
    stream = sys.stderr
    if isinstance(stream, BackgroundStderr) or not _may_block(stream):
        return stream
    with contextlib.suppress(OSError, ValueError):
        stream.flush()
    kept = os.dup(_STDERR)
    lines = BackgroundLines(Descriptor(kept))
    with contextlib.suppress(OSError):
        _make_native_code_nonblocking(lines)
    sys.stderr = cast("TextIO", BackgroundStderr(lines, kept))
    return sys.stderr


def _may_block(stream: TextIO | None) -> bool:
    try:
        return (
            stream is not None
            and stream.fileno() == _STDERR
            and not standard_streams.is_file(_STDERR)
        )
    except (OSError, ValueError):  # it is closed, or a stream in memory
        return False


def _make_native_code_nonblocking(lines: BackgroundLines) -> None:
    """Replace descriptor 2 by one that does not block.

    Opening the pipe or terminal again gives an open file description of our own: the inherited one
    is shared with other processes, and O_NONBLOCK would affect them. Where that is not possible (a
    socket, or a pipe of another user), native code gets a pipe of our own, which a thread reads;
    the last output of a crash may then be lost.
    """
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        own = os.open(f"/proc/self/fd/{_STDERR}", flags)
    except OSError:
        own = _pumped(lines)
    _put_in_place(own)


def _put_in_place(own: int) -> None:
    """Make a descriptor the process's stderr."""
    if own != _STDERR:
        os.dup2(own, _STDERR)
        os.close(own)


def _pumped(lines: BackgroundLines) -> int:
    """Return the non-blocking write end of a pipe that a thread reads into lines."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=_pump, args=(reading, lines), name="stderr", daemon=True).start()
    return writing


def _pump(reading: int, lines: BackgroundLines) -> None:
    while data := os.read(reading, _PIPE_BYTES):
        lines.write(data.decode("utf-8", "backslashreplace"))
