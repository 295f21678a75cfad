"""The client and the coordinator against the inference service as a real process."""

import os
import signal
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import PIL.Image
import pytest

from edge.cloud.aio_client import AsyncInferenceClient
from edge.cloud.client import InferenceClient
from edge.cloud.types import InferParameters, ModelHint, ModelTask
from edge.decide.answer import Answer
from edge.decide.coordinator import InferenceCoordinator
from edge.decide.policy import Mode, Policy
from edge.detect import Detector, DetectorResult, Image, OnnxDetector, UltralyticsDetector
from edge.records import CloudReason, Detection, Source
from servicekit.errors import SightlineError
from tests.integration.inference.process import InferenceProcess, started
from tests.photographs import photograph
from tests.unit.edge.overlap import overlap
from tests.unit.inference_service.tiny_onnx import colour_model

YOLO = Path(os.environ.get("SIGHTLINE_TEST_MODELS", "")) / "yolov8n_int8.onnx"
os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false")
RED = np.full((48, 64, 3), (255, 0, 0), np.uint8)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    colour_model(folder / "colours" / "1" / "model.onnx")
    if YOLO.is_file():
        (folder / "yolov8n" / "1").mkdir(parents=True)
        (folder / "yolov8n" / "1" / "model.onnx").symlink_to(YOLO)
    return folder


@pytest.fixture(scope="module")
def service(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[InferenceProcess]:
    with started(tmp_path_factory.mktemp("service"), *flags(repository)) as server:
        yield server


def flags(repository: Path) -> list[str]:
    return ["--model-repository", str(repository), "--default-model", "colours"]


def policy(mode: Mode = Mode.AUTO) -> Policy:
    return Policy(mode=mode, timeout=20.0, cloud_reserve=1.0)


class Broken:
    """A detector whose accelerator has gone."""

    name = "broken"
    version = ""

    def detect(self, image: Image) -> DetectorResult:
        raise RuntimeError("CUDA error 700")


def test_models_are_listed(service: InferenceProcess) -> None:
    with InferenceClient(service.address) as client:
        models = {model.name: model for model in client.list_models()}
    assert models["colours"].task is ModelTask.DETECT
    assert models["colours"].default_model
    assert models["colours"].provider == "CPUExecutionProvider"


async def test_both_clients_get_the_same_answer(service: InferenceProcess) -> None:
    with InferenceClient(service.address) as client:
        one = client.infer([RED], image_ids=["frame-1"])
    async with AsyncInferenceClient(service.address) as other_client:
        other = await other_client.infer([RED], image_ids=["frame-1"])
    assert one.results == other.results
    (result,) = one.results
    assert (result.image_id, result.image_width, result.image_height) == ("frame-1", 64, 48)
    assert len(result.detections) > 0
    assert one.timing.total >= one.timing.infer > 0


def test_the_same_request_is_answered_once_and_replayed(service: InferenceProcess) -> None:
    key = str(uuid.uuid4())
    with InferenceClient(service.address) as client:
        first = client.infer([RED], idempotency_key=key)
        second = client.infer([RED], idempotency_key=key)
        with pytest.raises(SightlineError) as caught:
            client.infer([RED[:24]], idempotency_key=key)
    assert (first.idempotent_replayed, second.idempotent_replayed) == (False, True)
    assert first.results == second.results
    assert caught.value.reason == "IDEMPOTENCY_KEY_REUSED"


def test_what_is_no_image_is_refused_with_its_field(service: InferenceProcess) -> None:
    with InferenceClient(service.address) as client, pytest.raises(SightlineError) as caught:
        client.infer([b"no picture"])
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.reason == "IMAGE_TYPE_UNSUPPORTED"
    assert caught.value.violations[0].field.startswith("images[0]")


def test_an_unknown_model_is_not_found(service: InferenceProcess) -> None:
    with InferenceClient(service.address) as client, pytest.raises(SightlineError) as caught:
        client.infer([RED], model=ModelHint("nobody"))
    assert caught.value.code is grpc.StatusCode.NOT_FOUND


def test_parameters_reach_the_model(service: InferenceProcess) -> None:
    with InferenceClient(service.address) as client:
        answer = client.infer([RED], parameters=InferParameters(confidence_threshold=1.0))
    assert answer.results[0].detections == ()


def test_a_service_that_is_killed_and_started_again_answers_inside_the_budget(
    repository: Path, tmp_path: Path
) -> None:
    with started(tmp_path, *flags(repository)) as first:
        address = first.address
        client = InferenceClient(address)
        with client, InferenceCoordinator(Broken(), client, policy()) as coordinator:
            assert coordinator.ask(RED).cloud_reason is CloudReason.DEVICE_FAILED
            first.stop(signal.SIGKILL)
            answers: list[Answer] = []
            asking = threading.Thread(target=lambda: answers.append(coordinator.ask(RED)))
            asking.start()
            with started(tmp_path, *flags(repository), "--listen", address):
                asking.join(25)
    (answer,) = answers
    assert answer.source is Source.CLOUD
    assert len(answer.attempts) > 2  # the device, the outage, the answer
    assert answer.total_milliseconds < 20_000


real = pytest.mark.skipif(
    not YOLO.is_file(), reason="SIGHTLINE_TEST_MODELS holds no yolov8n_int8.onnx"
)


@pytest.fixture(scope="module", params=[UltralyticsDetector, OnnxDetector])
def on_device(request: pytest.FixtureRequest) -> Detector:
    detector: Detector = request.param(YOLO)
    return detector


@real
@pytest.mark.parametrize("photo", ["bus.jpg", "zidane.jpg"])
@pytest.mark.parametrize("form", ["path", "bytes", "array", "pillow"])
def test_device_and_cloud_see_the_same_objects_in_a_photograph(
    service: InferenceProcess, on_device: Detector, photo: str, form: str
) -> None:
    path = photograph(photo)
    image = _as(form, path)
    with InferenceClient(service.address, array_format="png") as client:
        device = InferenceCoordinator(on_device, None, policy(Mode.DEVICE))
        cloud = InferenceCoordinator(None, client, policy(), model=ModelHint("yolov8n"))
        with device, cloud:
            here, there = device.ask(image), cloud.ask(image)
    assert (here.source, there.source) == (Source.DEVICE, Source.CLOUD)
    assert there.cloud_reason is CloudReason.NO_DEVICE_MODEL
    assert (here.image_width, here.image_height) == (there.image_width, there.image_height)
    assert len(here.detections) >= 3
    for one, other in zip(here.detections, there.detections, strict=True):
        assert_same(one, other)


def _as(form: str, path: Path) -> Image:
    if form == "bytes":
        return path.read_bytes()
    if form == "path":
        return path
    with PIL.Image.open(path) as opened:
        rgb = opened.convert("RGB")
    return rgb if form == "pillow" else np.asarray(rgb)


def assert_same(one: Detection, other: Detection) -> None:
    assert (one.class_id, one.class_name) == (other.class_id, other.class_name)
    assert one.confidence == pytest.approx(other.confidence, abs=0.01)
    assert overlap(one.box, other.box) >= 0.9
