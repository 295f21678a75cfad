"""Threads that nobody waits for any more, and the end of a process that has some.

Python ends a daemon thread that comes back from native code while the interpreter ends. C++ code,
such as that of torch and ONNX Runtime, answers with `terminate`: the process aborts with SIGABRT,
whatever its exit code was to be.
"""

import atexit
import os
import sys
import threading
import weakref
from typing import NoReturn

_abandoned: "weakref.WeakSet[threading.Thread]" = weakref.WeakSet()


def abandon(thread: threading.Thread) -> None:
    """Remember a daemon thread that may still run native code when the process ends."""
    _abandoned.add(thread)


def end_process(code: int | str | None) -> NoReturn:
    """End the process as `sys.exit` does, and without the interpreter's end if a thread is left.

    Args:
        code: the exit code; text is written to stderr, and means 1; None: 0.
    """
    if not any(thread.is_alive() for thread in list(_abandoned)):
        sys.exit(code)
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
        code = 1
    atexit._run_exitfuncs()  # noqa: SLF001 - `os._exit` does not
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code or 0)
