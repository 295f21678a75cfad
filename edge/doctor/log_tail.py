"""The last lines of a log file, for a support bundle."""

import os
from pathlib import Path

TAIL_BYTES = 1 << 20
"""Size of a tail, at most."""


class LogFileError(Exception):
    """A log file that cannot be read as text. The message names it."""


def tail(path: Path, size: int = TAIL_BYTES) -> str:
    """Return the whole lines among the last bytes of a text file.

    A line of which only the end is within the tail is left out: its beginning may say that the rest
    is a secret.

    Args:
        path: the file.
        size: of the tail in bytes, at least 1.

    Raises:
        LogFileError: it cannot be read, or is no text, so that no secret could be recognized.
    """
    try:
        if not path.is_file():
            raise LogFileError(f"{path} is not a file")
        with path.open("rb") as file:
            whole = file.seek(0, os.SEEK_END)
            file.seek(max(whole - size - 1, 0))
            data = file.read(size + 1)
    except OSError as error:
        raise LogFileError(f"{path} cannot be read: {error.strerror}") from error
    if b"\0" in data or data[:2] == b"\x1f\x8b":
        raise LogFileError(f"{path} is no text: unpack a compressed file first")
    if whole > size:
        data = data.partition(b"\n")[2]
    return data.decode(errors="replace")
