"""Downscaling of images: which are downscaled, bytes saved, and boxes in original pixels."""

import io
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from sightline.inference.v1 import inference_pb2

from edge.cloud.client import InferenceClient
from edge.cloud.downscale import ModelInput, Scale, downscaled, model_inputs
from edge.cloud.sizes import ModelSizes
from edge.cloud.types import ImageAnswer, ModelHint, ModelInfo, ModelTask
from edge.records import Box, Detection
from servicekit.errors import SightlineError
from tests.fakes.inference import FakeInference, Reply, serving
from vision import letterbox_image

ROWS, COLUMNS = np.mgrid[:960, :1280]
SMOOTH = np.stack(
    [ROWS * 255 // 960, COLUMNS * 255 // 1280, (ROWS + COLUMNS) * 255 // 2240], axis=2
).astype(np.uint8)
NOISE = np.random.default_rng(1).integers(0, 256, (960, 1280, 3), np.uint8)


def jpeg(pixels: NDArray[np.uint8], **options: Any) -> bytes:
    out = io.BytesIO()
    PIL.Image.fromarray(pixels).save(out, "JPEG", quality=95, **options)
    return out.getvalue()


def model(
    name: str = "plates",
    version: str = "3",
    task: ModelTask = ModelTask.DETECT,
    size: tuple[int, int] = (320, 256),
    *,
    default_version: bool = True,
    default_model: bool = True,
) -> ModelInfo:
    return ModelInfo(name, version, task, (), *size, "CPU", default_version, default_model)


def test_an_image_is_made_to_fit_and_its_pixels_are_those_of_the_models_letterbox() -> None:
    small = downscaled(SMOOTH, (320, 256), "image")
    assert small is not None
    data, scale = small
    with PIL.Image.open(io.BytesIO(data)) as sent:
        assert (sent.format, sent.size) == ("JPEG", (320, 240))
        pixels = np.asarray(sent).astype(int)
    assert scale == Scale(1280, 960, 4.0, 4.0)
    exact, _ = letterbox_image(SMOOTH, (240, 320))
    difference = np.abs(pixels - exact[0].transpose(1, 2, 0) * 255)
    assert difference.mean() < 1


def test_what_fits_is_left_alone() -> None:
    assert downscaled(NOISE, (1280, 1280), "image") is None
    assert downscaled(NOISE, (4000, 4000), "image") is None


def test_a_turned_image_is_shrunk_upright() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    small = downscaled(jpeg(NOISE, exif=exif), (320, 320), "image")
    assert small is not None
    with PIL.Image.open(io.BytesIO(small[0])) as sent:
        assert sent.size == (240, 320)
    assert (small[1].width, small[1].height) == (960, 1280)


def test_what_is_no_image_is_refused_by_name() -> None:
    with pytest.raises(SightlineError, match=r"images\[0\] is refused"):
        downscaled(b"nonsense", (320, 320), "images[0]")


def test_boxes_come_back_in_pixels_of_the_original() -> None:
    scale = Scale(1280, 900, 4.0, 3.75)  # as rounding to whole pixels may make it
    detection = Detection(1, "pit", 0.5, Box(1, 2, 320.5, 40))
    restored = scale.restored(ImageAnswer("a", 320, 240, (detection, Detection(2, "ok", 0.4))))
    assert restored.detections[0].box == Box(4, 7.5, 1280, 150)
    assert restored.detections[1].box is None
    assert (restored.image_width, restored.image_height) == (1280, 900)
    bad = ImageAnswer("a", 0, 0, error=SightlineError.__new__(SightlineError))
    assert scale.restored(bad) is bad


def test_inputs_are_known_by_every_hint_that_means_the_model() -> None:
    inputs = model_inputs(
        (
            model(),
            model(version="2", size=(640, 640), default_version=False),
            model("other", "1", size=(512, 512), default_model=False),
            model("classes", "1", ModelTask.CLASSIFY, default_model=False),
            *(
                model(task.value, "1", task, default_version=False, default_model=False)
                for task in (ModelTask.SEGMENT, ModelTask.POSE, ModelTask.OBB)
            ),
            model("free", "1", size=(0, 0), default_model=False),
        )
    )
    assert {hint: known.size for hint, known in inputs.items()} == {
        ModelHint("plates", "3"): (320, 256),
        ModelHint("plates", ""): (320, 256),
        ModelHint("", ""): (320, 256),
        ModelHint("plates", "2"): (640, 640),
        ModelHint("other", "1"): (512, 512),
        ModelHint("other", ""): (512, 512),
        ModelHint("classes", "1"): None,
        ModelHint("classes", ""): None,
        ModelHint("segment", "1"): (320, 256),
        ModelHint("pose", "1"): (320, 256),
        ModelHint("obb", "1"): (320, 256),
        ModelHint("free", "1"): None,
        ModelHint("free", ""): None,
    }
    assert inputs[ModelHint()] == ModelInput(ModelHint("plates", "3"), (320, 256))


class Service:
    """A service that lists models and counts the calls."""

    def __init__(self, *models: ModelInfo) -> None:
        self.models = models
        self.failing = False
        self.go = threading.Event()
        self.calls = 0
        self.now = 0.0
        self.sizes = ModelSizes(self.list_models, lambda: self.now)

    def list_models(self) -> tuple[ModelInfo, ...]:
        self.calls += 1
        assert self.go.wait(10)
        if self.failing:
            raise SightlineError(grpc.StatusCode.UNAVAILABLE, "DOWN", "down")
        return self.models

    def learn(self, hint: ModelHint = ModelHint()) -> tuple[int, int] | None:  # noqa: B008
        """Asks for a size, and once more when what that set off is over."""
        self.go.set()
        self.sizes.of(hint)
        until(lambda: not self.sizes._learning)
        return self.sizes.of(hint)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_sizes_are_learnt_once_and_nobody_waits_for_them() -> None:
    service = Service(model())
    assert [service.sizes.of(ModelHint()) for _ in range(3)] == [None] * 3
    assert service.learn() == (320, 256)
    assert service.sizes.of(ModelHint("unknown")) is None
    assert service.calls == 1


def test_a_service_that_is_slow_to_say_is_not_asked_twice_at_once() -> None:
    service = Service(model())
    service.sizes.of(ModelHint())
    service.now = 100.0
    service.sizes.of(ModelHint())
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("sightline-models") == 1
    assert service.learn() == (320, 256)


def test_what_could_not_be_learnt_is_tried_again_later() -> None:
    service = Service(model())
    service.failing = True
    assert service.learn() is None
    service.failing = False
    service.now = 29.9
    assert (service.learn(), service.calls) == (None, 1)
    service.now = 30.0
    assert (service.learn(), service.calls) == ((320, 256), 2)


def test_images_for_a_classifier_go_whole_and_it_is_not_asked_for_again() -> None:
    service = Service(model(task=ModelTask.CLASSIFY))
    assert service.learn() is None
    service.now = 1000.0
    assert (service.learn(), service.calls) == (None, 1)


def test_a_new_default_among_the_known_ones_counts_from_its_first_answer() -> None:
    old, new = model(), model(version="4", size=(640, 640), default_version=False)
    service = Service(old, new)
    assert service.learn() == (320, 256)
    service.sizes.answered(ModelHint(), ModelHint("plates", "3"))
    assert service.sizes.of(ModelHint()) == (320, 256)
    service.sizes.answered(ModelHint(), ModelHint("plates", "4"))
    assert service.sizes.of(ModelHint()) == (640, 640)
    assert service.calls == 1


def test_a_default_that_is_not_known_is_learnt_and_until_then_images_go_whole() -> None:
    service = Service(model())
    assert service.learn() == (320, 256)
    service.models = (model(version="4", size=(640, 640)),)
    service.now = 100.0
    service.go.clear()
    service.sizes.answered(ModelHint(), ModelHint("plates", "4"))
    assert service.sizes.of(ModelHint()) is None
    assert service.learn() == (640, 640)
    assert service.calls == 2


def learnt(fake: FakeInference) -> InferenceClient:
    """Return a client that downscales and knows the input sizes."""
    client = InferenceClient(fake.target, downscale=True, upload_above_bytes=None)
    deadline = time.monotonic() + 10
    while len(client.prepare([NOISE]).images[0]) > 200_000:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return client


PLATES = inference_pb2.ModelInfo(
    name="plates",
    version="3",
    task=inference_pb2.MODEL_TASK_DETECT,
    input_width=320,
    input_height=256,
    default_version=True,
    default_model=True,
)


@pytest.fixture
def fake() -> Iterator[FakeInference]:
    with serving(Reply(), models=[PLATES]) as service:
        yield service


def test_the_first_image_goes_whole_and_the_next_ones_small(fake: FakeInference) -> None:
    whole = jpeg(NOISE)
    client = InferenceClient(fake.target, downscale=True, upload_above_bytes=None)
    first = client.infer([whole])
    assert (first.bytes_sent, first.bytes_saved) == (len(whole), 0)
    client.close()
    with learnt(fake) as client:
        answer = client.infer([whole])
    small = fake.seen[-1].request.images[0].data
    assert answer.bytes_sent == len(small) < len(whole) / 4
    assert answer.bytes_saved == len(whole) - len(small)
    (result,) = answer.results
    assert (result.image_width, result.image_height) == (1280, 960)
    assert result.detections[0].box == Box(4, 8, 122, 160)


def test_pixels_are_shrunk_too_and_what_that_saves_is_not_known(fake: FakeInference) -> None:
    with learnt(fake) as client:
        answer = client.infer([NOISE])
    assert answer.bytes_saved == 0
    assert answer.bytes_sent < 200_000
    assert answer.results[0].image_width == 1280


def test_an_image_that_would_not_become_smaller_is_left_as_it_is(fake: FakeInference) -> None:
    out = io.BytesIO()
    PIL.Image.fromarray(NOISE[:260, :330]).save(out, "JPEG", quality=5)
    with learnt(fake) as client:
        answer = client.infer([out.getvalue()])
    assert fake.seen[-1].request.images[0].data == out.getvalue()
    assert answer.bytes_saved == 0


def test_with_a_key_of_the_callers_the_bytes_are_always_the_same(fake: FakeInference) -> None:
    whole = jpeg(NOISE)
    with learnt(fake) as client:
        client.infer([whole], idempotency_key=str(uuid.uuid4()))
    assert fake.seen[-1].request.images[0].data == whole


def test_a_file_is_shrunk_as_its_bytes_are(fake: FakeInference, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(NOISE))
    with learnt(fake) as client:
        assert client.infer([tmp_path / "a.jpg"]).bytes_saved > 0


def test_without_the_option_nothing_is_shrunk_or_asked(fake: FakeInference) -> None:
    whole = jpeg(NOISE)
    with InferenceClient(fake.target, upload_above_bytes=None) as client:
        for _ in range(3):
            client.infer([whole])
    assert [seen.request.images[0].data for seen in fake.seen] == [whole] * 3


def test_a_client_closed_before_the_models_were_asked_for_is_an_error(fake: FakeInference) -> None:
    client = InferenceClient(fake.target)
    client.close()
    with pytest.raises(SightlineError) as caught:
        client.list_models()
    assert (caught.value.code, caught.value.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "CLIENT_CLOSED",
    )


def test_an_answer_of_another_model_is_heeded(fake: FakeInference) -> None:
    with learnt(fake) as client:
        fake.models = [
            inference_pb2.ModelInfo(
                name="plates",
                version="4",
                task=inference_pb2.MODEL_TASK_DETECT,
                input_width=64,
                input_height=64,
                default_version=True,
                default_model=True,
            )
        ]
        fake.model_version = "4"
        client.infer([NOISE])
        assert len(client.prepare([NOISE]).images[0]) > 200_000


def test_what_an_earlier_model_said_says_nothing_of_the_present_one() -> None:
    with serving(Reply(replayed=True), models=[PLATES]) as fake, learnt(fake) as client:
        fake.model_version = "2"
        client.infer([NOISE])
        assert len(client.prepare([NOISE]).images[0]) < 200_000


def test_without_numpy_or_pillow_shrinking_is_refused_at_once() -> None:
    code = """
import sys
sys.modules["PIL"] = None
from edge.cloud.client import InferenceClient
InferenceClient("127.0.0.1:1").close()
try:
    InferenceClient("127.0.0.1:1", downscale=True)
except ModuleNotFoundError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
