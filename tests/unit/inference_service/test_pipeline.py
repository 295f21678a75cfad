"""The steps of a call together, without a network: what only their order decides."""

import asyncio
import copy
import threading
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import grpc
import pytest
from prometheus_client import CollectorRegistry
from sightline.inference.v1 import inference_pb2, inference_service_pb2

from inference_service import answers, validate
from inference_service.device import DeviceCheck
from inference_service.domain import CheckedImage, CheckedRequest, Parameters
from inference_service.idempotency.single_flight import SingleFlight
from inference_service.idempotency.sqlite_store import SqliteStore
from inference_service.models.engine import Model
from inference_service.models.loader import Runtime, load_model
from inference_service.models.repository import Models
from inference_service.pipeline import INLINE_BYTES, CallMetadata, InferencePipeline, _merge
from inference_service.serving.admission import Admission, Lane, Share
from inference_service.serving.work import MemberResult
from inference_service.serving.workers import Workers
from inference_service.telemetry import Telemetry
from inference_service.validate import RequestLimits
from servicekit.errors import SightlineError
from tests.unit.inference_service.tiny_onnx import colour_model, picture
from vision import ModelError, OnnxSession, OnnxYolo, RleMask, open_image
from vision.masks import OnMask

RED = picture()


class FragileSession:
    """A session on a device that can be made to wait, to fail, or to die."""

    def __init__(self, session: OnnxSession) -> None:
        self._session = session
        self.runs = 0
        self.failing_runs = 0
        self.dead = False
        self.go = threading.Event()
        self.go.set()

    def run(self, batch: Any) -> Any:
        self.runs += 1
        assert self.go.wait(10)
        if self.failing_runs or self.dead:
            self.failing_runs = max(self.failing_runs - 1, 0)
            raise ModelError("MODEL_RUN_FAILED", "CUDA error 700")
        return self._session.run(batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("models") / "colours" / "1"
    colour_model(path / "model.onnx")
    return load_model(path, Runtime())


@pytest.fixture
def device(model: Model) -> FragileSession:
    return FragileSession(model.network.session)


@pytest.fixture
async def pipeline(model: Model, device: FragileSession) -> AsyncIterator[InferencePipeline]:
    telemetry = Telemetry(CollectorRegistry())
    workers = Workers(Admission(workers=1, queue_size=4), telemetry)
    single_flight = SingleFlight(SqliteStore(""), keep_seconds=60)
    service = InferencePipeline(
        limits=RequestLimits(),
        single_flight=single_flight,
        workers=workers,
        device=DeviceCheck(),
        telemetry=telemetry,
    )
    network = copy.copy(model.network)
    network.session = cast("OnnxSession", device)
    # A lane of its own: what one test makes slow must not be too slow for the next.
    service.models = Models([replace(model, network=network, lane=Lane())], "colours")
    yield service
    device.go.set()
    workers.close()
    await single_flight.close()


async def ask(
    pipeline: InferencePipeline, *pictures: bytes, key: str | None = None
) -> inference_service_pb2.InferResponse:
    now = time.monotonic()
    call = CallMetadata("anonymous", [key] if key else [], now, now + 30)
    images = [inference_pb2.Image(data=data) for data in pictures]
    request = inference_service_pb2.InferRequest(images=images)
    reply = await pipeline.infer(call, request)
    return inference_service_pb2.InferResponse.FromString(reply.payload)


async def test_large_requests_are_checked_beside_the_loop(
    pipeline: InferencePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def noting(*arguments: Any) -> Any:
        threads.append(threading.current_thread())
        return check(*arguments)

    check = validate.check
    monkeypatch.setattr(validate, "check", noting)
    request = inference_service_pb2.InferRequest(images=[inference_pb2.Image(data=RED)])
    for size in (INLINE_BYTES, INLINE_BYTES + 1):
        now = time.monotonic()
        await pipeline.infer(CallMetadata("anonymous", [], now, now + 30, size), request)
    assert [thread is threading.main_thread() for thread in threads] == [True, False]


async def test_many_images_are_refused_before_they_are_checked(
    pipeline: InferencePipeline, device: FragileSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is busy, and its queue has four places."""
    checked: list[int] = []

    def noting(request: inference_service_pb2.InferRequest, *arguments: Any) -> Any:
        checked.append(len(request.images))
        return check(request, *arguments)

    check = validate.check
    monkeypatch.setattr(validate, "check", noting)
    device.go.clear()
    running = asyncio.create_task(ask(pipeline, RED))
    await until(lambda: device.runs)
    assert (await refusal(pipeline, *[RED] * 5)).reason == "QUEUE_FULL"
    assert checked == [1]
    # A key may have an answer already, and errors of the request are reported first.
    error = await refusal(pipeline, *[RED] * 5, key=str(uuid.uuid4()))
    assert error.reason == "QUEUE_FULL"
    assert (await refusal(pipeline, *[RED] * 17)).code is grpc.StatusCode.INVALID_ARGUMENT
    assert checked == [1, 5, 17]
    device.go.set()
    await running


async def test_calls_with_many_images_enter_in_turn_and_others_at_once(
    pipeline: InferencePipeline,
) -> None:
    order: list[str] = []
    now = time.monotonic()
    metadata = CallMetadata("anonymous", (), now, now + 30)

    async def enter(name: str, images: int) -> None:
        call = replace(metadata, share=Share(name.partition(" ")[0]))
        await pipeline.enter(call, images, "", "")
        order.append(name)

    flood = [asyncio.create_task(enter(f"flood {number}", 17)) for number in range(20)]
    others = [asyncio.create_task(enter("good", 17)), asyncio.create_task(enter("small", 1))]
    async with asyncio.timeout(10):
        await asyncio.gather(*flood, *others)
    assert order.index("small") <= 1
    assert order.index("good") <= 4


async def refusal(
    pipeline: InferencePipeline, *pictures: bytes, key: str | None = None
) -> SightlineError:
    with pytest.raises(SightlineError) as caught:
        await ask(pipeline, *pictures, key=key)
    return caught.value


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - there is no event for most conditions
            await asyncio.sleep(0.001)


async def test_a_large_image_is_checked_beside_the_loop(pipeline: InferencePipeline) -> None:
    large = picture((0, 255, 0), size=(1000, 1000), kind="BMP")
    answer = await ask(pipeline, large)
    assert answer.results[0].detections[0].class_name == "green"
    assert (await refusal(pipeline, large[:-1000])).reason == "IMAGE_CORRUPT"


async def test_a_run_that_fails_once_fails_its_call_only(
    pipeline: InferencePipeline, device: FragileSession
) -> None:
    key = str(uuid.uuid4())
    device.failing_runs = 1
    error = await refusal(pipeline, RED, key=key)
    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "MODEL_RUN_FAILED")
    assert (await ask(pipeline, RED, key=key)).results[0].detections
    assert pipeline.ready


async def test_a_dead_device_is_not_asked_again(
    pipeline: InferencePipeline, device: FragileSession
) -> None:
    assert pipeline.ready
    device.dead = True
    assert (await refusal(pipeline, RED)).code is grpc.StatusCode.INTERNAL
    await until(lambda: not pipeline.ready)
    runs = device.runs
    error = await refusal(pipeline, RED)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DEVICE_DEAD")
    assert device.runs == runs


async def test_a_server_without_models_is_not_ready(pipeline: InferencePipeline) -> None:
    pipeline.models = Models([], "")
    assert not pipeline.ready


async def test_what_is_refused_costs_no_run(
    pipeline: InferencePipeline, device: FragileSession
) -> None:
    await refusal(pipeline, b"no picture")
    await refusal(pipeline, RED, key="no uuid")
    assert device.runs == 0


async def test_a_replay_costs_no_run(pipeline: InferencePipeline, device: FragileSession) -> None:
    key = str(uuid.uuid4())
    first = await ask(pipeline, RED, key=key)
    assert await ask(pipeline, RED, key=key) == first
    assert device.runs == 1


async def test_draining_waits_for_the_calls_in_flight(
    pipeline: InferencePipeline, device: FragileSession
) -> None:
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
    pipeline: InferencePipeline, device: FragileSession
) -> None:
    device.go.clear()
    call = asyncio.create_task(refusal(pipeline, RED, RED))
    await until(lambda: device.runs)
    await pipeline.drain(0.02)
    error = await call
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")


async def test_an_answer_that_is_kept_outlives_its_model_and_the_device(
    pipeline: InferencePipeline, device: FragileSession
) -> None:
    key = str(uuid.uuid4())
    first = await ask(pipeline, RED, key=key)
    loaded, pipeline.models = pipeline.models, Models([], "colours")
    assert await ask(pipeline, RED, key=key) == first
    assert (await refusal(pipeline, RED, key=str(uuid.uuid4()))).reason == "MODEL_NOT_FOUND"
    pipeline.models = loaded
    device.dead = True
    await refusal(pipeline, RED)
    await until(lambda: not pipeline.ready)
    assert await ask(pipeline, RED, key=key) == first


async def test_a_model_that_is_not_loaded_yet_does_not_use_up_the_key(
    pipeline: InferencePipeline,
) -> None:
    key = str(uuid.uuid4())
    loaded, pipeline.models = pipeline.models, Models([], "colours")
    assert (await refusal(pipeline, RED, key=key)).reason == "MODEL_NOT_FOUND"
    pipeline.models = loaded
    assert (await ask(pipeline, RED, key=key)).results[0].detections


def result_of(size: int) -> MemberResult[inference_pb2.ImageResult]:
    return MemberResult(inference_pb2.ImageResult(image_id="x" * size), 0.0)


def test_results_beyond_the_response_become_errors_and_the_others_stay() -> None:
    images = tuple(CheckedImage(at, f"i{at}", open_image(RED), b"") for at in range(3))
    request = CheckedRequest("", "", Parameters(), images)
    ran = [result_of(6000), result_of(6000), result_of(1000)]
    first, second, third = _merge(request, ran, 12_000)
    assert (len(first.image_id), len(third.image_id)) == (6000, 1000)
    assert (second.image_id, second.error.code) == ("i1", 3)
    assert second.error.reason == "RESULT_TOO_LARGE"
    assert not _merge(request, ran, 20_000)[1].HasField("error")
    with pytest.raises(SightlineError) as caught:
        _merge(request, [result_of(9000)] * 3, 12_000)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.reason == "RESULT_TOO_LARGE"
    assert [violation.field for violation in caught.value.violations] == [
        "images[0]",
        "images[1]",
        "images[2]",
    ]


async def test_the_masks_of_a_call_end_with_its_deadline(
    pipeline: InferencePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[float] = []
    threads: list[threading.Thread] = []

    def decode(*_: Any, on_mask: OnMask, **_options: Any) -> Any:
        """Make masks without end, each in a second of the pipeline's clock."""
        threads.append(threading.current_thread())
        while True:
            made.append(1.0)
            on_mask(RleMask(2, 4, "2113"))

    monkeypatch.setattr(OnnxYolo, "decode_outputs", decode)
    pipeline.clock = lambda: time.monotonic() + sum(made)
    with pytest.raises(SightlineError) as caught:
        await ask(pipeline, RED)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(made) <= 31
    assert threads[0] is not threading.main_thread()


async def test_messages_are_made_in_a_worker(
    pipeline: InferencePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def noting(*arguments: Any) -> Any:
        threads.append(threading.current_thread())
        return image_result(*arguments)

    image_result = answers.image_result
    monkeypatch.setattr(answers, "image_result", noting)
    (result,) = (await ask(pipeline, RED)).results
    assert result.detections
    assert [thread is threading.main_thread() for thread in threads] == [False]
