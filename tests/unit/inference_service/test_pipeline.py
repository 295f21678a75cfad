"""The steps of a call together, without a network: what only their order decides."""

import asyncio
import threading
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import grpc
import pytest
from sightline.inference.v1 import inference_pb2, inference_service_pb2

from inference_service.admission import Admission
from inference_service.batch import Workers
from inference_service.device import DeviceCheck
from inference_service.models.engine import Model
from inference_service.models.repository import Models, Runtime, load_model
from inference_service.once import Once
from inference_service.pipeline import Call, Pipeline
from inference_service.sqlite_store import SqliteStore
from inference_service.validate import Limits
from servicekit.errors import SightlineError
from servicekit.vision import ModelError, OnnxDetector
from tests.unit.inference_service.tiny_onnx import colour_model, picture

RED = picture()


class Device:
    """A detector on a device that can be made to wait, to fail, or to die."""

    def __init__(self, detector: OnnxDetector) -> None:
        self._detector = detector
        self.runs = 0
        self.failing_runs = False
        self.dead = False
        self.go = threading.Event()
        self.go.set()

    def run(self, batch: Any) -> Any:
        self.runs += 1
        assert self.go.wait(10)
        if self.failing_runs or self.dead:
            raise ModelError("MODEL_RUN_FAILED", "CUDA error 700")
        return self._detector.run(batch)

    def warm_up(self) -> None:
        if self.dead:
            raise ModelError("MODEL_RUN_FAILED", "CUDA error 700")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._detector, name)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("models") / "colours" / "1"
    colour_model(path / "model.onnx")
    return load_model(path, Runtime(("CPUExecutionProvider",), 1))


@pytest.fixture
def device(model: Model) -> Device:
    return Device(model.detector)


@pytest.fixture
async def pipeline(model: Model, device: Device) -> AsyncIterator[Pipeline]:
    workers = Workers(Admission(workers=1, queue_size=4))
    once = Once(SqliteStore(""), keep_seconds=60)
    made = Pipeline(
        limits=Limits(),
        once=once,
        workers=workers,
        device=DeviceCheck(),
    )
    made.models = Models([replace(model, detector=cast("OnnxDetector", device))], "colours")
    yield made
    device.go.set()
    workers.close()
    await once.close()


async def ask(
    pipeline: Pipeline, *pictures: bytes, key: str | None = None
) -> inference_service_pb2.InferResponse:
    now = time.monotonic()
    call = Call("anonymous", [key] if key else [], now, now + 30)
    images = [inference_pb2.Image(data=data) for data in pictures]
    request = inference_service_pb2.InferRequest(images=images)
    reply = await pipeline.infer(call, request)
    return inference_service_pb2.InferResponse.FromString(reply.payload)


async def refusal(pipeline: Pipeline, *pictures: bytes, key: str | None = None) -> SightlineError:
    with pytest.raises(SightlineError) as caught:
        await ask(pipeline, *pictures, key=key)
    return caught.value


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - there is no event for most conditions
            await asyncio.sleep(0.001)


async def test_a_large_picture_is_checked_beside_the_loop(pipeline: Pipeline) -> None:
    large = picture((0, 255, 0), size=(1000, 1000), kind="BMP")
    answer = await ask(pipeline, large)
    assert answer.results[0].detections[0].class_name == "green"
    assert (await refusal(pipeline, large[:-1000])).reason == "IMAGE_CORRUPT"


async def test_a_run_that_fails_once_fails_its_call_only(
    pipeline: Pipeline, device: Device
) -> None:
    key = str(uuid.uuid4())
    device.failing_runs = True
    error = await refusal(pipeline, RED, key=key)
    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "MODEL_RUN_FAILED")
    device.failing_runs = False
    assert (await ask(pipeline, RED, key=key)).results[0].detections
    assert pipeline.ready


async def test_a_dead_device_is_not_asked_again(pipeline: Pipeline, device: Device) -> None:
    assert pipeline.ready
    device.dead = True
    assert (await refusal(pipeline, RED)).code is grpc.StatusCode.INTERNAL
    await until(lambda: not pipeline.ready)
    runs = device.runs
    error = await refusal(pipeline, RED)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DEVICE_DEAD")
    assert device.runs == runs


async def test_a_server_without_models_is_not_ready(pipeline: Pipeline) -> None:
    pipeline.models = Models([], "")
    assert not pipeline.ready


async def test_what_is_refused_costs_no_run(pipeline: Pipeline, device: Device) -> None:
    await refusal(pipeline, b"no picture")
    await refusal(pipeline, RED, key="no uuid")
    assert device.runs == 0


async def test_a_replay_costs_no_run(pipeline: Pipeline, device: Device) -> None:
    key = str(uuid.uuid4())
    first = await ask(pipeline, RED, key=key)
    assert await ask(pipeline, RED, key=key) == first
    assert device.runs == 1


async def test_draining_waits_for_the_calls_in_flight(pipeline: Pipeline, device: Device) -> None:
    await pipeline.drain(30)  # nothing is in flight
    device.go.clear()
    call = asyncio.create_task(ask(pipeline, RED))
    await until(lambda: device.runs)
    draining = asyncio.create_task(pipeline.drain(30))
    await asyncio.sleep(0.02)
    assert not draining.done()
    device.go.set()
    assert (await call).results[0].detections
    await asyncio.wait_for(draining, 5)


async def test_what_does_not_end_in_time_may_be_asked_elsewhere(
    pipeline: Pipeline, device: Device
) -> None:
    device.go.clear()
    call = asyncio.create_task(refusal(pipeline, RED, RED))
    await until(lambda: device.runs)
    await pipeline.drain(0.02)
    error = await call
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
