"""The reference of the RPCs, made from the comments in proto/.

protoc writes the descriptors with the comments of the source; this module prints them.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

from docs.generate.markdown import paragraphs, table

PROTO = Path(__file__).parents[2] / "proto"
INTRO = """# RPCs and messages

This page lists every RPC, message and field of the contract, with units, ranges and what an empty
field means. It is made from the comments in `proto/`.

[Errors](errors.md) lists the reasons that a call can fail with, and
[the contract](../explanation/contract.md) says how it may change.
"""
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6  # numbers of the fields of FileDescriptorProto
_NESTED = 2  # of fields, values and methods in their parents


def page() -> str:
    """Return the page."""
    return "\n\n".join([INTRO, *(part for file in files() for part in _File(file).parts())]) + "\n"


def files() -> list[FileDescriptorProto]:
    """Return the contract's files with their comments, services first."""
    names = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "contract"
        subprocess.run(
            [
                *(sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTO}"),
                *("--include_source_info", f"--descriptor_set_out={out}", *names),
            ],
            check=True,
        )
        found = FileDescriptorSet.FromString(out.read_bytes()).file
    return sorted(found, key=_order)


def _order(file: FileDescriptorProto) -> tuple[bool, str, bool]:
    """Return what sorts Sightline's own packages first, and services before their messages."""
    return not file.package.startswith("sightline."), file.package, not file.service


class _File:
    """One file of the contract and the comments of its parts, by their paths."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._file = file
        self._comments = {
            tuple(place.path): place.leading_comments
            for place in file.source_code_info.location
            if place.leading_comments
        }

    def parts(self) -> Iterator[str]:
        """Yield the sections of the page that the file makes."""
        yield f"## {self._file.package}: {Path(self._file.name).name}"
        yield self._comment(2)
        for at, service in enumerate(self._file.service):
            yield f"### {service.name}"
            yield self._comment(_SERVICES, at)
            for number, method in enumerate(service.method):
                yield f"#### {method.name} {{#{service.name}.{method.name}}}"
                yield _signature(method)
                yield self._comment(_SERVICES, at, _NESTED, number)
        for at, message in enumerate(self._file.message_type):
            yield from self._message(message, "", _MESSAGES, at)
        for at, enum in enumerate(self._file.enum_type):
            yield from self._enum(enum, "", _ENUMS, at)

    def _message(self, message: DescriptorProto, outer: str, *path: int) -> Iterator[str]:
        if message.options.map_entry:
            return
        name = f"{outer}{message.name}"
        yield f"### {name} {{#{self._file.package}.{name}}}"
        yield self._comment(*path)
        rows = [
            (f"`{field.name}`", str(field.number), self._type(field, message), comment)
            for number, field in enumerate(message.field)
            for comment in [self._comment(*path, _NESTED, number)]
        ]
        if rows:
            yield table(("field", "number", "type", "what it says"), rows)
        for at, inner in enumerate(message.nested_type):
            yield from self._message(inner, f"{name}.", *path, 3, at)
        for at, enum in enumerate(message.enum_type):
            yield from self._enum(enum, f"{name}.", *path, 4, at)

    def _enum(self, enum: EnumDescriptorProto, outer: str, *path: int) -> Iterator[str]:
        name = f"{outer}{enum.name}"
        yield f"### {name} {{#{self._file.package}.{name}}}"
        yield self._comment(*path)
        rows = [
            (f"`{value.name}`", str(value.number), self._comment(*path, _NESTED, number))
            for number, value in enumerate(enum.value)
        ]
        yield table(("value", "number", "what it says"), rows)

    def _comment(self, *path: int) -> str:
        return paragraphs(self._comments.get(path, "").replace("<", "&lt;"))

    def _type(self, field: FieldDescriptorProto, message: DescriptorProto) -> str:
        for entry in message.nested_type:
            if entry.options.map_entry and field.type_name.endswith(f".{entry.name}"):
                key, value = (_type_name(one) for one in entry.field)
                return f"map of {key} to {value}"
        repeated = field.label == FieldDescriptorProto.LABEL_REPEATED
        kind = "list of " if repeated else "optional " if field.proto3_optional else ""
        return kind + _type_name(field)


def _type_name(field: FieldDescriptorProto) -> str:
    if field.type_name:
        return _link(field.type_name)
    return f"`{FieldDescriptorProto.Type.Name(field.type).removeprefix('TYPE_').lower()}`"


def _link(type_name: str) -> str:
    full = type_name.removeprefix(".")
    if full.startswith("google."):
        return f"`{full}`"
    return f"[{full.rpartition('.')[2]}](#{full})"


def _signature(method: MethodDescriptorProto) -> str:
    request, response = _link(method.input_type), _link(method.output_type)
    sent = "stream of " if method.client_streaming else ""
    received = "stream of " if method.server_streaming else ""
    return f"Request: {sent}{request}. Response: {received}{response}."
