r"""Conversion of names of files to text that can be logged, sent and printed.

A name in a file system is bytes. Python returns bytes that are no UTF-8 as lone surrogates, which
neither protobuf nor JSON nor a terminal accepts.
"""

import hashlib
import os
from pathlib import Path

_HASH_DIGITS = 16


def readable(name: str | Path, max_bytes: int | None = None) -> str:
    r"""Return a name as valid text, which is the name itself if that is text and short enough.

    A byte that is no UTF-8 becomes `\x` and two hex digits. A longer name becomes `~`, 16 hex
    digits of the SHA-256 of the whole text, `~`, and as many of its last characters as fit, so that
    long names stay different and keep their ends.

    Args:
        name: a name or path, as `os` returns it.
        max_bytes: maximum size of the result in UTF-8, > 18; None: any.

    Example:
        >>> readable("part-1.jpg"), readable("part-\udcff.jpg")
        ('part-1.jpg', 'part-\\xff.jpg')
        >>> readable("belt/" * 100 + "part-1.jpg", 40)
        '~d63874995fc71aa2~t/belt/belt/part-1.jpg'
    """
    text = str(name)
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        text = _escaped(text)
        encoded = text.encode()
    if max_bytes is None or len(encoded) <= max_bytes:
        return text
    digest = hashlib.sha256(encoded).hexdigest()[:_HASH_DIGITS]
    tail = encoded[len(encoded) - max_bytes + _HASH_DIGITS + 2 :]
    return f"~{digest}~{tail.decode(errors='ignore')}"


def printable(text: str) -> str:
    r"""Return text without characters that control a terminal or a line, which become escapes.

    Example:
        >>> printable("pit\x1b[2J\n")
        'pit\\x1b[2J\\n'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _as_escape(c) for c in text)


def _as_escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _escaped(text: str) -> str:
    try:
        return os.fsencode(text).decode(errors="backslashreplace")
    except UnicodeEncodeError:  # surrogates that stand for no byte
        return text.encode(errors="backslashreplace").decode()
