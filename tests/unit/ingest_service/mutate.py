"""Generators of damaged messages, whose bytes or fields are changed, cut, doubled or moved."""

import random
import struct
from collections.abc import Iterator, Sequence
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from sightline.ingest.v1.ingest_service_pb2 import PredictionLogRequest

from tests.unit.ingest_service import wire
from tests.unit.ingest_service.samples import (
    NOW,
    detection,
    gap,
    header,
    prediction,
    request,
    shapes,
    timestamp,
)


def rich_message() -> bytes:
    """Return a small message with every field of the contract."""
    full = prediction(
        1,
        image_width=640,
        image_height=480,
        model_version="1",
        source="PREDICTION_SOURCE_CLOUD",
        cloud_reason="CLOUD_REASON_DEVICE_SLOW",
        inference_time=Duration(nanos=12_000_000),
        detections=[detection(track_id=-7), detection(box=None), *shapes()],
        defect_detected=True,
        labels={"line": "3", "shift": "late"},
        trace_id="0123456789abcdef" * 2,
    )
    head = header(device_time=timestamp(NOW), device_monotonic=Duration(seconds=5), client="test/1")
    declared = timestamp(NOW - timedelta(hours=1))
    return request(
        full, prediction(2), gap(3, 4, declared_at=declared), head=head
    ).SerializeToString()


def mutated(seed: int, count: int) -> Iterator[bytes]:
    """Yield `count` damaged messages; the same ones for the same seed."""
    chance = random.Random(seed)
    original = rich_message()
    for _ in range(count):
        yield damaged(original, chance)


def damaged(original: bytes, chance: random.Random) -> bytes:
    """Return a message with damaged bytes."""
    data = bytearray(original)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        _damage(data, chance)
    return bytes(data)


def _damage(data: bytearray, chance: random.Random) -> None:
    if not data:
        return
    at = chance.randrange(len(data))
    end = min(len(data), at + chance.randrange(1, 20))
    match chance.randrange(6):
        case 0:
            data[at] = chance.randrange(256)
        case 1:
            data[at] ^= 1 << chance.randrange(8)
        case 2:
            del data[at:]
        case 3:
            del data[at:end]
        case 4:
            data[at:at] = data[at:end]
        case 5:
            data[at:at] = chance.randbytes(chance.randrange(1, 6))


def hostile(seed: int, count: int) -> Iterator[bytes]:
    """Yield `count` messages with wrong fields, some with damaged bytes; the same for a seed."""
    chance = random.Random(seed)
    original = wire.read(rich_message(), PredictionLogRequest.DESCRIPTOR)
    for _ in range(count):
        yield spoiled(original, chance)


def spoiled(original: Sequence[wire.Field], chance: random.Random) -> bytes:
    """Return a message with wrong fields, and sometimes with damaged bytes as well."""
    fields = list(original)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        _spoil(fields, chance)
    data = bytearray(wire.write(fields))
    if chance.random() < 0.05:
        _damage(data, chance)
    return bytes(data)


