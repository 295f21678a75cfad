"""Parses messages, and keeps those that are bad apart from a lack of memory."""

from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import DecodeError

from servicekit.memory import is_to_blame

T = TypeVar("T")
_PARSED = 8
"""Bytes that a parsed message takes for each of its own, about."""


def parse(deserialize: Callable[[bytes], T], data: bytes) -> T:
    """Return a message as protobuf reads it.

    Args:
        deserialize: such as `FromString` of a message.
        data: the message.

    Raises:
        DecodeError: it cannot be read.
        MemoryError: there is no memory to read it.
    """
    try:
        return deserialize(data)
    except DecodeError as error:
        if is_to_blame(error, _PARSED * len(data)):
            raise MemoryError("no memory to parse a message") from error
        raise
