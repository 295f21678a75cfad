"""The files that an ONNX file names: read off its wire format, wherever in the model they stand.

A model is text of somebody else, so nothing is taken on trust: tensors are found in graphs within
nodes, in functions, sparse tensors and training graphs, in any spelling that protobuf allows. Pure.
"""

from collections.abc import Iterator

# Which message the field of a message is; those on the way to a tensor, as in onnx.proto.
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
_WINDOW = 1024 * 1024  # bytes; a search keeps every other thread of the process waiting
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_TAG_MASK = 0xFFFF_FFFF  # protobuf drops the bits above


def find_names(content: bytes) -> list[bytes]:
    """Return the names of the files that an ONNX file says its weights are in, each once.

    Raises:
        ValueError: it is no ONNX file, or loads what an execution provider has compiled elsewhere.
    """
    if not _mentions(content, _LOCATION) and not _mentions(content, _CONTEXT):
        return []  # as most files, and read in no time
    names: set[bytes] = set()
    waiting = [("ModelProto", memoryview(content))]
    while waiting:
        kind, message = waiting.pop()
        if kind == _ENTRY:
            names |= _location(message)
            continue
        for field, value in _fields(message):
            if kind == _NODE and field == _OPERATOR and value == _CONTEXT:
                raise ValueError("it holds an EPContext node, which loads compiled code")
            if field in MESSAGES[kind]:
                waiting.append((MESSAGES[kind][field], value))
    return sorted(names)


def _location(entry: memoryview) -> set[bytes]:
    # Of a field that stands there twice protobuf takes the last; whichever it is, it is here.
    fields = [(field, bytes(value)) for field, value in _fields(entry)]
    if (_KEY, _LOCATION) not in fields:
        return set()
    return {value for field, value in fields if field == _VALUE} or {b""}


def _mentions(content: bytes, text: bytes) -> bool:
    """Return True if a text is in the content; let other threads run between two windows."""
    overlap = len(text) - 1
    return any(
        content.find(text, at, at + _WINDOW + overlap) >= 0
        for at in range(0, len(content), _WINDOW)
    )


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and content of every field that is text, bytes or a message.

    Raises:
        ValueError: it is no protobuf message, or has groups, which ONNX does not know.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        field, wire = (tag & _TAG_MASK) >> 3, tag & 7
        if wire == _VARINT:
            _, at = _varint(message, at)
        elif wire == _FIXED64:
            at += 8
        elif wire == _FIXED32:
            at += 4
        elif wire == _BYTES:
            length, at = _varint(message, at)
            at += length
            if at <= len(message):
                yield field, message[at - length : at]
        else:
            raise ValueError(f"it is no ONNX file: a field of wire type {wire}")
    if at > len(message):
        raise ValueError("it is no ONNX file: a field goes beyond its end")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return a number and where it ends."""
    number = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80:
            return number, at
    raise ValueError("it is no ONNX file: a number does not end")
