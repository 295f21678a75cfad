"""The Open Inference Protocol over a real socket: health, metadata, tensors and pictures."""

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
import pytest
from sightline.openinference.v2 import open_inference_pb2 as oip
from sightline.openinference.v2 import open_inference_pb2_grpc

from servicekit.auth.caller import Scope
from servicekit.auth.key_file import KeyFile
from servicekit.errors import SightlineError
from tests.integration.inference.process import (
    InferenceProcess,
    InferenceStub,
    client,
    failure,
    started,
)
from tests.integration.inference.waiting_service import HOLD
from tests.unit.inference_service.open_inference.networks import network, rows
from tests.unit.inference_service.open_inference.test_request import encoded, raw_encoded, tensor
from tests.unit.inference_service.tiny_onnx import SIDE, colour_model, corrupt, picture
from vision import OnnxYolo, decode_image

RED, BLUE = picture(), picture((0, 0, 255), size=(256, 128), kind="JPEG")
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of a detector, and a classifier that takes four rows at once."""
    folder = tmp_path_factory.mktemp("repository")
    for version in ("1", "2"):
        colour_model(folder / "colours" / version / "model.onnx")
    network(folder / "two/1/model.onnx")
    text = "task: classify\nbatching: {max_size: 4, max_wait_ms: 1}\n"
    (folder / "two/1/model.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, repository: Path
) -> Iterator[InferenceProcess]:
    flags = [
        *("--model-repository", str(repository), "--default-model", "colours"),
        *("--max-images", "4", "--max-image-bytes", "200000"),
    ]
    with started(tmp_path_factory.mktemp("open"), *flags) as service:
        yield service


class Protocol:
    """Asks a server by the protocol."""

    def __init__(self, service: InferenceStub) -> None:
        self.stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(service.channel)

    def infer(self, request: oip.ModelInferRequest, **more: Any) -> oip.ModelInferResponse:
        answer: oip.ModelInferResponse = self.stub.ModelInfer(request, **{"timeout": 30, **more})
        return answer

    def refusal(self, request: oip.ModelInferRequest, **more: Any) -> SightlineError:
        return failure(lambda: self.infer(request, **more))

    def live(self) -> bool:
        return self.stub.ServerLive(oip.ServerLiveRequest(), timeout=10).live

    def ready(self) -> bool:
        return self.stub.ServerReady(oip.ServerReadyRequest(), timeout=10).ready

    def model_ready(self, name: str, version: str = "") -> bool:
        request = oip.ModelReadyRequest(name=name, version=version)
        return self.stub.ModelReady(request, timeout=10).ready


@pytest.fixture
def protocol(server: InferenceProcess) -> Iterator[Protocol]:
    with client(server) as service:
        yield Protocol(service)


def of_colours(*shape: int, version: str = "") -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name="colours", model_version=version)
    request.inputs.add(name="images", datatype="FP32", shape=shape or (1, 3, SIDE, SIDE))
    request.raw_input_contents.append(bytes(4 * 3 * SIDE * SIDE))
    return request


def first_output(answer: oip.ModelInferResponse) -> Any:
    return np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(answer.outputs[0].shape)


def runtimes_own(path: Path, batch: Any) -> Any:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": batch})[0]


def test_health_and_metadata(protocol: Protocol) -> None:
    assert protocol.live()
    assert protocol.ready()
    reply = protocol.stub.ServerMetadata(oip.ServerMetadataRequest(), timeout=10)
    assert (reply.name, list(reply.extensions)) == (
        "sightline",
        ["model_configuration", "statistics"],
    )
    assert protocol.model_ready("colours", "1")
    assert not protocol.model_ready("colours", "9")
    assert not protocol.model_ready("nobody")
    metadata = protocol.stub.ModelMetadata(oip.ModelMetadataRequest(name="colours"), timeout=10)
    assert (metadata.name, list(metadata.versions)) == ("colours", ["1", "2"])
    assert list(metadata.inputs[0].shape) == [-1, 3, SIDE, SIDE]
    config = protocol.stub.ModelConfig(oip.ModelConfigRequest(name="two"), timeout=10).config
    assert (config.max_batch_size, list(config.input[0].dims)) == (4, [3, 16, 16])
    assert config.dynamic_batching.max_queue_delay_microseconds == 1000


@pytest.mark.parametrize(
    "ask",
    [
        lambda stub, **model: stub.ModelMetadata(oip.ModelMetadataRequest(**model)),
        lambda stub, **model: stub.ModelConfig(oip.ModelConfigRequest(**model)),
    ],
)
def test_models_that_are_not_there(protocol: Protocol, ask: Callable[..., Any]) -> None:
    for model in ({"name": "x"}, {"name": "colours", "version": "9"}):
        error = failure(lambda model=model: ask(protocol.stub, **model))
        assert error.code is grpc.StatusCode.NOT_FOUND
    assert [v.field for v in failure(lambda: ask(protocol.stub)).violations] == ["name"]


def test_a_model_has_to_be_named(protocol: Protocol) -> None:
    error = failure(lambda: protocol.model_ready(""))
    assert [violation.field for violation in error.violations] == ["name"]
    error = protocol.refusal(oip.ModelInferRequest())
    assert [violation.field for violation in error.violations] == ["model_name"]


def test_a_tensor_in_and_out_to_the_bit(protocol: Protocol, repository: Path) -> None:
    for count in (1, 3):
        request = tensor(count)
        request.id = f"of {count}"
        answer = protocol.infer(request)
        assert (answer.model_name, answer.model_version) == ("two", "1")
        assert answer.id == f"of {count}"
        expected = runtimes_own(repository / "two/1/model.onnx", rows(count))
        assert np.array_equal(first_output(answer), expected)


def test_images_are_letterboxed_as_those_of_infer(protocol: Protocol, repository: Path) -> None:
    detector = OnnxYolo.load(repository / "colours/1/model.onnx")
    prepared = [detector.prepare(decode_image(data))[0] for data in (RED, BLUE)]
    expected = [runtimes_own(repository / "colours/1/model.onnx", each) for each in prepared]
    for make in (encoded, raw_encoded):
        request = make(RED, BLUE)
        request.model_name = "colours"
        assert np.array_equal(first_output(protocol.infer(request)), np.concatenate(expected))


def test_a_version_can_be_chosen(protocol: Protocol) -> None:
    assert protocol.infer(of_colours()).model_version == "2"
    assert protocol.infer(of_colours(version="1")).model_version == "1"


@pytest.mark.parametrize(
    ("request_", "code", "reason", "fields"),
    [
        (
            oip.ModelInferRequest(model_name="nobody"),
            grpc.StatusCode.NOT_FOUND,
            "MODEL_NOT_FOUND",
            [],
        ),
        (
            of_colours(version="9"),
            grpc.StatusCode.NOT_FOUND,
            "MODEL_VERSION_NOT_FOUND",
            [],
        ),
        (of_colours(1, 3, 9, 9), INVALID, "INVALID_FIELD", ["inputs[0].shape"]),
        (of_colours(5, 3, SIDE, SIDE), INVALID, "INVALID_FIELD", ["inputs[0].shape"]),
        (of_colours(2, 3, SIDE, SIDE), INVALID, "INVALID_FIELD", ["raw_input_contents[0]"]),
        (
            encoded(corrupt()),
            INVALID,
            "IMAGE_CORRUPT",
            ["inputs[0].contents.bytes_contents[0]"],
        ),
        (
            encoded(RED + bytes(200_000)),
            INVALID,
            "IMAGE_TOO_LARGE",
            ["inputs[0].contents.bytes_contents[0]"],
        ),
    ],
    ids=["model", "version", "shape", "rows", "bytes", "corrupt", "large"],
)
def test_what_is_refused(
    protocol: Protocol,
    request_: oip.ModelInferRequest,
    code: grpc.StatusCode,
    reason: str,
    fields: list[str],
) -> None:
    error = protocol.refusal(request_)
    assert (error.code, error.reason) == (code, reason)
    assert [violation.field for violation in error.violations] == fields


def test_bytes_that_are_no_request_do_no_harm(server: InferenceProcess, protocol: Protocol) -> None:
    with client(server) as service:
        raw = service.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", None, None)
        error = failure(lambda: raw(b"\xff\xff no request", timeout=10))
    assert (error.code, error.reason) == (INVALID, "MALFORMED_MESSAGE")
    assert protocol.infer(of_colours()).outputs[0].shape == [1, 7, 1]


def test_a_key_is_answered_once(protocol: Protocol) -> None:
    metadata = (("idempotency-key", str(uuid.uuid4())),)
    first, done = protocol.stub.ModelInfer.with_call(tensor(), timeout=30, metadata=metadata)
    assert ("idempotent-replayed", "true") not in (done.trailing_metadata() or ())
    again, done = protocol.stub.ModelInfer.with_call(tensor(), timeout=30, metadata=metadata)
    assert ("idempotent-replayed", "true") in (done.trailing_metadata() or ())
    assert again.SerializeToString() == first.SerializeToString()
    assert protocol.refusal(tensor(2), metadata=metadata).reason == "IDEMPOTENCY_KEY_REUSED"


def test_callers_share_runs_and_each_gets_its_own_rows(
    protocol: Protocol, repository: Path
) -> None:
    def of_two() -> oip.ModelStatistics:
        request = oip.ModelStatisticsRequest(name="two")
        (reply,) = protocol.stub.ModelStatistics(request, timeout=10).model_stats
        return reply

    before = of_two()
    expected = {n: runtimes_own(repository / "two/1/model.onnx", rows(n)) for n in (1, 2, 3, 4)}
    counts = [1, 2, 3, 4] * 10
    with ThreadPoolExecutor(16) as callers:
        answers = list(callers.map(lambda count: protocol.infer(tensor(count)), counts))
    for count, answer in zip(counts, answers, strict=True):
        # Of another batch the last bit may differ: its sums are made in another order.
        assert np.allclose(first_output(answer), expected[count], rtol=1e-6)
    after = of_two()
    assert after.inference_count - before.inference_count == sum(counts)
    assert after.inference_stats.success.count - before.inference_stats.success.count == 40
    assert after.last_inference >= before.last_inference


def test_statistics_of_everything_and_of_one(protocol: Protocol) -> None:
    def reply(**names: str) -> list[tuple[str, str]]:
        request = oip.ModelStatisticsRequest(**names)
        stats = protocol.stub.ModelStatistics(request, timeout=10).model_stats
        return [(each.name, each.version) for each in stats]

    assert reply() == [("colours", "1"), ("colours", "2"), ("two", "1")]
    assert reply(name="colours") == [("colours", "1"), ("colours", "2")]
    assert reply(name="colours", version="2") == [("colours", "2")]
    error = failure(lambda: reply(name="colours", version="9"))
    assert error.code is grpc.StatusCode.NOT_FOUND


def test_a_timeout_and_a_deadline_are_kept(tmp_path: Path, slow: Path) -> None:
    flags = ["--model-repository", str(slow), "--workers", "1"]
    request = of_colours()
    request.model_name = "slow"
    with started(tmp_path, *flags) as server, client(server) as service:
        protocol = Protocol(service)
        error = protocol.refusal(request, timeout=0.02)
        assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        protocol.infer(request)
        request.parameters["timeout"].int64_param = 20_000
        begun = time.perf_counter()
        error = protocol.refusal(request)
        assert time.perf_counter() - begun < 10  # and not the call's 30 s
        assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_live_before_it_is_warm(tmp_path: Path) -> None:
    version = tmp_path / "models" / "colours" / "1"
    colour_model(version / "model.onnx")
    os.mkfifo(version / HOLD)  # loading waits until somebody writes
    address = f"unix:{tmp_path}/socket"  # known before the ready line
    flags = ["--model-repository", str(tmp_path / "models"), "--listen", address]
    server = InferenceProcess(tmp_path, *flags)
    try:
        service = InferenceStub(address)
        with service.channel:
            grpc.channel_ready_future(service.channel).result(60)
            protocol = Protocol(service)
            assert protocol.live()
            assert not protocol.ready()
            assert failure(lambda: protocol.model_ready("colours")).reason == "NOT_READY"
            assert protocol.refusal(of_colours()).reason == "NOT_READY"
            (version / HOLD).write_text("go on")
            server.wait_ready()
            assert protocol.ready()
            assert protocol.model_ready("colours")
    finally:
        server.stop(signal.SIGKILL)


def test_only_health_is_open_to_everyone(tmp_path: Path, repository: Path) -> None:
    keys = KeyFile(tmp_path / "keys.db")
    key, _ = keys.create("someone", devices=["*"], scopes=[Scope.INFER])
    logger, _ = keys.create("logger", devices=["*"], scopes=[Scope.LOG])
    flags = [
        *("--model-repository", str(repository), "--default-model", "colours"),
        *("--api-keys-file", str(tmp_path / "keys.db")),
    ]
    with started(tmp_path, *flags) as server, client(server) as service:
        protocol = Protocol(service)
        assert protocol.live()
        assert protocol.ready()
        stub = protocol.stub
        for call in (
            lambda: stub.ModelInfer(of_colours()),
            lambda: stub.ModelReady(oip.ModelReadyRequest(name="colours")),
            lambda: stub.ServerMetadata(oip.ServerMetadataRequest()),
            lambda: stub.ModelMetadata(oip.ModelMetadataRequest(name="colours")),
            lambda: stub.ModelConfig(oip.ModelConfigRequest(name="colours")),
            lambda: stub.ModelStatistics(oip.ModelStatisticsRequest()),
        ):
            assert failure(call).reason == "CREDENTIAL_MISSING"
        assert protocol.infer(of_colours(), metadata=[("authorization", f"Bearer {key}")]).outputs
        denied = protocol.refusal(of_colours(), metadata=[("authorization", f"Bearer {logger}")])
        assert denied.code is grpc.StatusCode.PERMISSION_DENIED
