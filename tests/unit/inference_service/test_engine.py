"""One model on one picture, and what it says when it cannot."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest

from inference_service.domain import CheckedImage, ImagePrediction, Parameters
from inference_service.models.engine import ImageWork, Model
from inference_service.models.loader import Runtime, load_model
from inference_service.models.model_spec import ModelSpec, ModelThresholds
from inference_service.serving.workers import late
from servicekit.errors import SightlineError
from tests.unit.inference_service.tiny_onnx import colour_model, corrupt, picture
from tests.unit.vision.models import save_segmenter
from vision import (
    Detections,
    ModelError,
    OnnxYolo,
    PolygonMask,
    RleMask,
    decode_rle,
    open_image,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("models") / "colours" / "3"
    colour_model(path / "model.onnx")
    return load_model(path, Runtime())


def see(model: Model, data: bytes, parameters: Parameters | None = None) -> ImagePrediction:
    shown = CheckedImage(2, "a", open_image(data), b"")
    work = ImageWork(model, shown, parameters or Parameters())
    return work.finish(model.run(work.prepare()))


def found(model: Model, data: bytes, parameters: Parameters | None = None) -> Detections:
    detections = see(model, data, parameters).result
    assert isinstance(detections, Detections)
    return detections


def test_an_image_is_seen_in_its_own_pixels(model: Model) -> None:
    blue = picture((0, 0, 255), size=(128, 64))
    seen, detections = see(model, blue), found(model, blue)
    assert (seen.width, seen.height) == (128, 64)
    assert detections.class_id.tolist() == [2]
    assert detections.confidence.tolist() == pytest.approx([0.72], abs=0.01)  # half is grey 114
    assert detections.xyxy[0].tolist() == pytest.approx([32, 16, 96, 48])


def test_the_model_s_own_thresholds_hold_unless_the_caller_says_otherwise(model: Model) -> None:
    half = picture((150, 0, 0))
    assert len(found(model, half)) == 1
    strict = replace(model, spec=ModelSpec(thresholds=ModelThresholds(confidence=0.9)))
    assert len(found(strict, half)) == 0
    assert len(found(strict, half, Parameters(confidence=0.5))) == 1
    assert len(found(strict, half, Parameters(confidence=0.0))) == 1
    assert len(found(model, half, Parameters(confidence=0.7))) == 0


def test_every_parameter_reaches_the_decoder(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    decode = OnnxYolo.decode_outputs

    def spy(*arguments: Any, **named: Any) -> Any:
        calls.append(named)
        return decode(*arguments, **named)

    monkeypatch.setattr(OnnxYolo, "decode_outputs", spy)
    thresholds = ModelThresholds(
        confidence=0.1, iou=0.2, max_detections=3, mask_format="rle", polygon_tolerance=4.0
    )
    own = replace(model, spec=ModelSpec(thresholds=thresholds))
    see(own, picture())
    see(own, picture(), Parameters(0.4, 0.5, 6, None, "polygon", 2.0))
    see(own, picture(), Parameters(0.0, 0.0, 1, None, "off", 0.0))
    names = ("confidence", "iou", "max_detections", "mask_format", "tolerance")
    assert [tuple(call[name] for name in names) for call in calls] == [
        (0.1, 0.2, 3, "rle", 4.0),
        (0.4, 0.5, 6, "polygon", 2.0),
        (0.0, 0.0, 1, "off", 0.0),
    ]


def test_an_image_that_cannot_be_decoded_is_the_caller_s_fault(model: Model) -> None:
    with pytest.raises(SightlineError) as caught:
        see(model, corrupt())
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.reason == "IMAGE_CORRUPT"
    assert caught.value.violations[0].field == "images[2].data"


class Failing:
    """A session that fails as it is told, or answers nonsense."""

    def __init__(self, error: ModelError | None) -> None:
        self.error = error

    def run(self, batch: Any) -> Any:
        if self.error:
            raise self.error
        return (np.full((1, 7, 1), np.nan, dtype=np.float32),)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModelError("MODEL_RUN_FAILED", "CUDA error 700"), "MODEL_RUN_FAILED"),
        (None, "MODEL_OUTPUT_INVALID"),  # NaN
    ],
)
def test_a_model_that_fails_is_the_server_s_fault(
    model: Model, error: ModelError | None, reason: str
) -> None:
    network = copy.copy(model.network)
    network.session = Failing(error)  # type: ignore[assignment]
    failing = replace(model, network=network)
    with pytest.raises(SightlineError, match="model colours version 3") as caught:
        see(failing, picture())
    assert caught.value.code is grpc.StatusCode.INTERNAL
    assert caught.value.reason == reason
    assert caught.value.retryable


def test_the_folders_give_name_and_version(model: Model) -> None:
    assert (model.name, model.version) == ("colours", "3")


ROWS = np.array([[20, 20, 16, 16, 0.9, 0, 1, 0], [60, 40, 8, 8, 0, 0.5, 0, 1]], dtype=np.float32).T
"""Output `[8, 2]`: two objects of two classes, each with the coefficients of its own mask."""


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("masks") / "plates" / "1"
    path.mkdir(parents=True)
    prototypes = np.ones((2, 16, 24), np.float32)
    save_segmenter(path / "model.onnx", ROWS, prototypes, first="rows")
    return load_model(path, Runtime())


def test_masks_come_in_the_form_of_the_request_or_of_the_model(segmenter: Model) -> None:
    assert segmenter.spec.task == "segment"
    shown = picture((204, 204, 204), size=(192, 128))
    masks = found(segmenter, shown).masks
    assert masks is not None
    assert [type(mask) for mask in masks] == [PolygonMask] * 2
    rle = found(segmenter, shown, Parameters(mask_format="rle")).masks
    assert rle is not None
    assert all(isinstance(mask, RleMask) and decode_rle(mask).sum() > 100 for mask in rle)
    thresholds = ModelThresholds(mask_format="off")
    off = replace(segmenter, spec=ModelSpec(task="segment", thresholds=thresholds))
    assert found(off, shown).masks is None
    assert found(off, shown, Parameters(mask_format="polygon")).masks is not None


def work_on(model: Model, **options: Any) -> ImageWork:
    shown = CheckedImage(2, "a", open_image(picture(size=(192, 128))), b"")
    return ImageWork(model, shown, Parameters(mask_format="rle"), **options)


def test_masks_beyond_the_response_are_the_caller_s_error(segmenter: Model) -> None:
    work = work_on(segmenter, max_bytes=10)
    outputs = segmenter.run(work.prepare())
    with pytest.raises(SightlineError) as caught:
        work.finish(outputs)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.reason == "RESULT_TOO_LARGE"
    assert "a response of 10 bytes: ask for fewer detections" in caught.value.message
    assert caught.value.violations[0].field == "images[2]"


def test_masks_are_not_made_for_a_caller_who_has_gone(segmenter: Model) -> None:
    def require_time() -> None:
        raise late()

    work = work_on(segmenter, require_time=require_time)
    outputs = segmenter.run(work.prepare())
    with pytest.raises(SightlineError) as caught:
        work.finish(outputs)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_memory_for_masks_is_reserved_while_they_are_made(segmenter: Model, model: Model) -> None:
    held: list[int] = []

    @contextmanager
    def reserve(size: int) -> Iterator[None]:
        held.append(size)
        yield
        held.append(-size)

    work = work_on(segmenter, reserve=reserve)
    outputs = segmenter.run(work.prepare())
    held.clear()
    work.finish(outputs)
    assert held == [6 * 192 * 128, -6 * 192 * 128]
    work = work_on(model, reserve=reserve)
    outputs = model.run(work.prepare())
    held.clear()
    work.finish(outputs)
    assert held == []
