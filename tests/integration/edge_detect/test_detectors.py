"""All detectors: on a small model whose output is known, and on photographs with YOLOv8n.

In a process of their own they must do the same.
"""

import os
import subprocess
import sys
import threading
from functools import cache, partial
from pathlib import Path
from typing import Any

os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false")

import numpy as np
import onnx
import PIL.Image
import pytest
from numpy.typing import NDArray

from edge.detect import (
    Detector,
    DetectorResult,
    OnnxDetector,
    ProcessDetector,
    Thresholds,
    UltralyticsDetector,
)
from edge.detect.base import close_detector
from edge.records import Box, Detection
from servicekit.contract_bounds import MAX_CLASS_NAME_BYTES
from servicekit.errors import SightlineError
from servicekit.names import readable
from tests.photographs import photograph
from tests.unit.edge.overlap import overlap
from tests.unit.inference_service.tiny_onnx import colour_model
from tests.unit.vision.models import TWO_OBJECTS, save_detector
from tests.unit.vision.yolov5_onnx import SIDE, make_levels, save_yolov5
from vision import ModelError

MODELS = Path(os.environ.get("SIGHTLINE_TEST_MODELS", "")) / "yolov8n_int8.onnx"
PHOTOS = ["bus.jpg", "zidane.jpg"]
real = pytest.mark.skipif(
    not MODELS.is_file(), reason="SIGHTLINE_TEST_MODELS holds no yolov8n_int8.onnx"
)

# Anchors of two plates that overlap by 0.6 and a mould; 96 x 64 pixels, as the model's input.
EXPECTED = (
    Detection(0, "plate", 0.75, Box(12, 12, 28, 28)),
    Detection(1, "mould", 0.625, Box(56, 36, 64, 44)),
)


def onnx_process(path: Path, **options: Any) -> ProcessDetector:
    return ProcessDetector(partial(OnnxDetector, path, **options))


def ultralytics_process(path: Path, **options: Any) -> ProcessDetector:
    return ProcessDetector(partial(UltralyticsDetector, path, **options))


KINDS = (OnnxDetector, UltralyticsDetector)


@pytest.fixture(
    params=[OnnxDetector, UltralyticsDetector, onnx_process],
    ids=["onnx", "ultralytics", "onnx-process"],
)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_detector(tmp_path_factory.mktemp("models") / "tiny.onnx", output=TWO_OBJECTS)


def black(width: int = 96, height: int = 64) -> NDArray[np.uint8]:
    return np.zeros((height, width, 3), np.uint8)


def test_objects_come_in_the_images_pixels_most_confident_first(kind: Any, model: Path) -> None:
    # The letterbox is grey, which lifts the first score: a picture that fills the input has none.
    assert kind(model, thresholds=Thresholds(iou=0.5)).detect(black()) == DetectorResult(
        EXPECTED, 96, 64, "tiny", kind(model).version
    )
    doubled = kind(model, thresholds=Thresholds(iou=0.5)).detect(black(192, 128))
    assert doubled.detections[1].box == Box(112, 72, 128, 88)
    assert (doubled.image_width, doubled.image_height) == (192, 128)


@pytest.mark.parametrize(("rgb", "name"), [((255, 0, 0), "red"), ((0, 0, 255), "blue")])
def test_arrays_are_rgb(kind: Any, tmp_path: Path, rgb: tuple[int, int, int], name: str) -> None:
    colours = tmp_path / "colours.onnx"
    colour_model(colours)
    (detection,) = kind(colours).detect(np.full((64, 64, 3), rgb, np.uint8)).detections
    assert detection.class_name == name


def test_thresholds_are_kept(kind: Any, model: Path) -> None:
    def confidences(**options: Any) -> list[float]:
        detector = kind(model, thresholds=Thresholds(**options))
        return [d.confidence for d in detector.detect(black()).detections]

    assert confidences() == [0.75, 0.625, 0.5]
    assert confidences(iou=0.5) == [0.75, 0.625]
    assert confidences(confidence=0.7) == [0.75]
    assert confidences(max_detections=2) == [0.75, 0.625]


@pytest.mark.parametrize(
    "broken",
    [
        {"confidence": 1.1},
        {"iou": float("nan")},
        {"max_detections": 0},
        {"top_k": 0},
        {"top_k": 1001},
    ],
)
def test_thresholds_out_of_bounds_are_refused_by_name(broken: dict[str, Any]) -> None:
    (name,) = broken
    with pytest.raises(ValueError, match=name):
        Thresholds(**broken)


