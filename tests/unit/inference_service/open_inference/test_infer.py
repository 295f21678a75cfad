"""ModelInfer over a real pipeline, without a network."""

import asyncio
import copy
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import onnxruntime
import pytest
from prometheus_client import CollectorRegistry
from sightline.inference.v1 import inference_pb2, inference_service_pb2
from sightline.openinference.v2 import open_inference_pb2 as oip

from inference_service.device import DeviceCheck
from inference_service.idempotency.single_flight import SingleFlight
from inference_service.idempotency.sqlite_store import SqliteStore
from inference_service.models.engine import Model
from inference_service.models.repository import Models
from inference_service.open_inference.infer import Inference
from inference_service.open_inference.statistics import Statistics
from inference_service.pipeline import CallMetadata, InferencePipeline
from inference_service.serving.admission import Admission
from inference_service.serving.estimates import Estimates
from inference_service.serving.workers import Workers
from inference_service.telemetry import Telemetry
from inference_service.validate import RequestLimits
from servicekit.errors import SightlineError
from tests.unit.inference_service.open_inference.networks import loaded, network, rows
from tests.unit.inference_service.open_inference.test_request import encoded, tensor, typed
from tests.unit.inference_service.tiny_onnx import corrupt, picture
from vision import ImageLimits, OnnxSession, decode_image

RED, BLUE = picture(), picture((0, 0, 255), size=(40, 20), kind="JPEG")


