"""Memory that was freed and that the C library keeps: have it kept less, and given back."""

import contextlib
import ctypes

_M_ARENA_MAX = -8
"""glibc's name for the number of arenas, from its malloc.h."""
_FEW = 2


def keep_few_arenas() -> None:
    """Have glibc's malloc use two arenas; to be called before there are threads.

    It makes one for each thread, up to eight a core, and keeps what was freed for each of them: a
    flood that moves from thread to thread would take several times what is held at a time.
    """
    _call("mallopt", _M_ARENA_MAX, _FEW)


def trim() -> None:
    """Return free pages of malloc to the system."""
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    """Call a function of the C library, where it has it: glibc alone does."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        getattr(ctypes.CDLL(None), name)(*arguments)