def test_names_and_versions(kind: Any, model: Path) -> None:
    default: Detector = kind(model)
    assert default.name == "tiny"
    assert len(default.version) == 12
    assert int(default.version, 16) >= 0
    named: Detector = kind(model, name="plates", version="7")
    result = named.detect(black())
    assert (result.model_name, result.model_version) == ("plates", "7")


def beside(model: Path, folder: Path, change: float = 0.0) -> Path:
    """Save the model with its weights beside it, one of which is changed; return its path."""
    folder.mkdir()
    onnx.save(
        onnx.load(model),
        folder / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
        convert_attribute=True,
    )
    weights = np.fromfile(folder / "weights.bin", dtype=np.float32)
    weights[0] += change
    weights.tofile(folder / "weights.bin")
    return folder / "model.onnx"


def test_both_give_one_file_one_version(model: Path, tmp_path: Path) -> None:
    assert OnnxDetector(model).version == UltralyticsDetector(model).version
    first, second = beside(model, tmp_path / "1"), beside(model, tmp_path / "2", 1.0)
    assert first.read_bytes() == second.read_bytes()
    versions = [kind(path).version for kind in KINDS for path in (first, second)]
    assert versions[:2] == versions[2:]
    assert len(set(versions)) == 2


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (POINTER, "it is a git-LFS pointer to 7 bytes, not an ONNX file. Get the file itself"),
        (b"PK\x05\x06" + bytes(18), "it is a zip archive, not an ONNX file"),
        (None, "it is an ONNX file that is cut off: it has 200 of at least"),
    ],
    ids=["pointer", "zip", "cut off"],
)
def test_a_file_that_is_no_model_is_named(
    kind: Any, model: Path, tmp_path: Path, content: bytes | None, says: str
) -> None:
    (tmp_path / "best.onnx").write_bytes(content or model.read_bytes()[:200])
    with pytest.raises(ModelError) as caught:
        kind(tmp_path / "best.onnx")
    assert caught.value.reason == "MODEL_FILE_INVALID"
    assert says in caught.value.message


@pytest.mark.parametrize("name", ["best.pt", "best.engine", "best.yaml"])
def test_a_file_that_ultralytics_does_not_run_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(ModelError, match="git-LFS pointer to 7 bytes, not a model that ultralytic"):
        UltralyticsDetector(tmp_path / name)


def test_a_missing_model_is_refused_and_not_downloaded(kind: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        kind(tmp_path / "yolov8n.onnx")
    assert caught.value.reason == "MODEL_FILE_MISSING"
    assert list(tmp_path.iterdir()) == []


def test_a_model_for_another_task_is_refused(kind: Any, tmp_path: Path) -> None:
    names = {"names": "{0: 'plate', 1: 'mould'}", "imgsz": "[64, 96]", "stride": "32"}
    path = save_detector(tmp_path / "map.onnx", metadata={**names, "task": "semantic"})
    with pytest.raises(ModelError, match=r"task must be detect, .* or classify, got semantic"):
        kind(path)


def test_bad_images_are_the_images_fault(kind: Any, model: Path) -> None:
    detector = kind(model)
    for image, reason in [
        (b"no picture", "IMAGE_TYPE_UNSUPPORTED"),
        ("missing.jpg", "IMAGE_FILE_UNREADABLE"),
        (black()[..., 0], "INVALID_FIELD"),
    ]:
        with pytest.raises(SightlineError) as caught:
            detector.detect(image)
        assert (caught.value.reason, caught.value.category) == (reason, "validation")


def test_threads_share_a_detector(kind: Any, model: Path) -> None:
    detector = kind(model, thresholds=Thresholds(iou=0.5))
    white = np.full((64, 96, 3), 0, np.uint8)
    results: list[DetectorResult] = []

    def run() -> None:
        results.extend(detector.detect(white) for _ in range(5))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.detections for result in results] == [EXPECTED] * 20


