"""Messages of the contract as plain values for JSON.

Names are those of the contract. Numbers are numbers, 64-bit counts too: protobuf's own JSON writes
those as strings, which `jq` compares and divides without an error and with a wrong result. Times
are RFC 3339 texts, lengths of time are seconds, bytes are base64, an enum is its word in lower case
without its prefix. Absent is null, and so is the unspecified value of an enum.
"""

import base64
import json
import struct
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

TIME, SPAN = Timestamp.DESCRIPTOR.full_name, Duration.DESCRIPTOR.full_name
_JSON_TEXTS = ("sightline.ingest.v1.StoredRejection.original",)
"""Fields of type string whose text is JSON already; it is not quoted a second time."""
_FLOAT = struct.Struct("<f")
_Convert = Callable[[Any], object]


def plain(message: Message) -> dict[str, object]:
    """Return a message as JSON holds it.

    Example:
        >>> from sightline.ingest.v1.ingest_pb2 import CountByKey
        >>> plain(CountByKey(key="gate-1", count=5_000_000_000))
        {'key': 'gate-1', 'count': 5000000000, 'defects': 0, 'with_verdict': None}
    """
    return {
        name: convert(getattr(message, name))
        if not has_presence or message.HasField(cast("Any", name))
        else None
        for name, has_presence, convert in _fields(message.DESCRIPTOR)
    }


def words_of(enum: EnumDescriptor) -> dict[int, str | None]:
    """Return the word of each value of an enum by its number; None: the unspecified value."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {
        value.number: value.name.removeprefix(prefix).lower() if value.number else None
        for value in enum.values
    }


def is_map(field: FieldDescriptor) -> bool:
    """Return True if a field is a map."""
    kind = field.message_type
    return kind is not None and kind.GetOptions().map_entry


def is_json_text(field: FieldDescriptor) -> bool:
    """Return True if the text of a field is JSON, which becomes a value of its own."""
    return field.full_name in _JSON_TEXTS


def value_of(field: FieldDescriptor) -> FieldDescriptor:
    """Return the field that holds the values of a map."""
    return cast("Descriptor", field.message_type).fields_by_name["value"]


@cache
def _fields(descriptor: Descriptor) -> tuple[tuple[str, bool, _Convert], ...]:
    return tuple((field.name, field.has_presence, _converter(field)) for field in descriptor.fields)


def _converter(field: FieldDescriptor) -> _Convert:
    if is_map(field):
        value = _single(value_of(field))
        return lambda entries: {str(key): value(entry) for key, entry in entries.items()}
    single = _single(field)
    if field.is_repeated:
        if single is _same:
            return list
        return lambda values: [single(value) for value in cast("Iterable[Any]", values)]
    return single


def _single(field: FieldDescriptor) -> _Convert:
    if field.message_type is not None:
        kinds = {TIME: Timestamp.ToJsonString, SPAN: _seconds}
        return cast("_Convert", kinds.get(field.message_type.full_name, plain))
    if field.enum_type is not None:
        words = words_of(field.enum_type)
        return lambda number: words.get(number, str(number))
    if is_json_text(field):
        return _parsed
    if field.type == FieldDescriptor.TYPE_FLOAT:
        return _shortest
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _base64
    return _same


def _same(value: object) -> object:
    return value


def _parsed(text: str) -> object:
    try:
        loaded: object = json.loads(text)
    except ValueError:
        return text
    return loaded


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _shortest(value: float) -> float:
    """Return the shortest number that is this number in 32 bits: 0.9, not 0.8999999762."""
    for digits in (6, 7, 8):
        short = float(f"{value:.{digits}g}")
        if _is_same_float(short, value):
            return short
    return float(f"{value:.9g}")


def _is_same_float(short: float, value: float) -> bool:
    try:
        return cast("float", _FLOAT.unpack(_FLOAT.pack(short))[0]) == value
    except OverflowError:  # rounding up has left the range of 32 bits
        return False
