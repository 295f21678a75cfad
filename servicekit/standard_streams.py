"""The standard streams of a process: descriptors 0 to 2 are open, and stderr never fails.

A program may be started with closed streams (`>&-`), with a pipe whose reader has gone, or with a
file on a full disk. The next file that it opens would get the number of a closed stream, and
receive what libraries print there.
"""

import contextlib
import errno
import io
import os
import select
import stat
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_STDIN, _STDOUT, _STDERR = 0, 1, 2
_LINE_END = ord("\n")


class OutputError(OSError):
    """Stdout cannot be written. `errno` is EPIPE if its reader has gone."""

    @property
    def sentence(self) -> str:
        """The message for a person; empty: a reader wants no more, such as `head`."""
        if self.errno == errno.EPIPE:
            return ""
        return f"stdout cannot be written: {self.strerror}: the output is incomplete"


class Descriptor:
    """A blocking writer to a descriptor, without a lock.

    A thread that is still blocked when the process ends would keep the lock of a Python stream,
    which is a fatal error for Python. After a write that failed in the middle of a line, the next
    one begins a new line.
    """

    def __init__(self, number: int) -> None:
        """Write to a descriptor, which is not closed here."""
        self._number = number
        self._is_torn = False

    def write(self, text: str) -> None:
        """Write all of the text, as UTF-8. Raises OSError: it could not be written, or in part."""
        self.write_bytes(text.encode("utf-8", "backslashreplace"))

    def write_bytes(self, data: bytes) -> None:
        """Write all of the data. Raises OSError: it could not be written, or only in part."""
        if self._is_torn:
            data = b"\n" + data
        written = 0
        while written < len(data):
            written += self._write_some(data[written:])
            self._is_torn = written < len(data) and data[written - 1] != _LINE_END

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def _write_some(self, data: bytes) -> int:
        while True:
            try:
                return os.write(self._number, data)
            except BlockingIOError:  # the parent process has made it non-blocking
                ready = select.poll()
                ready.register(self._number, select.POLLOUT)
                ready.poll()


class _LossyOutput(io.RawIOBase):
    """The descriptor of a stream whose writes never fail: what cannot be written is lost."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number
        self._descriptor = Descriptor(number)

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def writable(self) -> bool:
        return True

    def write(self, data: "ReadableBuffer", /) -> int:
        copy = bytes(data)
        try:
            self._descriptor.write_bytes(copy)
        except OSError as error:
            self._failed(error)
        return len(copy)

    def _failed(self, error: OSError) -> None:
        """Ignore the error."""


class _Output(_LossyOutput):
    """The descriptor of stdout. Its first failure is an error; from then on it loses all."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self._has_failed = False

    def _failed(self, error: OSError) -> None:
        if not self._has_failed:
            # Python writes what is buffered once more at the end of the process.
            self._has_failed = True
            raise OutputError(error.errno, error.strerror) from error


def open_closed() -> None:
    """Open `/dev/null` as each of the descriptors 0 to 2 that is closed.

    Call this before the process opens a file. Child processes inherit them.
    """
    for number in (_STDIN, _STDOUT, _STDERR):
        try:
            os.fstat(number)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            # The lowest free number is this one, since those below it are open.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def install(*, lossy_stdout: bool = False) -> None:
    """Open the closed streams, and make `sys.stdout` and `sys.stderr` fit to be lost.

    `sys.stderr` never fails: a message that cannot be written is lost. `sys.stdout` raises
    `OutputError` once. Streams that a caller has replaced, and those of Windows, stay as they are.

    Args:
        lossy_stdout: let `sys.stdout` never fail either, because it is not what the process is for.
    """
    open_closed()
    if sys.stdin is None:
        sys.stdin = open(_STDIN, closefd=False)  # noqa: SIM115 - a descriptor
    if _is_own(sys.stdout, _STDOUT):
        output = _LossyOutput(_STDOUT) if lossy_stdout else _Output(_STDOUT)
        sys.stdout = _text(output, sys.stdout, "strict")
    if _is_own(sys.stderr, _STDERR):
        sys.stderr = _text(_LossyOutput(_STDERR), sys.stderr, "backslashreplace")


@contextlib.contextmanager
def flushed() -> Iterator[None]:
    """Flush stdout at the end of the block, or when it exits the program.

    Raises:
        OutputError: stdout cannot be written.
    """
    try:
        yield
    except SystemExit:
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def print_in_background(text: str) -> None:
    """Write text to stdout on a thread of its own, because its reader may never read it.

    Text that cannot be written is lost.
    """
    threading.Thread(target=_print, args=(sys.stdout, text), name="stdout", daemon=True).start()


def _print(stdout: TextIO, text: str) -> None:
    """Write the text, to the descriptor if there is one; see `Descriptor`."""
    with contextlib.suppress(OSError, ValueError):  # it has no reader
        try:
            out: Descriptor | TextIO = Descriptor(stdout.fileno())
        except (OSError, ValueError):  # a stream in memory
            out = stdout
        out.write(text)
        out.flush()


def is_file(number: int) -> bool:
    """Return True if a descriptor is a file or block device, which never waits for a reader."""
    kind = os.fstat(number).st_mode
    return stat.S_ISREG(kind) or stat.S_ISBLK(kind)


def _is_own(stream: TextIO | None, number: int) -> bool:
    """Return True for Python's own stream of a descriptor, or if there is none."""
    if sys.platform == "win32":
        return False
    try:
        return stream is None or (
            isinstance(stream, io.TextIOWrapper)
            and stream.fileno() == number
            and not isinstance(getattr(stream.buffer, "raw", None), _LossyOutput)
        )
    except (OSError, ValueError):  # it is closed, or a stream in memory
        return False


def _text(output: io.RawIOBase, former: TextIO | None, errors: str) -> TextIO:
    """Return a text stream with the properties of the former one."""
    buffer = io.BufferedWriter(output)
    if not isinstance(former, io.TextIOWrapper):
        return io.TextIOWrapper(buffer, "utf-8", errors, line_buffering=True)
    with contextlib.suppress(OSError, ValueError):
        former.flush()
    return io.TextIOWrapper(
        buffer,
        former.encoding,
        former.errors,
        line_buffering=former.line_buffering,
        write_through=former.write_through,
    )
