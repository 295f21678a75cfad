"""Messages taken apart to their fields, so that a test can put them together wrongly.

What protobuf's classes never write can be written here: fields twice or out of order, lengths that
lie, numbers with more digits than they need, groups, text that is no text.
"""

from contextlib import suppress
from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor, FieldDescriptor

VARINT, FIXED64, LENGTH, GROUP, END_GROUP, FIXED32 = range(6)


@dataclass(slots=True)
class Field:
    """One field as it stands in a message; every part of it may be wrong."""

    number: int
    wire: int
    value: "int | bytes | list[Field]"
    """A number for VARINT; bytes for fixed widths and text; fields for messages and groups."""
    kind: str = ""
    """What the contract says it is: `varint`, `float`, `text`, `message` or nothing."""
    padding: int = 0
    """Bytes by which tag, length or number is longer than it needs to be."""
    lie: int = 0
    """Added to the length that is written."""
    end: int | None = None
    """Number in the tag that ends a group; None: its own; 0: there is no end."""

    raw: bytes = b""
    """The field as it was read, until something in it changes."""

    def copy(self) -> "Field":
        """Returns a copy to change; fields in it must be copied before they are changed."""
        value = self.value
        if isinstance(value, list):
            value = list(value)
        return Field(self.number, self.wire, value, self.kind, self.padding, self.lie, self.end)

    def frozen(self) -> "Field":
        """Returns a copy as it stands now, which may be put anywhere."""
        return Field(self.number, self.wire, b"", self.kind, raw=write([self]))


def read(data: bytes, of: Descriptor) -> list[Field]:
    """Returns the fields of a valid message of this type, and those of the messages in it."""
    fields, at = [], 0
    while at < len(data):
        began, (tag, at) = at, _number(data, at)
        one = Field(tag >> 3, tag & 7, b"")
        at = _read_value(one, data, at, of.fields_by_number[one.number])
        one.raw = data[began:at]
        fields.append(one)
    return fields


def _read_value(one: Field, data: bytes, at: int, known: FieldDescriptor) -> int:
    if one.wire == VARINT:
        one.kind = "varint"
        one.value, at = _number(data, at)
        return at
    size = 4 if one.wire == FIXED32 else 8
    if one.wire == LENGTH:
        size, at = _number(data, at)
    one.kind = "text" if one.wire == LENGTH else "float"
    one.value = data[at : at + size]
    if known.message_type is not None:
        one.kind, one.value = "message", read(one.value, known.message_type)
    return at + size


def write(fields: list[Field]) -> bytes:
    """Returns the fields as bytes."""
    return b"".join(map(_written, fields))


def oddities(data: bytes, of: Descriptor) -> set[str]:
    """Returns in which ways the bytes are such as no protobuf library writes.

    Among them are all those that docs/ingest.md says are read otherwise than by protobuf.
    """
    found: set[str] = set()
    # Bytes that end early, or a text that is none, are refused by everyone.
    with suppress(IndexError):
        _look(data, 0, len(data), of, 0, found)
    return found


def varint(number: int, padding: int = 0) -> bytes:
    """Returns a number of 64 bits, with that many bytes more than it needs."""
    number &= (1 << 64) - 1
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    digits.append(number)
    if padding:
        digits[-1] |= 128
        digits += b"\x80" * (padding - 1) + b"\x00"
    return bytes(digits)


def _written(one: Field) -> bytes:
    if one.raw:
        return one.raw
    tag = varint(one.number << 3 | one.wire, one.padding)
    body = write(one.value) if isinstance(one.value, list) else one.value
    if isinstance(body, int):
        return tag + varint(body, one.padding)
    if one.wire == LENGTH:
        return tag + varint(len(body) + one.lie, one.padding) + body
    if one.wire == GROUP:
        end = one.number if one.end is None else one.end
        return tag + body + (varint(end << 3 | END_GROUP) if end else b"")
    return tag + body


def _number(data: bytes, at: int) -> tuple[int, int]:
    found = shift = 0
    while True:
        byte = data[at]
        found |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return found, at


def _look(
    data: bytes,
    at: int,
    end: int,
    of: Descriptor | None,
    depth: int,
    found: set[str],
    group: int = 0,
) -> int:
    """Add what is odd in a message, or (without a type) in a group up to the tag of its end."""
    seen: set[int] = set()
    while at < end:
        began, (tag, at) = at, _number(data, at)
        number, wire = tag >> 3, tag & 7
        if at - began > 5 or tag >> 32:
            found.add("long tag")
        if number == 0:
            found.add("number 0")
        if wire == END_GROUP:
            if of is None and number != group:
                found.add("another end")
            return at if of is None else end
        known = of.fields_by_number.get(number) if of else None
        nested = known.message_type if known and wire == LENGTH else None
        if known is None or known.is_repeated or nested is None:
            pass
        elif number in seen:
            found.add("message twice")
        seen.add(number)
        if of is not None and of.GetOptions().map_entry and (known is None or wire != LENGTH):
            found.add("foreign field in a label")
        at = _look_into(data, at, end, tag, nested, depth, found)
    return at


def _look_into(
    data: bytes,
    at: int,
    end: int,
    tag: int,
    nested: Descriptor | None,
    depth: int,
    found: set[str],
) -> int:
    """Returns where the value of a field ends; notes what is odd in it."""
    match tag & 7:
        case 0:
            return _number(data, at)[1]
        case 1:
            return at + 8
        case 5:
            return at + 4
        case 2:
            began, (size, at) = at, _number(data, at)
            if at - began > 5:
                found.add("long length")
            if nested is not None:
                _look(data, at, at + size, nested, depth + 1, found)
            return at + size
        case 3:
            if depth > 90:
                found.add("deep group")
            return _look(data, at, end, None, depth + 1, found, group=tag >> 3)
        case _:
            return end
