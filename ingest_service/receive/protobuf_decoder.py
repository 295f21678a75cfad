"""The decoder that uses protobuf's own parser.

It is slower than `PtarsDecoder`, because it creates Python objects for every prediction.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

import pyarrow as pa
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from sightline.ingest.v1.ingest_service_pb2 import PredictionLogRequest

from ingest_service.receive.decode import Decoded, parse_message, too_many_error
from servicekit.errors import SightlineError

_SCALARS = {
    FieldDescriptor.TYPE_INT64: pa.int64(),
    FieldDescriptor.TYPE_INT32: pa.int32(),
    FieldDescriptor.TYPE_ENUM: pa.int32(),
    FieldDescriptor.TYPE_FLOAT: pa.float32(),
    FieldDescriptor.TYPE_BOOL: pa.bool_(),
    FieldDescriptor.TYPE_STRING: pa.string(),
}
_LABELS = pa.map_(pa.string(), pa.field("value", pa.string(), nullable=False))
_MIN_INT64, _MAX_INT64 = -(2**63), 2**63 - 1


class ProtobufDecoder:
    """A `Decoder` that uses protobuf's own parser."""

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Return the messages as columns; a malformed message is refused without an exception.

        Raises:
            MemoryError: there is not enough memory.
        """
        messages: list[PredictionLogRequest] = []
        refused: dict[int, SightlineError] = {}
        for index, payload in enumerate(payloads):
            message = _read(payload)
            if isinstance(message, SightlineError):
                refused[index] = message
                message = PredictionLogRequest()
            messages.append(message)
        columns, fields = _columns(messages, PredictionLogRequest.DESCRIPTOR)
        return Decoded(pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields)), refused)


def _read(payload: bytes) -> PredictionLogRequest | SightlineError:
    message = parse_message(payload)
    if isinstance(message, SightlineError):
        return message
    return too_many_error(message) or message


def _columns(
    messages: Sequence[Message], kind: Descriptor
) -> tuple[list[pa.Array], list[pa.Field]]:
    columns = [_column(messages, field) for field in kind.fields]
    fields = [
        pa.field(field.name, column.type, nullable=field.has_presence)
        for field, column in zip(kind.fields, columns, strict=True)
    ]
    return columns, fields


def _column(messages: Sequence[Message], field: FieldDescriptor) -> pa.Array:
    """Return the values of a field, one for each message."""
    name: Any = field.name  # HasField is typed for the names of one message
    values = list(map(operator.attrgetter(name), messages))
    if field.has_presence:
        pairs = zip(messages, values, strict=True)
        values = [value if message.HasField(name) else None for message, value in pairs]
    if field.message_type is None and field.is_repeated:
        return _number_lists(values, _SCALARS[field.type])
    if field.message_type is None:
        return pa.array(values, _SCALARS[field.type])
    if field.is_repeated:
        return _lists(values, field.message_type)
    if field.message_type.full_name in _TIMES:
        kind, to_int = _TIMES[field.message_type.full_name]
        return pa.array([None if time is None else to_int(time) for time in values], kind)
    return _structs(values, field.message_type)


def _number_lists(values: Sequence[Any], kind: pa.DataType) -> pa.ListArray:
    """Return lists of scalars, one for each value."""
    items = pa.array(list(chain.from_iterable(values)), kind)
    return pa.ListArray.from_arrays(
        _offsets(values), items, type=pa.list_(pa.field("item", kind, nullable=False))
    )


def _offsets(values: Sequence[Any]) -> pa.Array:
    return pa.array([0, *accumulate(map(len, values))], pa.int32())


def _lists(values: Sequence[Any], kind: Descriptor) -> pa.Array:
    """Return lists of messages, or maps of texts, one for each value."""
    offsets = _offsets(values)
    if kind.GetOptions().map_entry:
        keys = pa.array(chain.from_iterable(values), pa.string())
        items = pa.array(chain.from_iterable(value.values() for value in values), pa.string())
        return pa.MapArray.from_arrays(offsets, keys, items, type=_LABELS)
    columns, fields = _columns(list(chain.from_iterable(values)), kind)
    entries = pa.StructArray.from_arrays(columns, fields=fields)
    item = pa.field("item", entries.type, nullable=False)
    return pa.ListArray.from_arrays(offsets, entries, type=pa.list_(item))


def _structs(messages: Sequence[Message | None], kind: Descriptor) -> pa.StructArray:
    """Return messages as structs; absent ones are null."""
    empty = GetMessageClass(kind)()
    columns, fields = _columns([m if m is not None else empty for m in messages], kind)
    absent = pa.array([message is None for message in messages], pa.bool_())
    return pa.StructArray.from_arrays(columns, fields=fields, mask=absent)


def _microseconds(time: Timestamp) -> int:
    return _clamp(time.seconds * 10**6 + int(time.nanos / 1000))


def _nanoseconds(time: Duration) -> int:
    return _clamp(time.seconds * 10**9 + time.nanos)


def _clamp(number: int) -> int:
    return max(_MIN_INT64, min(_MAX_INT64, number))


_TIMES: Mapping[str, tuple[pa.DataType, Callable[[Any], int]]] = {
    Timestamp.DESCRIPTOR.full_name: (pa.timestamp("us", "UTC"), _microseconds),
    # In ns: a negative inference time of less than 1 us must not be rounded to a valid 0.
    Duration.DESCRIPTOR.full_name: (pa.duration("ns"), _nanoseconds),
}
