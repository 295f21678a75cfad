"""Real photographs through a real model: what is in them is what is answered."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.inference.process import InferenceStub, client, names, started
from tests.photographs import photograph
from vision import OnnxYolo, SessionOptions, decode_image


@pytest.fixture(scope="module")
def yolo() -> Path:
    folder = os.environ.get("SIGHTLINE_TEST_MODELS")
    path = Path(folder or "") / "yolov8n_int8.onnx"
    if not folder or not path.is_file():
        pytest.skip("SIGHTLINE_TEST_MODELS names no folder with yolov8n_int8.onnx")
    return path


@pytest.fixture(scope="module")
def served(yolo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceStub]:
    folder = tmp_path_factory.mktemp("photographs")
    version = folder / "models" / "yolov8n" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").symlink_to(yolo)
    flags = ["--model-repository", str(folder / "models")]
    with started(folder, *flags) as server, client(server) as connected:
        yield connected


@pytest.fixture(scope="module")
def photographs() -> dict[str, bytes]:
    return {name: photograph(f"{name}.jpg").read_bytes() for name in ("bus", "zidane")}


def test_what_is_in_the_photographs(served: InferenceStub, photographs: dict[str, bytes]) -> None:
    bus, zidane = served.infer(photographs["bus"], photographs["zidane"]).results
    assert (bus.image_width, bus.image_height) == (810, 1080)
    assert (zidane.image_width, zidane.image_height) == (1280, 720)
    seen = Counter(names(bus))
    assert seen["bus"] == 1
    assert seen["person"] >= 3
    seen = Counter(names(zidane))
    assert seen["person"] == 2
    assert seen["tie"] >= 1


def test_the_answer_is_the_model_s_own(
    served: InferenceStub, photographs: dict[str, bytes], yolo: Path
) -> None:
    own = OnnxYolo.load(yolo, SessionOptions(intra_op_threads=1))
    expected = own.detect(decode_image(photographs["bus"]))
    detections = served.infer(photographs["bus"]).results[0].detections
    assert [each.class_id for each in detections] == expected.class_id.tolist()
    assert [each.confidence for each in detections] == pytest.approx(expected.confidence.tolist())
    boxes = [[b.x_min, b.y_min, b.x_max, b.y_max] for b in (each.box for each in detections)]
    for box, want in zip(boxes, expected.xyxy.tolist(), strict=True):
        assert box == pytest.approx(want)
    assert all(each.class_name == own.names[each.class_id] for each in detections)
    assert not any(each.HasField("track_id") for each in detections)
