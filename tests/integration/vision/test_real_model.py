"""YOLOv8n on real photographs, against ultralytics on the same files."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.photographs import photograph
from vision import Layout, OnnxYolo, decode_image

MODEL = Path(os.environ.get("SIGHTLINE_TEST_MODELS", "")) / "yolov8n_int8.onnx"
PICTURES = ["bus.jpg", "zidane.jpg"]
# In a process of its own: its import takes seconds and sets process-wide switches.
REFERENCE = """
import json, sys
from ultralytics import YOLO
model = YOLO(sys.argv[1], task="detect")
found = {}
for picture in sys.argv[2:]:
    boxes = model.predict(picture, conf=0.25, verbose=False)[0].boxes
    found[picture] = [boxes.xyxy.tolist(), boxes.conf.tolist(), boxes.cls.tolist()]
print(json.dumps(found))
"""

pytestmark = [
    pytest.mark.skipif(
        not MODEL.is_file(), reason="SIGHTLINE_TEST_MODELS holds no yolov8n_int8.onnx"
    ),
    pytest.mark.skipif(find_spec("ultralytics") is None, reason="ultralytics is not installed"),
]


@pytest.fixture(scope="module")
def detector() -> OnnxYolo:
    return OnnxYolo.load(MODEL)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[np.ndarray]]:
    home = tmp_path_factory.mktemp("ultralytics")
    offline = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": str(home)}
    paths = [str(photograph(name)) for name in PICTURES]
    done = subprocess.run(
        [sys.executable, "-c", REFERENCE, str(MODEL), *paths],
        env={**os.environ, **offline},
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    detections = json.loads(done.stdout.splitlines()[-1])
    return {
        Path(path).name: [np.array(part) for part in parts] for path, parts in detections.items()
    }


def overlap(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes in pairs, ``[N, 4]`` and ``[N, 4]`` to ``[N]``."""
    low, high = np.maximum(ours[:, :2], theirs[:, :2]), np.minimum(ours[:, 2:], theirs[:, 2:])
    shared = (high - low).clip(0).prod(axis=1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (ours, theirs)]
    shares: np.ndarray = shared / (areas[0] + areas[1] - shared)
    return shares


def test_the_model_says_what_it_is(detector: OnnxYolo) -> None:
    assert detector.input_size == (640, 640)
    assert detector.layout is Layout.YOLOV8
    assert (len(detector.names), detector.names[5]) == (80, "bus")


@pytest.mark.parametrize("picture", PICTURES)
def test_the_same_objects_as_ultralytics(
    detector: OnnxYolo, reference: dict[str, list[np.ndarray]], picture: str
) -> None:
    boxes, confidence, classes = reference[picture]
    detections = detector.detect(decode_image(photograph(picture).read_bytes()))
    assert len(classes) >= 3
    assert detections.class_id.tolist() == classes.tolist()
    assert overlap(detections.xyxy, boxes).min() >= 0.99
    assert detections.confidence == pytest.approx(confidence, abs=0.005)
