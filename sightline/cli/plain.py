"""Messages of the contract as plain values for JSON.

Numbers are numbers, 64-bit counts too: protobuf's own JSON writes those as texts. Times are RFC
3339, lengths of time are seconds, an enum is its word in lower case without its prefix. Absent is
null.
"""

import base64
import json
import struct
from collections.abc import Iterable, Mapping
from typing import Any, cast

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

_JSON_TEXTS = ("sightline.ingest.v1.StoredRejection.original",)
"""Fields whose text is JSON already."""


def plain(message: Message) -> dict[str, object]:
    """Return a message as JSON holds it, by the contract's field names.

    Example:
        >>> from sightline.ingest.v1.ingest_pb2 import CountByKey
        >>> plain(CountByKey(key="gate-1", count=5_000_000_000))
        {'key': 'gate-1', 'count': 5000000000, 'defects': 0, 'with_verdict': None}
    """
    return {
        field.name: _value(cast("FieldDescriptor", field), getattr(message, field.name))
        if not field.has_presence or message.HasField(cast("Any", field.name))
        else None
        for field in message.DESCRIPTOR.fields
    }


def _value(field: FieldDescriptor, value: object) -> object:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        item = kind.fields_by_name["value"]
        return {
            str(key): _single(item, entry)
            for key, entry in cast("Mapping[Any, Any]", value).items()
        }
    if field.is_repeated:
        return [_single(field, entry) for entry in cast("Iterable[object]", value)]
    return _single(field, value)


def _single(field: FieldDescriptor, value: object) -> object:
    if isinstance(value, Timestamp):
        return value.ToJsonString()
    if isinstance(value, Duration):
        return value.seconds + value.nanos / 1e9
    if isinstance(value, Message):
        return plain(value)
    if field.enum_type is not None:
        return word_of(field.enum_type, cast("int", value))
    if field.full_name in _JSON_TEXTS:
        loaded: object = json.loads(cast("str", value))
        return loaded
    is_short = field.type == FieldDescriptor.TYPE_FLOAT
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return _shortest(value) if isinstance(value, float) and is_short else value


def word_of(enum: EnumDescriptor, number: int) -> str | None:
    """Return the word of a value of an enum; None: unspecified. A newer value is its number."""
    value = enum.values_by_number.get(number)
    if value is None:
        return str(number)
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return value.name.removeprefix(prefix).lower() if number else None


def _shortest(value: float) -> float:
    """Return the shortest number that is this number in 32 bits: 0.9, not 0.8999999762."""
    for digits in (6, 7, 8):
        short = float(f"{value:.{digits}g}")
        if abs(short) < 3.4e38 and struct.unpack("<f", struct.pack("<f", short)) == (value,):
            return short
    return value
