"""Messages as lists of fields, from which a test can write invalid messages.

It can write bytes that protobuf's classes never write: repeated or misordered fields, wrong
lengths, padded numbers, groups, and text that is not UTF-8.
"""

from contextlib import suppress
from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor, FieldDescriptor

VARINT, FIXED64, LENGTH, GROUP, END_GROUP, FIXED32 = range(6)


@dataclass(slots=True)
class Field:
    """One field of a message; every part of it may be invalid."""

    number: int
    wire: int
    value: "int | bytes | list[Field]"
    """A number for VARINT; bytes for fixed widths and text; fields for messages and groups."""
    kind: str = ""
    """Its kind by the contract: `varint`, `float`, `text`, `message` or empty."""
    padding: int = 0
    """Number of padding bytes of tag, length or number."""
    lie: int = 0
    """Offset added to the written length."""
    end: int | None = None
    """Number in the tag that ends a group; None: its own; 0: there is no end."""

    raw: bytes = b""
    """The field as it was read, until something in it changes."""

    def copy(self) -> "Field":
        """Return a copy to change; fields in it must be copied before they are changed."""
        value = self.value
        if isinstance(value, list):
            value = list(value)
        return Field(self.number, self.wire, value, self.kind, self.padding, self.lie, self.end)

    def frozen(self) -> "Field":
        """Return a copy of the current bytes, which can be inserted anywhere."""
        return Field(self.number, self.wire, b"", self.kind, raw=write([self]))


def read(data: bytes, of: Descriptor) -> list[Field]:
    """Return the fields of a valid message of this type, and those of the messages in it."""
    fields, at = [], 0
    while at < len(data):
        began, (tag, at) = at, _number(data, at)
        field = Field(tag >> 3, tag & 7, b"")
        at = _read_value(field, data, at, of.fields_by_number[field.number])
        field.raw = data[began:at]
        fields.append(field)
    return fields


def _read_value(field: Field, data: bytes, at: int, known: FieldDescriptor) -> int:
    if field.wire == VARINT:
        field.kind = "varint"
        field.value, at = _number(data, at)
        return at
    size = 4 if field.wire == FIXED32 else 8
    if field.wire == LENGTH:
        size, at = _number(data, at)
    field.kind = "text" if field.wire == LENGTH else "float"
    field.value = data[at : at + size]
    if known.message_type is not None:
        field.kind, field.value = "message", read(field.value, known.message_type)
    return at + size


def write(fields: list[Field]) -> bytes:
    """Return the fields as bytes."""
    return b"".join(map(_written, fields))


def oddities(data: bytes, of: Descriptor) -> set[str]:
    """Return the kinds of oddities in the bytes that no protobuf library writes.

    They include all kinds that docs/reference/errors.md lists as differences of the decoders.
    """
    odd: set[str] = set()
    # Both decoders refuse bytes that end early, and text that is not UTF-8.
    with suppress(IndexError):
        _look(data, 0, len(data), of, 0, odd)
    return odd


def varint(number: int, padding: int = 0) -> bytes:
    """Return a 64-bit number with this many padding bytes."""
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


def _written(field: Field) -> bytes:
    if field.raw:
        return field.raw
    tag = varint(field.number << 3 | field.wire, field.padding)
    body = write(field.value) if isinstance(field.value, list) else field.value
    if isinstance(body, int):
        return tag + varint(body, field.padding)
    if field.wire == LENGTH:
        return tag + varint(len(body) + field.lie, field.padding) + body
    if field.wire == GROUP:
        end = field.number if field.end is None else field.end
        return tag + body + (varint(end << 3 | END_GROUP) if end else b"")
    return tag + body


def _number(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at


def _look(
    data: bytes,
    at: int,
    end: int,
    of: Descriptor | None,
    depth: int,
    odd: set[str],
    group: int = 0,
) -> int:
    """Add the oddities of a message, or (without a type) of a group up to the tag of its end."""
    seen: set[int] = set()
    while at < end:
        began, (tag, at) = at, _number(data, at)
        number, wire = tag >> 3, tag & 7
        if at - began > 5 or tag >> 32:
            odd.add("long tag")
        if number == 0:
            odd.add("number 0")
        if wire == END_GROUP:
            if of is None and number != group:
                odd.add("another end")
            return at if of is None else end
        known = of.fields_by_number.get(number) if of else None
        nested = known.message_type if known and wire == LENGTH else None
        if known is None or known.is_repeated or nested is None:
            pass
        elif number in seen:
            odd.add("message twice")
        seen.add(number)
        if of is not None and of.GetOptions().map_entry and (known is None or wire != LENGTH):
            odd.add("foreign field in a label")
        at = _look_into(data, at, end, tag, known, depth, odd)
    return at


def _look_into(
    data: bytes,
    at: int,
    end: int,
    tag: int,
    known: FieldDescriptor | None,
    depth: int,
    odd: set[str],
) -> int:
    """Return the end of a field's value, and add its oddities."""
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
                odd.add("long length")
            if known is not None and known.message_type is not None:
                _look(data, at, at + size, known.message_type, depth + 1, odd)
            if known is not None and known.type == FieldDescriptor.TYPE_FLOAT and size % 4:
                odd.add("cut number")
            return at + size
        case 3:
            if depth > 90:
                odd.add("deep group")
            return _look(data, at, end, None, depth + 1, odd, group=tag >> 3)
        case _:
            return end
