"""Tells a lack of memory from bad input.

Libraries hide a failed allocation behind the error that they raise for bad input: protobuf behind
DecodeError, libjpeg behind "broken data stream". A caller that is told that its input is bad drops
it, so each such error is looked at twice: by its text, and by whether there is memory now.
"""

import mmap
import re

_MARGIN = 8 * 1024 * 1024
_TEXT = re.compile(
    r"bad[ _]?alloc|out[ _]of[ _]memory|insufficient memory|alloc(ation)?[ _]failed"
    r"|(failed to|cannot|could not|can't) alloc|failure to alloc|memory allocation",
    re.IGNORECASE,
)


def is_lacking(size: int) -> bool:
    """Return True if so many bytes cannot be had now. Touches none of them: it takes some us."""
    try:
        mmap.mmap(-1, size + _MARGIN).close()
    except (OSError, MemoryError, ValueError, OverflowError):
        return True
    return False


def is_to_blame(error: BaseException, size: int = 0) -> bool:
    """Return True if an error is, or may be, one of memory.

    Args:
        error: of a library.
        size: what its work takes, bytes.
    """
    return isinstance(error, MemoryError) or bool(_TEXT.search(str(error))) or is_lacking(size)


def require(size: int) -> None:
    """Check that so many bytes can be had, for work that would end the process otherwise.

    Raises:
        MemoryError: they cannot.
    """
    if is_lacking(size):
        raise MemoryError(f"{size} bytes cannot be had")
