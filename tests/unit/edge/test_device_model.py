"""Construction of the detector from settings, and its release."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false")

import numpy as np
import pytest

from edge.detect import OnnxDetector, ProcessDetector, UltralyticsDetector, close_detector
from edge.device_model import load_detector
from edge.settings import EdgeSettings
from tests.unit.vision.models import save_detector
from vision import ModelError

BLACK = np.zeros((64, 96, 3), np.uint8)


def settings_of(**options: Any) -> EdgeSettings:
    return EdgeSettings(**options)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_detector(tmp_path / "tiny.onnx")


def test_no_model_or_mode_cloud_is_no_detector(model: Path) -> None:
    assert load_detector(settings_of()) is None
    assert load_detector(settings_of(device_model=model, mode="cloud")) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({}, OnnxDetector),
        ({"detector": "ultralytics"}, UltralyticsDetector),
        ({"device_process": True}, ProcessDetector),
    ],
)
def test_settings_choose_the_detector_and_what_it_says(
    model: Path, more: dict[str, Any], kind: type
) -> None:
    settings = settings_of(
        device_model=model,
        device_model_name="plates",
        device_model_version="7",
        max_detections=1,
        confidence_threshold=0.1,
        **more,
    )
    detector = load_detector(settings)
    assert detector is not None
    assert type(detector) is kind
    result = detector.detect(BLACK)
    assert (result.model_name, result.model_version) == ("plates", "7")
    assert len(result.detections) == 1
    close_detector(detector)


def test_a_model_that_is_not_there_is_said_from_its_process_too(tmp_path: Path) -> None:
    settings = settings_of(device_model=tmp_path / "none.onnx", device_process=True)
    with pytest.raises(ModelError, match=r"none\.onnx") as caught:
        load_detector(settings)
    assert caught.value.reason == "MODEL_FILE_MISSING"


def test_a_tracker_needs_ultralytics() -> None:
    with pytest.raises(ValueError, match="device_tracker: needs detector ultralytics"):
        settings_of(device_tracker="bytetrack")


@pytest.mark.parametrize("value", [0, 3601])
def test_a_hang_has_bounds(value: float) -> None:
    with pytest.raises(ValueError, match="device_hang_seconds"):
        settings_of(device_hang_seconds=value)


def test_closing_a_detector_that_holds_nothing_does_nothing(model: Path) -> None:
    detector = OnnxDetector(model)
    close_detector(detector)
    assert detector.detect(BLACK).model_name == "tiny"


@pytest.mark.slow
def test_the_owner_of_a_process_needs_no_runtime(model: Path) -> None:
    program = """
import sys
for name in ("onnxruntime", "ultralytics", "torch", "cv2", "PIL", "numpy"):
    sys.modules[name] = None
from pathlib import Path
from edge.device_model import load_detector
from edge.settings import EdgeSettings
from servicekit.errors import SightlineError
detector = load_detector(EdgeSettings(device_model=Path(sys.argv[1]), device_process=True))
try:
    detector.detect(b"no picture")
except SightlineError as error:
    print(error.reason)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program, str(model)],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert ran.stdout == "IMAGE_TYPE_UNSUPPORTED\n"
