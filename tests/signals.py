"""Signal handling of the processes that tests start, independent of the tests' own parent."""

import signal
from types import FrameType

# Python ignores these itself, and `subprocess` puts them back in the child.
_OF_PYTHON = {signal.Signals.SIGPIPE, signal.Signals.SIGXFSZ}


def start_children_with_defaults() -> list[int]:
    """Start every later child with no signal ignored and none blocked; return what was ignored.

    A shell's background job, `nohup` and some CI runners ignore SIGINT, SIGQUIT or SIGHUP, and a
    process inherits that from its parent: Ctrl-C, which a test sends, would never reach
    `sightline log`. A handler that does nothing ignores the signal as well, but is not inherited:
    `exec` puts the default action back. So this holds for every way to start a process.
    """
    ignored: list[int] = [
        number
        # Linux keeps 32 and 33 for its threads, and they are not among these: glibc lets no program
        # change them, and some sandboxes start processes with one of them ignored.
        for number in sorted(signal.valid_signals())
        if number not in _OF_PYTHON and signal.getsignal(number) is signal.SIG_IGN
    ]
    for number in ignored:
        signal.signal(number, _do_nothing)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return ignored


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Ignore a signal."""