def test_ultralytics_is_quiet_installs_nothing_and_leaves_no_folder(
    model: Path, tmp_path: Path
) -> None:
    program = """
import sys
import numpy as np
import onnx
from edge.detect import UltralyticsDetector
assert "ultralytics" not in sys.modules
UltralyticsDetector(sys.argv[1]).detect(np.zeros((64, 96, 3), np.uint8))
from ultralytics.utils import checks
assert checks.AUTOINSTALL is False
"""
    environment = {k: v for k, v in os.environ.items() if k != "YOLO_AUTOINSTALL"}
    ran = subprocess.run(
        [sys.executable, "-c", program, str(model)],
        cwd=tmp_path,
        env={**environment, "YOLO_CONFIG_DIR": str(tmp_path / "config")},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["config"]


def test_ultralytics_runs_its_own_checkpoints(tmp_path: Path) -> None:
    from ultralytics import YOLO

    YOLO("yolov8n.yaml", verbose=False).save(tmp_path / "yolov8n.pt")
    detector = UltralyticsDetector(tmp_path / "yolov8n.pt", device="cpu")
    assert detector.detect(black()).detections == ()  # untrained


def test_the_edge_core_imports_without_numpy_pillow_and_the_runtimes() -> None:
    program = """
import sys
for name in ("numpy", "PIL", "onnxruntime", "ultralytics", "torch", "cv2"):
    sys.modules[name] = None
import edge, edge.detect, edge.decide.coordinator, edge.cloud.client
from edge.detect.images import encoded
assert encoded(b"as it is") == b"as it is"
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


@cache
def on_photo(kind: Any, photo: Path) -> DetectorResult:
    return _loaded(kind).detect(photo)


@cache
def _loaded(kind: Any) -> Detector:
    detector: Detector = kind(MODELS)
    return detector


@pytest.fixture(
    params=[OnnxDetector, UltralyticsDetector, onnx_process, ultralytics_process],
    ids=["onnx", "ultralytics", "onnx-process", "ultralytics-process"],
)
def on_photos(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module", params=PHOTOS)
def photo(request: pytest.FixtureRequest) -> Path:
    return photograph(str(request.param))


@real
@pytest.mark.parametrize(
    ("inside", "outside"),
    [(OnnxDetector, onnx_process), (UltralyticsDetector, ultralytics_process)],
)
def test_a_process_of_its_own_changes_nothing(photo: Path, inside: Any, outside: Any) -> None:
    assert on_photo(outside, photo) == on_photo(inside, photo)


@real
def test_both_runtimes_see_the_same_objects(photo: Path) -> None:
    ours, theirs = on_photo(OnnxDetector, photo), on_photo(UltralyticsDetector, photo)
    assert (ours.image_width, ours.image_height) == (theirs.image_width, theirs.image_height)
    assert len(ours.detections) >= 3
    assert [d.class_name for d in ours.detections] == [d.class_name for d in theirs.detections]
    for mine, other in zip(ours.detections, theirs.detections, strict=True):
        assert overlap(mine.box, other.box) > 0.95
        assert mine.confidence == pytest.approx(other.confidence, abs=0.01)


@real
def test_all_forms_of_a_photograph_agree(on_photos: Any, photo: Path) -> None:
    expected = on_photo(on_photos, photo)
    detector = _loaded(on_photos)
    with PIL.Image.open(photo) as opened:
        array = np.asarray(opened.convert("RGB"))
        for image in (str(photo), photo.read_bytes(), opened, array):
            assert detector.detect(image) == expected


@real
def test_the_bus_is_a_bus(on_photos: Any, photo: Path) -> None:
    names = {d.class_name for d in on_photo(on_photos, photo).detections}
    assert names == ({"person", "bus"} if photo.name == "bus.jpg" else {"person", "tie"})


def test_weights_outside_of_the_model_s_folder_are_refused(
    kind: Any, model: Path, tmp_path: Path
) -> None:
    path = beside(model, tmp_path / "model")
    kind(path)
    path.with_name("weights.bin").rename(tmp_path / "secret.bin")
    path.with_name("weights.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises((ModelError, SightlineError), match="in the model's own folder"):
        kind(path)


@pytest.mark.parametrize("name", ["model.ONNX", "model.onnx.old"])
def test_ultralytics_gets_no_weights_outside_of_the_folder_by_another_name(
    model: Path, tmp_path: Path, name: str
) -> None:
    path = beside(model, tmp_path / "model")
    path.with_name("weights.bin").rename(tmp_path / "secret.bin")
    path.with_name("weights.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(ModelError, match="in the model's own folder"):
        UltralyticsDetector(path.rename(path.with_name(name)))


def test_a_detector_says_its_labels(kind: Any, model: Path) -> None:
    detector = kind(model)
    assert detector.labels == ("plate", "mould")
    close_detector(detector)


@pytest.mark.parametrize("label", ["plate", "a plate of metal, " * 20], ids=["word", "prompt"])
def test_a_file_of_yolov5_s_own_exporter_with_one_class(tmp_path: Path, label: str) -> None:
    metadata = {"stride": "32", "names": str([label])}
    detector = OnnxDetector(save_yolov5(tmp_path / "v5.onnx", make_levels(1), metadata))
    noise = np.random.default_rng(2).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    detections = detector.detect(noise).detections
    (known,) = detector.labels
    assert known == readable(label, MAX_CLASS_NAME_BYTES)
    assert len(detections) >= 10
    assert {each.class_name for each in detections} == {known}
    assert all(0.25 < each.confidence <= 1 for each in detections)
