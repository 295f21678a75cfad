"""External file names of an ONNX model, parsed from its wire format. Pure.

Models may be untrusted, so no place is left out: tensors occur in nested graphs, functions, sparse
tensors and training graphs, in any encoding that protobuf allows.
"""

from collections.abc import Iterator

# Message type of each field that leads to a tensor, from onnx.proto.
MESSAGES = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
}
_ENTRY = "StringStringEntryProto"
_KEY, _VALUE = 1, 2  # fields of an entry
_NODE, _OPERATOR = "NodeProto", 4
_LOCATION, _CONTEXT = b"location", b"EPContext"
_WINDOW = 1024 * 1024  # bytes; a search holds the interpreter lock
_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}  # bytes by wire type
_LONGEST_START = 20  # bytes of a tag and a length
_TAG_MASK = 0xFFFF_FFFF  # protobuf ignores higher bits


def find_names(content: bytes) -> list[bytes]:
    """Return the names of the external data files of an ONNX model, without duplicates.

    Raises:
        ValueError: it is not an ONNX file, or loads code that an execution provider has compiled.
    """
    if not _mentions(content, _LOCATION) and not _mentions(content, _CONTEXT):
        return []  # most files; the search is fast
    names: set[bytes] = set()
    unparsed = [("ModelProto", memoryview(content))]
    while unparsed:
        kind, message = unparsed.pop()
        if kind == _ENTRY:
            names |= _location(message)
            continue
        for field, value in _fields(message):
            if kind == _NODE and field == _OPERATOR and value == _CONTEXT:
                raise ValueError("it contains an EPContext node, which loads compiled code")
            if field in MESSAGES[kind]:
                unparsed.append((MESSAGES[kind][field], value))
    return sorted(names)


def outline(content: bytes) -> tuple[list[tuple[int, int, int]], int]:
    """Return the fields at the top of a protobuf message, and the bytes that it lacks at its end.

    Returns:
        Number, wire type and length in bytes of each field (0 for numbers), the last of which may
        extend beyond the end; and by how many bytes it does.

    Raises:
        ValueError: it is not a protobuf message.
    """
    message, at = memoryview(content), 0
    found: list[tuple[int, int, int]] = []
    while at < len(message):
        try:
            number, wire, length, at = _field(message, at)
        except ValueError:
            if found and len(message) - at < _LONGEST_START:
                return found, 1  # cut off between the parts of a field's start
            raise
        found.append((number, wire, length))
    return found, at - len(message)


def _location(entry: memoryview) -> set[bytes]:
    # If a field occurs twice, protobuf uses the last one; this returns all of them.
    fields = [(field, bytes(value)) for field, value in _fields(entry)]
    if (_KEY, _LOCATION) not in fields:
        return set()
    return {value for field, value in fields if field == _VALUE} or {b""}


def _mentions(content: bytes, text: bytes) -> bool:
    """Return True if the content contains a text; let other threads run between two windows."""
    overlap = len(text) - 1
    return any(
        content.find(text, at, at + _WINDOW + overlap) >= 0
        for at in range(0, len(content), _WINDOW)
    )


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and content of every length-delimited field: strings, bytes and messages.

    Raises:
        ValueError: it is not a protobuf message, or has groups, which ONNX does not use.
    """
    at = 0
    while at < len(message):
        field, wire, length, at = _field(message, at)
        if wire == _BYTES and at <= len(message):
            yield field, message[at - length : at]
    if at > len(message):
        raise ValueError("it is not an ONNX file: a field extends beyond the end of its message")


def _field(message: memoryview, at: int) -> tuple[int, int, int, int]:
    """Return a field's number, wire type and length of its content, and the position after it."""
    tag, at = _varint(message, at)
    wire, length = tag & 7, 0
    if wire == _VARINT:
        _, at = _varint(message, at)
    elif wire == _BYTES:
        length, at = _varint(message, at)
    elif wire in _FIXED:
        length = _FIXED[wire]
    else:
        raise ValueError(f"it is not an ONNX file: found a field of wire type {wire}")
    return (tag & _TAG_MASK) >> 3, wire, length, at + length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return a varint and the position after it."""
    number = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80:
            return number, at
    raise ValueError("it is not an ONNX file: a varint is not terminated")
