"""Give memory that was freed back to the system, where the C library keeps it."""

import contextlib
import ctypes


def trim() -> None:
    """Return free pages of malloc to the system; do nothing where glibc is not the C library.

    glibc keeps what was freed for each of its arenas. Messages of a flood are spread over all of
    them, so without this the process would stay as large as its largest moments together.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
