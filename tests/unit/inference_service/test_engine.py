"""One model on one picture, and what it says when it cannot."""

from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest

from inference_service.batch import UnwantedError
from inference_service.domain import Parameters, Picture, Seen
from inference_service.models.engine import Model, look
from inference_service.models.model_spec import ModelSpec, Thresholds
from inference_service.models.repository import Runtime, load_model
from servicekit.errors import SightlineError
from servicekit.vision import ImageLimits, ModelError, OnnxDetector
from tests.unit.inference_service.tiny_onnx import colour_model, corrupt, picture

LIMITS = ImageLimits()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("models") / "colours" / "3"
    colour_model(path / "model.onnx")
    return load_model(path, Runtime(("CPUExecutionProvider",), 1))


def see(model: Model, data: bytes, parameters: Parameters | None = None) -> Seen:
    shown = Picture(2, "a", data, b"")
    return look(model, shown, parameters or Parameters(), LIMITS, lambda: True)


def test_a_picture_is_seen_in_its_own_pixels(model: Model) -> None:
    seen = see(model, picture((0, 0, 255), size=(128, 128)))
    assert (seen.width, seen.height) == (128, 128)
    assert seen.detections.class_id.tolist() == [2]
    assert seen.detections.confidence.tolist() == pytest.approx([1.0], abs=0.01)
    assert seen.detections.xyxy[0].tolist() == pytest.approx([32, 48, 96, 80])
    assert min(seen.decode, seen.infer, seen.post) > 0


def test_the_model_s_own_thresholds_hold_unless_the_caller_says_otherwise(model: Model) -> None:
    half = picture((150, 0, 0))
    assert len(see(model, half).detections) == 1
    strict = replace(model, spec=ModelSpec(thresholds=Thresholds(confidence=0.9)))
    assert len(see(strict, half).detections) == 0
    assert len(see(strict, half, Parameters(confidence=0.5)).detections) == 1
    assert len(see(strict, half, Parameters(confidence=0.0)).detections) == 1
    assert len(see(model, half, Parameters(confidence=0.7)).detections) == 0


def test_every_parameter_reaches_the_decoder(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    decode = OnnxDetector.decode

    def spy(*arguments: Any, **named: Any) -> Any:
        calls.append(named)
        return decode(*arguments, **named)

    monkeypatch.setattr(OnnxDetector, "decode", spy)
    own = replace(
        model, spec=ModelSpec(thresholds=Thresholds(confidence=0.1, iou=0.2, max_detections=3))
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


class Counting:
    """A detector that counts its runs, and fails as it is told."""

    def __init__(self, detector: OnnxDetector, error: ModelError | None = None) -> None:
        self._detector = detector
        self._error = error
        self.runs = 0

    def run(self, batch: Any) -> Any:
        self.runs += 1
        if self._error:
            raise self._error
        return np.full((1, 7, 1), np.nan, dtype=np.float32)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._detector, name)


def test_the_model_is_not_run_for_nobody(model: Model) -> None:
    detector = Counting(model.detector)
    nobody = replace(model, detector=detector)  # type: ignore[arg-type]
    with pytest.raises(UnwantedError):
        look(nobody, Picture(0, "", picture(), b""), Parameters(), LIMITS, lambda: False)
    assert detector.runs == 0


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
    failing = replace(model, detector=Counting(model.detector, error))  # type: ignore[arg-type]
    with pytest.raises(SightlineError, match="model colours version 3") as caught:
        see(failing, picture())
    assert caught.value.code is grpc.StatusCode.INTERNAL
    assert caught.value.reason == reason
    assert caught.value.retryable


def test_the_folders_give_name_and_version(model: Model) -> None:
    assert (model.name, model.version) == ("colours", "3")
