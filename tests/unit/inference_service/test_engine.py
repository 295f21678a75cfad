"""One model on one picture, and what it says when it cannot."""

import copy
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest

from inference_service.domain import CheckedImage, ImagePrediction, Parameters
from inference_service.models.engine import ImageWork, Model
from inference_service.models.loader import Runtime, load_model
from inference_service.models.model_spec import ModelSpec, ModelThresholds
from servicekit.errors import SightlineError
from tests.unit.inference_service.tiny_onnx import colour_model, corrupt, picture
from vision import Detections, ModelError, OnnxYolo, open_image


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


def test_a_picture_is_seen_in_its_own_pixels(model: Model) -> None:
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
    decode = OnnxYolo.decode

    def spy(*arguments: Any, **named: Any) -> Any:
        calls.append(named)
        return decode(*arguments, **named)

    monkeypatch.setattr(OnnxYolo, "decode", spy)
    own = replace(
        model, spec=ModelSpec(thresholds=ModelThresholds(confidence=0.1, iou=0.2, max_detections=3))
    )
    see(own, picture())
    see(own, picture(), Parameters(0.4, 0.5, 6))
    see(own, picture(), Parameters(0.0, 0.0, 1))
    assert calls == [
        {"confidence": 0.1, "iou": 0.2, "max_detections": 3},
        {"confidence": 0.4, "iou": 0.5, "max_detections": 6},
        {"confidence": 0.0, "iou": 0.0, "max_detections": 1},
    ]


def test_a_picture_that_cannot_be_decoded_is_the_caller_s_fault(model: Model) -> None:
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
