"""Parsing of messages that tells malformed ones from a lack of memory."""

from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import DecodeError

from servicekit.memory import is_to_blame

T = TypeVar("T")
_PARSED = 8
"""Approximate bytes of memory per byte of a parsed message."""


def parse(deserialize: Callable[[bytes], T], data: bytes) -> T:
    """Return a parsed message.

    Args:
        deserialize: such as `FromString` of a message.
        data: the message.

    Raises:
        DecodeError: the message is malformed.
        MemoryError: there is no memory to parse it.
    """
    try:
        return deserialize(data)
    except DecodeError as error:
        if is_to_blame(error, _PARSED * len(data)):
            raise MemoryError("no memory to parse a message") from error
        raise
