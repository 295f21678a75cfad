"""protoc plugin for gRPC's Python stubs.

grpcio-tools ships this generator only as a flag of its own protoc, while buf wants a program that
reads a CodeGeneratorRequest and writes a CodeGeneratorResponse. This one asks that protoc.
"""

import sys
import tempfile
from pathlib import Path

from google.protobuf.compiler import plugin_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc


def generate(request: plugin_pb2.CodeGeneratorRequest) -> plugin_pb2.CodeGeneratorResponse:
    """Returns the `_pb2_grpc.py` of every requested file that defines a service."""
    response = plugin_pb2.CodeGeneratorResponse(
        supported_features=plugin_pb2.CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL
    )
    with tempfile.TemporaryDirectory() as folder:
        descriptors = Path(folder, "descriptors.binpb")
        descriptors.write_bytes(FileDescriptorSet(file=request.proto_file).SerializeToString())
        out = Path(folder, "out")
        out.mkdir()
        with_service = [f.name for f in request.proto_file if f.service]
        wanted = [name for name in request.file_to_generate if name in with_service]
        flags = [f"--descriptor_set_in={descriptors}", f"--grpc_python_out={out}"]
        if wanted and protoc.main(["protoc", *flags, *wanted]) != 0:
            response.error = "grpc_tools.protoc failed; see stderr"
        for path in sorted(out.rglob("*.py")):
            response.file.add(name=path.relative_to(out).as_posix(), content=path.read_text())
    return response


if __name__ == "__main__":
    sys.stdout.buffer.write(
        generate(
            plugin_pb2.CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
        ).SerializeToString()
    )
