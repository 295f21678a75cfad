"""JSON schemas of answers, made from the descriptors of the contract."""

from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from servicekit.plain import SPAN, TIME, is_json_text, is_map, value_of, words_of

ERROR = "Error"
_REFERENCE = "#/components/schemas/"
_SCALARS = {
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_FLOAT: {"type": "number"},
    FieldDescriptor.TYPE_DOUBLE: {"type": "number"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
}
_known: dict[str, Descriptor] = {}


def answers(message: type[Message], status: int = 200) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that answers with a message.

    Args:
        message: class of the message.
        status: HTTP status of success.
    """
    descriptor = cast("Descriptor", message.DESCRIPTOR)
    _know(descriptor)
    return {
        status: {"description": "Success", "content": _json(descriptor.name)},
        "default": {"description": "An error", "content": _json(ERROR)},
    }


def components() -> dict[str, Any]:
    """Return the schemas of every message that a route answers with, by name, and of errors."""
    return {ERROR: _error()} | {
        name: schema_of(descriptor) for name, descriptor in sorted(_known.items())
    }


def schema_of(descriptor: Descriptor) -> dict[str, Any]:
    """Return the JSON schema of a message as `plain` writes it."""
    return {
        "type": "object",
        "required": [field.name for field in descriptor.fields],
        "properties": {field.name: _field(field) for field in descriptor.fields},
    }


def _know(descriptor: Descriptor) -> None:
    if descriptor.full_name in (TIME, SPAN) or _known.get(descriptor.name) is descriptor:
        return
    if descriptor.name in _known:
        raise ValueError(f"two messages of the answers have the name {descriptor.name}")
    if not descriptor.GetOptions().map_entry:
        _known[descriptor.name] = descriptor
    for field in descriptor.fields:
        if field.message_type is not None:
            _know(field.message_type)


def _field(field: FieldDescriptor) -> dict[str, Any]:
    if is_map(field):
        return {"type": "object", "additionalProperties": _single(value_of(field))}
    if field.is_repeated:
        return {"type": "array", "items": _single(field)}
    single = _single(field)
    return {"anyOf": [single, {"type": "null"}]} if field.has_presence else single


def _single(field: FieldDescriptor) -> dict[str, Any]:
    kind = field.message_type
    if is_json_text(field):
        return {"description": "A JSON value"}
    if kind is not None:
        if kind.full_name == TIME:
            return {"type": "string", "format": "date-time"}
        if kind.full_name == SPAN:
            return {"type": "number", "description": "Seconds"}
        return {"$ref": f"{_REFERENCE}{kind.name}"}
    if field.enum_type is not None:
        return {"enum": list(words_of(field.enum_type).values())}
    return dict(_SCALARS.get(field.type, {"type": "integer"}))


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"{_REFERENCE}{name}"}}}


def _error() -> dict[str, Any]:
    text = {"type": "string"}
    properties = {
        "code": text,
        "reason": text,
        "field": {"type": ["string", "null"]},
        "message": text,
        "retryable": {"type": "boolean"},
        "retry_after": {"type": ["number", "null"], "description": "Seconds"},
    }
    return {"type": "object", "required": list(properties), "properties": properties}
