"""A stderr that never makes its process wait: for the log, for tracebacks and for native code.

A pipe whose reader has stopped reading is full after 64 KiB, and the next write waits for ever: in
the thread that commits, while the event loop waits for a lock of that thread's. Native code writes
to descriptor 2 by itself: gRPC does so for each handshake that fails, which any stranger can bring
about.
"""

import contextlib
import io
import os
import select
import stat
import sys
import threading
from typing import TextIO, cast

from servicekit.telemetry.background_lines import BackgroundLines

_STDERR = 2
_NEVER_WAITS = {stat.S_IFREG, stat.S_IFBLK}
_PIPE_BYTES = 64 * 1024


class BackgroundStderr(io.TextIOBase):
    """A text stream whose writes never wait; what it cannot take is dropped and counted.

    Attributes:
        lines: the queue behind it, for who has whole lines.
    """

    def __init__(self, lines: BackgroundLines, descriptor: int) -> None:
        """Write to a queue of lines.

        Args:
            lines: what takes the text.
            descriptor: where the text ends up, for who asks what that is.
        """
        self.lines = lines
        self._descriptor = descriptor

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """UTF-8."""
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        """What becomes of characters that UTF-8 does not have."""
        return "backslashreplace"

    def write(self, text: str) -> int:
        """Take text in and return its length."""
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, is {type(text).__name__}")
        if text:
            self.lines.write(text)
        return len(text)

    def writable(self) -> bool:
        """Return True."""
        return True

    def isatty(self) -> bool:
        """Return whether a person reads it."""
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        """Return the descriptor of the process's stderr, for its children."""
        return _STDERR


class Descriptor:
    """A writer of text to a descriptor that waits as long as it takes, without a lock.

    A thread that still waits when the process ends would keep the lock of one of Python's own
    streams, which Python takes for a fatal error.
    """

    def __init__(self, number: int) -> None:
        """Write to a descriptor, which is not closed here."""
        self._number = number

    def write(self, text: str) -> None:
        """Write all of the text."""
        data = text.encode("utf-8", "backslashreplace")
        while data:
            try:
                data = data[os.write(self._number, data) :]
            except BlockingIOError:  # whoever started us does not want to wait, either
                ready = select.poll()
                ready.register(self._number, select.POLLOUT)
                ready.poll()

    def flush(self) -> None:
        """Do nothing: nothing is kept back."""


def install() -> TextIO:
    """Make stderr one that never waits, and return it; once more changes nothing.

    From then on `sys.stderr` takes whatever Python code writes, and descriptor 2 does not wait for
    native code: what finds the pipe full is dropped. A file stays as it is. Where stderr is closed,
    what is written is lost, and not written into whatever is opened next.
    """
    if sys.stderr is None:
        _put_in_place(os.open(os.devnull, os.O_WRONLY))
        sys.stderr = os.fdopen(_STDERR, "w", closefd=False)
    found = sys.stderr
    if isinstance(found, BackgroundStderr) or not _may_wait(found):
        return found
    with contextlib.suppress(OSError, ValueError):
        found.flush()
    kept = os.dup(_STDERR)
    lines = BackgroundLines(Descriptor(kept))
    with contextlib.suppress(OSError):
        _make_native_code_not_wait(lines)
    sys.stderr = cast("TextIO", BackgroundStderr(lines, kept))
    return sys.stderr


def _may_wait(stream: TextIO | None) -> bool:
    try:
        return (
            stream is not None
            and stream.fileno() == _STDERR
            and stat.S_IFMT(os.fstat(_STDERR).st_mode) not in _NEVER_WAITS
        )
    except (OSError, ValueError):  # it is closed, or a stream in memory
        return False


def _make_native_code_not_wait(lines: BackgroundLines) -> None:
    """Put something that does not wait into the place of descriptor 2.

    To open the pipe or terminal anew gives a description of our own: whether that waits is nobody
    else's affair, while the one that we were given is shared with those who gave it. Where that is
    not possible (a socket, or a pipe of another user) native code gets a pipe of our own, which a
    thread reads: what a crash says last may then be lost.
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
    """Return the writing end, which does not wait, of a pipe that is read into lines."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=_pump, args=(reading, lines), name="stderr", daemon=True).start()
    return writing


def _pump(reading: int, lines: BackgroundLines) -> None:
    while data := os.read(reading, _PIPE_BYTES):
        lines.write(data.decode("utf-8", "backslashreplace"))
