"""Tests that tell a lack of memory from bad input.

Libraries report a failed allocation as bad input: protobuf as DecodeError, libjpeg as "broken data
stream". A caller drops input that is reported as bad, so each such error is checked twice: by its
text, and by an attempt to allocate memory.
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
    """Return True if `size` bytes cannot be allocated now. Takes some us: no byte is touched."""
    try:
        mmap.mmap(-1, size + _MARGIN).close()
    except (OSError, MemoryError, ValueError, OverflowError):
        return True
    return False


def is_to_blame(error: BaseException, size: int = 0) -> bool:
    """Return True if an error is, or may be, one of memory.

    Args:
        error: of a library.
        size: memory that the work takes, bytes.
    """
    return isinstance(error, MemoryError) or bool(_TEXT.search(str(error))) or is_lacking(size)


def require(size: int) -> None:
    """Check that `size` bytes can be allocated, before work that would end the process otherwise.

    Raises:
        MemoryError: they cannot be allocated.
    """
    if is_lacking(size):
        raise MemoryError(f"{size} bytes cannot be allocated")