_NUMBERS = (
    *(0, 1, 2, 3, 7, 9, 10, 64, 127, 128, 65_535, 65_536, 946_684_799, 999_999_999, 10**9),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 253_402_300_799, 253_402_300_800, 315_576_000_001),
    *(2**53, 9_223_372_036_854, 9_223_372_036_855, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 2),
    *(2**64 - 62_135_596_800, 2**64 - 62_135_596_801, 2**64 - 10**9, 2**64 - 2**31),
)
_FLOATS = (
    *(struct.pack("<f", value) for value in (0.0, -0.0, 1.0, 1.0000001, -1e-45, 1e-45, -1.0)),
    *(struct.pack("<f", value) for value in (65_536.0, 3.4e38, -3.4e38)),
    *(b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff", b"\x00\x00\xc0\x7f"),
    *(b"\x01\x00\x80\x7f", b"\xff\xff\xff\xff"),
)
"""Infinities and not-a-numbers of several kinds among them."""
_TEXTS = (
    *(b"", b"\x00", b"x", b"a\x00b", "é".encode(), "\U0001f600".encode(), "\ufeff".encode()),
    *(b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xed\xa0\xbd\xed\xb8\x80", b"\xf4\x90\x80\x80"),
    *(b"\xe2\x82", b"\x80", b"x" * 256, b"x" * 257, "é".encode() * 128 + b"x", b"x" * 512),
    *(b"x" * 513, b"x" * 1024, b"x" * 1025, b"line", b"shift", b"0" * 32, b"A" * 32, b"0" * 31),
    *(b"0" * 32 + b"\n", b"'; DROP TABLE predictions; --"),
)
"""Not UTF-8: bytes of no text, overlong forms, surrogates, too high, cut short."""
_FOREIGN = (15, 16, 99, 2047, 18_999, 19_000, 2**29 - 1)


def _spoil(fields: list[wire.Field], chance: random.Random) -> None:
    """Damage one field."""
    if not fields:
        return
    elsewhere = _place(fields, chance)[0]
    holder, at = _place(fields, chance)
    match chance.randrange(16):
        case 0 | 1 | 2 | 3 | 4:
            _set_value(holder[at], chance)
        case 5 | 6 | 7 | 8 | 9 | 10:
            _rearrange(fields, holder, at, chance)
        case 11:
            holder[at].value = wire.write(elsewhere)
            holder[at].wire = wire.LENGTH
        case _:
            _misspell(holder[at], chance)


def _rearrange(
    fields: list[wire.Field], holder: list[wire.Field], at: int, chance: random.Random
) -> None:
    """Delete, repeat, move or add a field."""
    match chance.randrange(6):
        case 0:
            del holder[at]
        case 1:
            holder.insert(at, holder[at].copy())
        case 2:  # again, with another value
            again = holder[at].copy()
            _set_value(again, chance)
            holder.insert(chance.randrange(len(holder) + 1), again)
        case 3:  # where it does not belong
            field = holder[at].frozen()
            _place(fields, chance)[0].append(field)
        case 4:
            chance.shuffle(holder)
        case _:
            holder.insert(at, _foreign(chance))


def _misspell(field: wire.Field, chance: random.Random) -> None:
    """Make the bytes around a field's value invalid, or unlike those of any library."""
    match chance.randrange(4):
        case 0:
            field.padding = chance.choice((1, 2, 4, 7, 9, 12))
        case 1:
            field.lie = chance.choice((-2, -1, 1, 2, 100, 2**31, 2**32, -(2**32)))
        case 2:  # another wire type than the contract's
            field.wire = chance.randrange(8)
        case _:
            field.number = chance.choice((0, *range(1, 15), *_FOREIGN, 2**29, 2**32 + field.number))


def _place(fields: list[wire.Field], chance: random.Random) -> tuple[list[wire.Field], int]:
    """Return a random position at any depth: a list of fields to change and an index in it."""
    while True:
        at = chance.randrange(len(fields))
        field = fields[at] = fields[at].copy()
        if not isinstance(field.value, list) or not field.value or chance.random() < 0.05:
            return fields, at
        fields = field.value


def _set_value(field: wire.Field, chance: random.Random) -> None:
    """Set a value of the field's kind that is at a bound or beyond it."""
    match field.kind:
        case "varint":
            field.value = chance.choice((*_NUMBERS, chance.getrandbits(64)))
        case "float":
            field.value = chance.choice((*_FLOATS, chance.randbytes(4)))
        case "text":
            field.value = chance.choice((*_TEXTS, chance.randbytes(chance.randrange(8))))
        case _:
            field.value = []


def _foreign(chance: random.Random) -> wire.Field:
    """Return a field that the contract does not have."""
    number = chance.choice((*_FOREIGN, chance.randrange(1, 20)))
    match chance.randrange(7):
        case 0:
            return wire.Field(number, wire.VARINT, chance.getrandbits(64))
        case 1:
            return wire.Field(number, wire.FIXED64, chance.randbytes(8))
        case 2:
            return wire.Field(number, wire.FIXED32, chance.randbytes(4))
        case 3:
            return wire.Field(number, wire.LENGTH, chance.randbytes(chance.randrange(9)))
        case 4:
            return wire.Field(number, wire.GROUP, [wire.Field(3, wire.VARINT, 7)])
        case 5:
            depth = chance.choice((3, 60, 101, 200))
            opening, end = (
                wire.varint(number << 3 | kind) for kind in (wire.GROUP, wire.END_GROUP)
            )
            return wire.Field(number, wire.GROUP, opening * depth + end * depth)
        case _:  # without its end, or with that of another
            return wire.Field(number, wire.GROUP, [], end=chance.choice((0, number + 1)))