class RecordedSession:
    """A session that notes its batches and can be held up."""

    def __init__(self, session: OnnxSession) -> None:
        self._session = session
        self.batches: list[int] = []
        self.go = threading.Event()
        self.go.set()

    def run(self, batch: Any) -> Any:
        self.batches.append(len(batch))
        assert self.go.wait(10)
        return self._session.run(batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return network(tmp_path_factory.mktemp("two") / "model.onnx")


@pytest.fixture(scope="module")
def single(path: Path) -> Model:
    return loaded(path)


@pytest.fixture
def device(single: Model) -> Iterator[RecordedSession]:
    created = RecordedSession(single.network.session)
    yield created
    created.go.set()


@pytest.fixture
async def pipeline(device: RecordedSession, single: Model) -> AsyncIterator[InferencePipeline]:
    telemetry = Telemetry(CollectorRegistry())
    workers = Workers(Admission(workers=1, queue_size=4), telemetry)
    single_flight = SingleFlight(SqliteStore(""), keep_seconds=60)
    created = InferencePipeline(
        limits=RequestLimits(max_images=4),
        single_flight=single_flight,
        workers=workers,
        device=DeviceCheck(),
        telemetry=telemetry,
    )
    created.models = Models([on(device, single)], "two")
    yield created
    device.go.set()
    await asyncio.to_thread(workers.close)
    await single_flight.close()


def on(device: RecordedSession, model: Model) -> Model:
    moved = copy.copy(model.network)
    moved.session = cast("OnnxSession", device)
    # A lane of its own: what one test makes slow must not be too slow for the next.
    return replace(model, network=moved, lane=replace(model.lane, estimates=Estimates()))


@pytest.fixture
def statistics() -> Statistics:
    return Statistics()


@pytest.fixture
def inference(pipeline: InferencePipeline, statistics: Statistics) -> Inference:
    return Inference(pipeline, statistics)


def call(key: str | None = None, *, seconds: float = 30) -> CallMetadata:
    now = time.monotonic()
    return CallMetadata("anonymous", [key] if key else [], now, now + seconds)


async def refusal(inference: Inference, request: oip.ModelInferRequest) -> SightlineError:
    with pytest.raises(SightlineError) as caught:
        await inference.infer(call(), request)
    return caught.value


def runtimes_own(path: Path, batch: Any) -> list[Any]:
    """Return the outputs of ONNX Runtime itself."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return list(session.run(["scores", "best"], {"images": batch}))


def arrays(answer: oip.ModelInferResponse) -> list[Any]:
    types = {"FP32": "<f4", "INT64": "<i8"}
    assert all(not output.HasField("contents") for output in answer.outputs)
    return [
        np.frombuffer(raw, types[output.datatype]).reshape(output.shape)
        for raw, output in zip(answer.raw_output_contents, answer.outputs, strict=True)
    ]


@pytest.mark.parametrize("make", [tensor, typed])
async def test_outputs_are_the_runtimes_own_to_the_bit(
    inference: Inference, path: Path, make: Any
) -> None:
    request = make(1)
    request.id = "seven"
    answer, replayed = await inference.infer(call(), request)
    assert (answer.model_name, answer.model_version, answer.id) == ("two", "1", "seven")
    assert [output.name for output in answer.outputs] == ["scores", "best"]
    assert not replayed
    for actual, expected in zip(arrays(answer), runtimes_own(path, rows(1)), strict=True):
        assert actual.dtype == expected.dtype
        assert np.array_equal(actual, expected)


async def test_rows_of_a_model_that_is_run_singly_are_run_apart(
    inference: Inference, device: RecordedSession, path: Path
) -> None:
    answer, _ = await inference.infer(call(), tensor(4))
    assert device.batches == [1, 1, 1, 1]
    outputs_per_row = [runtimes_own(path, row[np.newaxis]) for row in rows(4)]
    for actual, expected in zip(arrays(answer), zip(*outputs_per_row, strict=True), strict=True):
        assert np.array_equal(actual, np.concatenate(expected))


async def test_rows_that_fit_into_one_run_are_run_together(
    inference: Inference, pipeline: InferencePipeline, device: RecordedSession, path: Path
) -> None:
    pipeline.models = Models([on(device, loaded(path, max_rows=4))], "two")
    answer, _ = await inference.infer(call(), tensor(3))
    assert device.batches == [3]
    for actual, expected in zip(arrays(answer), runtimes_own(path, rows(3)), strict=True):
        assert np.array_equal(actual, expected)


async def test_images_are_prepared_by_the_models_own_rules(
    inference: Inference, single: Model, path: Path
) -> None:
    request = encoded(RED, BLUE)
    request.outputs.add(name="scores")
    answer, _ = await inference.infer(call(), request)
    (actual,) = arrays(answer)
    prepared = [
        single.network.prepare(decode_image(outputs_per_row))[0] for outputs_per_row in (RED, BLUE)
    ]
    expected = [runtimes_own(path, outputs_per_row)[0] for outputs_per_row in prepared]
    assert np.array_equal(actual, np.concatenate(expected))


async def test_one_image_that_cannot_be_decoded_fails_the_request(inference: Inference) -> None:
    error = await refusal(inference, encoded(RED, corrupt()))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "IMAGE_CORRUPT")
    fields = [violation.field for violation in error.violations]
    assert fields == ["inputs[0].contents.bytes_contents[1]"]


async def test_a_large_request_is_read_beside_the_loop(inference: Inference) -> None:
    large = picture((0, 255, 0), size=(1000, 1000), kind="BMP")
    answer, _ = await inference.infer(call(), encoded(large))
    assert answer.outputs[0].shape == [1, 5]
    assert (await refusal(inference, encoded(large + bytes(10**7)))).reason == "IMAGE_TOO_LARGE"


async def test_the_limits_of_images_are_the_servers_own(
    inference: Inference, pipeline: InferencePipeline
) -> None:
    pipeline.limits = RequestLimits(image=ImageLimits(max_bytes=20 * 2**20))
    large = picture(size=(2000, 2000), kind="BMP")
    assert len(large) > ImageLimits().max_bytes
    answer, _ = await inference.infer(call(), encoded(large))
    assert answer.outputs[0].shape == [1, 5]


async def test_models_that_are_not_there(inference: Inference) -> None:
    request = tensor()
    request.model_version = "2"
    error = await refusal(inference, request)
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_VERSION_NOT_FOUND")
    request.model_name = "three"
    error = await refusal(inference, request)
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    request.model_name = ""
    error = await refusal(inference, request)
    assert [violation.field for violation in error.violations] == ["model_name"]


async def test_a_timeout_that_is_shorter_than_the_deadline_is_kept(
    inference: Inference, device: RecordedSession
) -> None:
    device.go.clear()
    request = tensor()
    request.parameters["timeout"].int64_param = 50_000
    begun = time.monotonic()
    error = await refusal(inference, request)  # while the device still works
    assert time.monotonic() - begun >= 0.05
    assert (error.code, error.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    assert "parameters.timeout, 0.05 s" in error.message


async def test_a_timeout_that_is_longer_than_the_deadline_adds_nothing(
    inference: Inference, device: RecordedSession
) -> None:
    request = tensor()
    request.parameters["timeout"].int64_param = 60_000_000
    with pytest.raises(SightlineError) as caught:
        await inference.infer(call(seconds=0), request)
    assert caught.value.reason == "DEADLINE_EXCEEDED"
    assert "timeout" not in caught.value.message
    assert device.batches == []


async def test_a_key_is_answered_once(
    inference: Inference, device: RecordedSession, statistics: Statistics, single: Model
) -> None:
    key = str(uuid.uuid4())
    first, replayed = await inference.infer(call(key), tensor())
    assert not replayed
    assert await inference.infer(call(key), tensor()) == (first, True)
    assert device.batches == [1]
    with pytest.raises(SightlineError) as caught:
        await inference.infer(call(key), tensor(2))
    assert caught.value.reason == "IDEMPOTENCY_KEY_REUSED"
    (counts,) = statistics.message([single]).model_stats
    assert (counts.inference_count, counts.inference_stats.fail.count) == (1, 1)


async def test_a_key_of_infer_is_another_key(
    inference: Inference, pipeline: InferencePipeline
) -> None:
    key = str(uuid.uuid4())
    images = [inference_pb2.Image(data=RED)]
    await pipeline.infer(call(key), inference_service_pb2.InferRequest(images=images))
    _, replayed = await inference.infer(call(key), tensor())
    assert not replayed


async def test_a_queue_that_is_full_is_full_for_tensors_too(
    inference: Inference, device: RecordedSession
) -> None:
    device.go.clear()
    running = asyncio.create_task(inference.infer(call(), tensor(4)))
    while not device.batches:  # noqa: ASYNC110 - the device runs in a thread
        await asyncio.sleep(0.001)
    error = await refusal(inference, tensor(4))
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    device.go.set()
    await running


async def test_draining_waits_for_tensors_too(
    inference: Inference, pipeline: InferencePipeline, device: RecordedSession
) -> None:
    device.go.clear()
    running = asyncio.create_task(inference.infer(call(), tensor()))
    while not device.batches:  # noqa: ASYNC110 - the device runs in a thread
        await asyncio.sleep(0.001)
    await pipeline.drain(0.02)
    with pytest.raises(SightlineError) as caught:
        await running
    assert caught.value.reason == "SHUTTING_DOWN"


async def test_what_was_done_is_counted(
    inference: Inference, statistics: Statistics, single: Model
) -> None:
    begun = time.time()
    await inference.infer(call(), tensor(2))
    await refusal(inference, tensor(0))
    (counts,) = statistics.message([single]).model_stats
    assert (counts.inference_count, counts.execution_count) == (2, 2)
    assert counts.last_inference >= int(begun * 1000)
    stats = counts.inference_stats
    assert (stats.success.count, stats.fail.count) == (1, 1)
    assert stats.success.ns >= stats.compute_infer.ns > 0
