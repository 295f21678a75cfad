"""Controls of glibc's malloc: fewer arenas, and freed memory returned to the system."""

import contextlib
import ctypes

_M_ARENA_MAX = -8
"""glibc's name for the number of arenas, from its malloc.h."""
_ARENAS = 2


def keep_few_arenas() -> None:
    """Make glibc's malloc use two arenas. Call this before threads are started.

    By default there is an arena for each thread, up to eight per core, and each keeps its freed
    memory. A flood that moves from thread to thread would then take several times the memory that
    is in use.
    """
    _call("mallopt", _M_ARENA_MAX, _ARENAS)


def trim() -> None:
    """Return free pages of malloc to the system."""
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    """Call a function of the C library if it exists, which is so in glibc only."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        getattr(ctypes.CDLL(None), name)(*arguments)
