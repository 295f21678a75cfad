"""Callers that upload images to a service, for tests."""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sightline.inference.v1 import inference_pb2, inference_service_pb2

from servicekit.auth.caller import Scope
from servicekit.auth.key_file import KeyFile
from servicekit.errors import SightlineError
from tests.integration.inference.process import (
    InferenceProcess,
    InferenceStub,
    ask,
    client,
    failure,
    started,
)
from tests.unit.inference_service.tiny_onnx import picture

RED, BLUE = picture((255, 0, 0)), picture((0, 0, 255), kind="JPEG")
GREEN = picture((0, 255, 0), size=(300, 300), kind="BMP")  # 270 000 bytes
Message = inference_service_pb2.UploadImageRequest


class UploadCaller:
    """A client with an API key of its own."""

    def __init__(self, created: InferenceStub, key: str) -> None:
        self._stub = created.stub
        self._metadata = (("authorization", f"Bearer {key}"),)

    def send(
        self, messages: Iterator[Message], timeout: float = 30
    ) -> inference_service_pb2.UploadImageResponse:
        return self._stub.UploadImage(messages, timeout=timeout, metadata=self._metadata)

    def upload(self, data: bytes, chunk: int = 100_000) -> inference_pb2.ImageReference:
        return self.send(upload(data, chunk)).image

    def refusal(self, *messages: Message) -> SightlineError:
        return failure(lambda: self.send(iter(messages)))

    def infer(
        self, *images: bytes | inference_pb2.Image, key: str | None = None, **fields: Any
    ) -> inference_service_pb2.InferResponse:
        return self.infer_with_call(*images, key=key, **fields)[0]

    def infer_with_call(
        self, *images: bytes | inference_pb2.Image, key: str | None = None, **fields: Any
    ) -> tuple[inference_service_pb2.InferResponse, bool]:
        """Return the answer, and True if it is a replay."""
        metadata = (*self._metadata, *((("idempotency-key", key),) if key else ()))
        request = ask(*images, **fields)
        answer, call = self._stub.Infer.with_call(request, timeout=30, metadata=metadata)
        return answer, ("idempotent-replayed", "true") in (call.trailing_metadata() or ())


def header(data: bytes, size: int | None = None, sha256: bytes | None = None) -> Message:
    digest = hashlib.sha256(data).digest() if sha256 is None else sha256
    declared = len(data) if size is None else size
    created = inference_service_pb2.UploadHeader(sha256=digest, size_bytes=declared)
    return Message(header=created)


def upload(data: bytes, chunk: int = 100_000) -> Iterator[Message]:
    yield header(data)
    for at in range(0, len(data), chunk):
        yield Message(chunk=data[at : at + chunk])


def by(reference: inference_pb2.ImageReference, **fields: Any) -> inference_pb2.Image:
    return inference_pb2.Image(reference=reference.reference, **fields)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """API keys by the caller's name, and the file that holds them."""
    path = tmp_path_factory.mktemp("keys") / "keys.sqlite"
    created = {
        name: KeyFile(path).create(name, devices=["*"], scopes=[Scope.INFER])[0]
        for name in ("owner", "other")
    }
    return {**created, "file": str(path)}


@pytest.fixture(scope="module")
def flags(colours: Path, keys: dict[str, str]) -> list[str]:
    return [
        *("--model-repository", str(colours), "--default-model", "colours"),
        *("--api-keys-file", keys["file"]),
        *("--max-images", "4", "--max-image-bytes", "300000", "--max-image-pixels", "1000000"),
        *("--max-message-bytes", "2000000", "--upload-disk-reserve-bytes", "0"),
    ]


@contextmanager
def callers(
    server: InferenceProcess, keys: dict[str, str]
) -> Iterator[tuple[UploadCaller, UploadCaller]]:
    with client(server) as created:
        yield UploadCaller(created, keys["owner"]), UploadCaller(created, keys["other"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "uploads"


@pytest.fixture(scope="module")
def shared(
    flags: list[str], keys: dict[str, str], folder: Path
) -> Iterator[tuple[UploadCaller, UploadCaller]]:
    more = [*("--upload-dir", str(folder)), *("--upload-quota-bytes", "100000000")]
    with started(folder.parent, *flags, *more) as server, callers(server, keys) as both:
        yield both


@pytest.fixture
def owner(shared: tuple[UploadCaller, UploadCaller]) -> UploadCaller:
    return shared[0]


@pytest.fixture
def other(shared: tuple[UploadCaller, UploadCaller]) -> UploadCaller:
    return shared[1]


def files(folder: Path) -> set[str]:
    """Return the names of the files that hold pictures or parts of them."""
    own = {"reference.key"}
    return {
        path.name
        for path in folder.iterdir()
        if path.name not in own and not path.name.startswith("uploads.sqlite")
    }


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
