"""Protobuf's wire format for predictions: encoders for fields, entries and whole messages.

The module relies on one property of the format: a message is the concatenation of its fields, and
entries of a repeated field may stand anywhere among them. Tags follow
`proto/sightline/types/v1/prediction.proto` and `proto/sightline/ingest/v1`; the tests compare the
results with protobuf's own parser.
"""

import math
import sys
from array import array
from collections.abc import Iterable
from functools import lru_cache

MAX_MESSAGE = 4 << 20
"""Maximum size of a message that the ingest service accepts, in bytes."""

_ONE_BYTE = tuple(bytes([n]) for n in range(128))


def sequence_field(sequence: int) -> bytes:
    """Return the sequence field that precedes a prediction's body."""
    return b"\x08" + varint(sequence)


def prediction_entry(prediction: bytes) -> bytes:
    """Return an encoded prediction as an entry of `PredictionLogRequest.predictions`."""
    return nested(b"\x12", prediction)


def gap_entry(first: int, last: int, reason: int, declared_at: float) -> bytes:
    """Return an entry of `PredictionLogRequest.gaps`.

    Args:
        first: first sequence of the run, >= 1.
        last: last sequence of the run, >= first.
        reason: number of the `GapReason`.
        declared_at: Unix seconds by the device's clock.
    """
    body = integer(b"\x08", first) + integer(b"\x10", last) + integer(b"\x18", reason)
    return nested(b"\x1a", body + nested(b"\x22", timestamp(declared_at)))


def messages(
    header: bytes, entries: Iterable[bytes], batch_size: int, batch_bytes: int = MAX_MESSAGE
) -> list[bytes]:
    """Return entries as the messages of one `PredictionLog` stream.

    Args:
        header: a serialised `LogHeader`, for the first message.
        entries: results of `prediction_entry` and `gap_entry`, in ascending order.
        batch_size: limit for the entries in one message.
        batch_bytes: limit for the bytes of one message; a larger entry is sent alone.
    """
    batch = [nested(b"\x0a", header)]
    size, encoded = len(batch[0]), []
    in_batch = 0
    for entry in entries:
        if in_batch and (in_batch == batch_size or size + len(entry) > batch_bytes):
            encoded.append(b"".join(batch))
            batch, size, in_batch = [], 0, 0
        batch.append(entry)
        size += len(entry)
        in_batch += 1
    encoded.append(b"".join(batch))
    return encoded


def varint(number: int) -> bytes:
    """Return the varint of a signed 64-bit integer, as protobuf encodes int32 and int64."""
    if 0 <= number < 1 << 14:
        return _ONE_BYTE[number] if number < 128 else bytes((number & 127 | 128, number >> 7))
    number &= (1 << 64) - 1
    digits = []
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def nested(tag: bytes, body: bytes) -> bytes:
    """Return a length-delimited field: a message, text or bytes."""
    size = len(body)
    return tag + (_ONE_BYTE[size] if size < 128 else varint(size)) + body


def text(tag: bytes, text: str) -> bytes:
    """Return a text field, or no bytes for an empty text, as in proto3."""
    return nested(tag, text.encode()) if text else b""


def integer(tag: bytes, number: int) -> bytes:
    """Return an integer field, or no bytes for 0, as in proto3."""
    return tag + varint(number) if number else b""


def packed_floats(tag: bytes, numbers: "array[float]") -> bytes:
    """Return a packed field of 32-bit floats, or no bytes for none, as in proto3."""
    return nested(tag, _little_endian(numbers)) if numbers else b""


def float_messages(tag: bytes, width: int, numbers: "array[float]") -> bytes:
    """Return entries of a repeated message whose fields 1 to `width` are 32-bit floats.

    The numbers are copied byte by byte with a stride, without a Python object for each.

    Args:
        tag: of the repeated field.
        width: number of fields, 1 to 15.
        numbers: `[n * width]`, the fields of each message in turn.
    """
    fields = b"".join(bytes((number << 3 | 5, 0, 0, 0, 0)) for number in range(1, width + 1))
    entry = nested(tag, fields)
    start, step = len(entry) - len(fields), len(entry)
    source, written = _little_endian(numbers), bytearray(entry * (len(numbers) // width))
    for at in range(4 * width):
        written[start + at // 4 * 5 + 1 + at % 4 :: step] = source[at :: 4 * width]
    return bytes(written)


def _little_endian(numbers: "array[float]") -> bytes:
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()


def timestamp(seconds: float) -> bytes:
    """Return the body of a `google.protobuf.Timestamp` for a time in Unix seconds."""
    whole = math.floor(seconds)
    return _whole_seconds(whole) + integer(b"\x10", int((seconds - whole) * 1e9))


@lru_cache(maxsize=4)
def _whole_seconds(seconds: int) -> bytes:
    return integer(b"\x08", seconds)
