"""One caller that floods the service, and another that must not notice (items 1 and 2)."""

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from sightline.inference.v1 import inference_service_pb2

from bench.isolation.frames import Setting
from bench.isolation.raw import bearer
from servicekit.auth.caller import Scope
from servicekit.auth.key_file import KeyFile
from tests.fakes.hostile import hostile, most_of
from tests.integration.inference.process import SERVICE, client, failure, names, started
from tests.unit.inference_service.tiny_onnx import picture

INFER, UPLOAD, MODELS = (f"/{SERVICE}/{name}" for name in ("Infer", "UploadImage", "ListModels"))
OPEN = "/inference.GRPCInferenceService/"
MIB = 1 << 20
RED = picture()
BOUND = 128 * MIB
LARGEST = 8 * MIB
DEADLINE = 2.0
"""How long each call of the well-behaved caller may take, s."""
RESOURCE_EXHAUSTED = str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
UploadRequest = inference_service_pb2.UploadImageRequest


@pytest.fixture
def flags(colours: Path) -> list[str]:
    return [
        *("--model-repository", str(colours), "--default-model", "colours"),
        *("--max-message-bytes", str(LARGEST), "--max-image-bytes", str(LARGEST // 2)),
        *("--max-bytes-in-flight", str(BOUND)),
    ]


@pytest.mark.parametrize("connections", [1, 4])
def test_calls_without_a_message_shut_nobody_out(
    tmp_path: Path, flags: list[str], connections: int
) -> None:
    methods = (INFER, UPLOAD, MODELS, OPEN + "ModelInfer", OPEN + "ServerReady")
    with (
        started(tmp_path, *flags) as server,
        client(server) as caller,
        hostile(server.address) as flood,
    ):
        for method in methods:
            flood.begin(method, 64, connections=connections)
        end, answered = time.monotonic() + 3, 0
        while time.monotonic() < end:
            assert names(caller.infer(RED, timeout=DEADLINE).results[0]) == ["red"]
            models = inference_service_pb2.ListModelsRequest()
            assert caller.stub.ListModels(models, timeout=DEADLINE).models
            assert caller.health() == "SERVING"
            answered += 1
        assert answered > 3


def test_a_call_counts_for_its_caller_s_limit_when_it_begins(
    tmp_path: Path, flags: list[str]
) -> None:
    keys = tmp_path / "keys"
    key, _ = KeyFile(keys).create("gate-1", devices=["*"], scopes=[Scope.INFER])
    limit = ["--rate-limits", "Infer=0.01/s:1", "--api-keys-file", str(keys)]
    with started(tmp_path, *flags, *limit) as server, hostile(server.address) as flood:
        first = flood.begin(INFER, 1, metadata=bearer(key))
        others = flood.begin(INFER, 3, metadata=bearer(key))
        end = time.monotonic() + 5
        while not all(stream.ended for stream in others):
            assert time.monotonic() < end
            time.sleep(0.02)
        assert {stream.status for stream in others} == {RESOURCE_EXHAUSTED}
        assert not first[0].ended


def test_most_of_large_messages_stay_within_the_bound(tmp_path: Path, flags: list[str]) -> None:
    timeout = ["--receive-timeout-seconds", "3"]
    with (
        started(tmp_path, *flags, *timeout) as server,
        client(server) as caller,
        hostile(server.address) as flood,
    ):
        for _ in range(20):
            caller.infer(RED)
        process = psutil.Process(server.process.pid)
        before = peak = process.memory_info().rss
        beginning = most_of(LARGEST - 1024)
        streams = flood.begin(UPLOAD, 100, beginning, connections=2)
        for method in (INFER, MODELS, OPEN + "ModelInfer"):
            streams += flood.begin(method, 30, beginning)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            assert names(caller.infer(RED, timeout=DEADLINE).results[0]) == ["red"]
            peak = max(peak, process.memory_info().rss)
        assert peak - before <= 2 * BOUND
        end = time.monotonic() + 30
        while not all(stream.ended for stream in streams):
            assert time.monotonic() < end
            time.sleep(0.05)


def test_an_upload_that_stalls_is_ended_and_can_be_tried_again(
    tmp_path: Path, flags: list[str]
) -> None:
    ended = threading.Event()
    digest = hashlib.sha256(RED).digest()
    header = inference_service_pb2.UploadHeader(sha256=digest, size_bytes=len(RED))
    parts = [UploadRequest(header=header), UploadRequest(chunk=RED)]

    def stalls() -> Iterator[UploadRequest]:
        yield parts[0]
        ended.wait(30)

    with (
        started(tmp_path, *flags, "--receive-timeout-seconds", "1") as server,
        client(server) as caller,
    ):
        error = failure(lambda: caller.stub.UploadImage(stalls(), timeout=30))
        ended.set()
        assert (error.code, error.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "MESSAGE_STALLED",
        )
        assert error.retry_after
        assert caller.stub.UploadImage(iter(parts), timeout=30).image.reference


def test_streams_of_one_connection_are_capped(tmp_path: Path, flags: list[str]) -> None:
    with (
        started(tmp_path, *flags, "--max-concurrent-streams", "9") as server,
        hostile(server.address) as flood,
    ):
        flood.begin(MODELS, 1)
        assert flood.settings()[Setting.MAX_CONCURRENT_STREAMS] == 9


def test_many_calls_of_one_connection_are_all_answered(tmp_path: Path, flags: list[str]) -> None:
    """A gateway's: more than there is room for large messages, and than one may send at once."""
    with started(tmp_path, *flags, "--queue-size", "1000") as server, client(server) as caller:
        calls = [caller.stub.Infer.future(_ask(), timeout=30) for _ in range(300)]
        assert {names(call.result().results[0])[0] for call in calls} == {"red"}


def _ask() -> inference_service_pb2.InferRequest:
    request = inference_service_pb2.InferRequest()
    request.images.add(data=RED)
    return request
