"""A flood of large requests: the server's memory stays bounded, and its health answers."""

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from sightline.inference.v1 import inference_pb2, inference_service_pb2

from servicekit.auth.caller import Scope
from servicekit.auth.key_file import KeyFile
from servicekit.errors import from_rpc_error
from tests.integration.inference.process import (
    SERVICE,
    InferenceProcess,
    InferenceStub,
    ask,
    client,
    names,
    started,
)
from tests.unit.inference_service.tiny_onnx import picture

MIB = 1024 * 1024
LARGE = picture(size=(1448, 1448), kind="BMP")  # 6 MiB
CALLS = 60
IN_FLIGHT = 32 * MIB
WINDOW = MIB // 2  # of a request that is not read yet
SLACK = 96 * MIB  # what the allocator keeps; without the bound it is more than 200 MiB


@pytest.fixture
def flags(slow: Path) -> list[str]:
    return [
        *("--model-repository", str(slow), "--workers", "1"),
        *("--max-message-bytes", str(8 * MIB), "--max-image-bytes", str(7 * MIB)),
    ]


def flood(server: InferenceProcess) -> tuple[float, list[str]]:
    """Send everything at once; return how much memory that took, bytes, and the outcomes."""
    process = psutil.Process(server.process.pid)
    with client(server) as caller:
        assert names(caller.infer(LARGE).results[0]) == ["red"]
        before = peak = process.memory_info().rss
        data = ask(LARGE).SerializeToString()
        calls = [caller.raw.future(data, timeout=5) for _ in range(CALLS)]
        with client(server) as beside:
            while not all(call.done() for call in calls):
                peak = max(peak, process.memory_info().rss)
                _healthy(beside)
        return peak - before, [_outcome(call) for call in calls]


def _healthy(caller: InferenceStub) -> None:
    begun = time.perf_counter()
    assert caller.health() == "SERVING"
    assert time.perf_counter() - begun < 5


def _outcome(call: "grpc.Future[bytes]") -> str:
    error = call.exception()
    return from_rpc_error(error).reason if isinstance(error, grpc.RpcError) else "OK"


def test_a_flood_of_large_requests(tmp_path: Path, flags: list[str]) -> None:
    with started(tmp_path, *flags, "--max-bytes-in-flight", str(IN_FLIGHT)) as server:
        grown, outcomes = flood(server)
    assert {"OK", "TOO_MUCH_IN_FLIGHT"} <= set(outcomes)
    # Each request in flight is there twice: as its message, and as the picture taken out of it.
    assert grown < 2 * IN_FLIGHT + CALLS * WINDOW + SLACK


def test_without_the_bound_the_flood_is_held(tmp_path: Path, flags: list[str]) -> None:
    with started(tmp_path, *flags, "--max-bytes-in-flight", str(1 << 40)) as server:
        grown, outcomes = flood(server)
    assert "TOO_MUCH_IN_FLIGHT" not in outcomes
    assert grown > CALLS * len(LARGE)


def test_images_by_reference_count_as_well(tmp_path: Path, flags: list[str]) -> None:
    room = ["--max-bytes-in-flight", str(8 * MIB)]
    with started(tmp_path, *flags, *room) as server, client(server) as caller:
        digest = hashlib.sha256(LARGE).digest()
        header = inference_service_pb2.UploadHeader(sha256=digest, size_bytes=len(LARGE))
        parts = [inference_service_pb2.UploadImageRequest(header=header)]
        parts += [
            inference_service_pb2.UploadImageRequest(chunk=LARGE[at : at + MIB])
            for at in range(0, len(LARGE), MIB)
        ]
        reference = caller.stub.UploadImage(iter(parts), timeout=30).image.reference
        image = inference_pb2.Image(reference=reference)
        for _ in range(3):  # what a call has held is free again after it
            assert names(caller.infer(image).results[0]) == ["red"]
        error = caller.refusal(image, image)
        assert (error.code, error.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "TOO_MUCH_IN_FLIGHT",
        )
        assert error.retry_after


def test_a_caller_without_credentials_is_not_even_read(tmp_path: Path, flags: list[str]) -> None:
    KeyFile(tmp_path / "keys").create("gate-1", devices=["*"], scopes=[Scope.INFER])
    keys = ["--api-keys-file", str(tmp_path / "keys")]
    with started(tmp_path, *flags, *keys) as server, client(server) as caller:
        requests = never()
        call = caller.channel.stream_unary(f"/{SERVICE}/Infer", None, None).future(requests)
        with pytest.raises(grpc.RpcError) as caught:
            call.result(10)
        assert from_rpc_error(caught.value).reason == "CREDENTIAL_MISSING"


def never() -> Iterator[bytes]:
    """Yield a request that does not come."""
    threading.Event().wait(30)
    yield b""
