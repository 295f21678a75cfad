"""Exports of every task and family, decoded by us and by ultralytics, on the same picture."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from filelock import FileLock

from tests.integration.vision.export_list import CONFIDENCE, EXPORTS, FAST, MORE, SLOW
from tests.photographs import photograph
from vision import (
    Detections,
    Layout,
    OnnxClassifier,
    OnnxYolo,
    PolygonMask,
    RleMask,
    decode_image,
    decode_rle,
)

PROGRAM = Path(__file__).with_name("ultralytics_answers.py")
ROOT = Path(__file__).parents[3]
PICTURE = (201, 271)  # width and height: nothing divides them, nor their letterbox
TASKS = {"segment": "segment", "pose": "pose", "obb": "obb"}

pytestmark = [
    pytest.mark.skipif(find_spec("ultralytics") is None, reason="ultralytics is not installed"),
    pytest.mark.timeout(600),  # the first test of a group waits for its exports
]


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    photo = cv2.imread(str(photograph("bus.jpg")))
    path = tmp_path_factory.mktemp("picture") / "bus.png"
    cv2.imwrite(str(path), cv2.resize(photo, PICTURE, interpolation=cv2.INTER_AREA))
    return path


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Return a folder that all processes of this run of pytest share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "ultralytics"
    folder.mkdir(exist_ok=True)
    return folder


def answers(shared: Path, picture: Path, name: str) -> tuple[Path, dict[str, np.ndarray]]:
    """Return the file of an export and ultralytics' answer; make its whole group if needed."""
    group = next(group for group in (FAST, SLOW, MORE) if name in group)
    with FileLock(shared / f"{next(iter(group))}.lock"):
        if not (shared / f"{name}.npz").is_file():
            export(shared, picture, list(group))
    with np.load(shared / f"{name}.npz") as saved:
        return shared / f"{name}.onnx", dict(saved)


def export(folder: Path, picture: Path, names: list[str]) -> None:
    home = folder / f"home of {names[0]}"
    home.mkdir()
    offline = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": str(home)}
    done = subprocess.run(
        [sys.executable, PROGRAM, folder, picture, *names],
        env={**os.environ, **offline, "PYTHONPATH": str(ROOT)},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name",
    [
        *FAST,
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
        *(pytest.param(name, marks=pytest.mark.soak) for name in MORE),
    ],
)
def test_the_same_objects_as_ultralytics(shared: Path, picture: Path, name: str) -> None:
    path, theirs = answers(shared, picture, name)
    image = decode_image(picture.read_bytes())
    if "probabilities" in theirs:
        classes = OnnxClassifier.load(path).classify(image, top_k=1000)
        expected = theirs["probabilities"][classes.class_id]
        assert classes.probability == pytest.approx(expected, abs=1e-5)
        return
    model = OnnxYolo.load(path)
    assert model.task == next((task for task in TASKS if task in name), "detect")
    assert model.layout is expected_layout(name)
    ours = model.detect(image, confidence=CONFIDENCE, mask_format="rle")
    compare(ours, theirs)


def expected_layout(name: str) -> Layout:
    options = EXPORTS[name].options
    if "rtdetr" in name:
        return Layout.RTDETR
    return Layout.END_TO_END if "nms" in options else Layout.YOLOV8


def compare(ours: Detections, theirs: dict[str, np.ndarray]) -> None:
    """Check that every object is the same; those without an area are left out by us."""
    clipped = theirs["xyxy"].clip(0, [*PICTURE, *PICTURE])
    real = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    theirs = {key: values[real] for key, values in theirs.items()}
    clipped = clipped[real]
    kept = with_pixels(ours)
    assert len(kept) == len(clipped) >= 10
    assert ours.confidence[kept] == pytest.approx(theirs["confidence"], abs=1e-4)
    pairs = matched(ours, kept, clipped, theirs)
    assert ours.class_id[pairs].tolist() == theirs["class_id"].tolist()
    assert overlap(ours.xyxy[pairs], clipped).min() >= 0.99
    if "rotated" in theirs:
        compare_rotated(ours, pairs, theirs["rotated"])
    if "keypoints" in theirs:
        assert ours.keypoints is not None
        assert ours.keypoints.shape[1:] == theirs["keypoints"].shape[1:]
        assert np.abs(ours.keypoints[pairs] - theirs["keypoints"])[..., :2].max() <= 0.5
        assert ours.keypoints[pairs][..., 2:] == pytest.approx(
            theirs["keypoints"][..., 2:], abs=1e-3
        )
    if "masks" in theirs:
        compare_masks(ours, pairs, theirs["masks"])


def with_pixels(ours: Detections) -> list[int]:
    """Return the objects that ultralytics returns: all but those whose mask is empty."""
    masks = ours.masks or [None] * len(ours)
    return [
        at
        for at, mask in enumerate(masks)
        if not isinstance(mask, RleMask) or decode_rle(mask).any()
    ]


def matched(
    ours: Detections, kept: list[int], clipped: np.ndarray, theirs: dict[str, np.ndarray]
) -> list[int]:
    """Return which of our objects is which of theirs; equally sure ones are in any order."""
    left = list(kept)
    pairs = []
    for box, label, confidence in zip(
        clipped, theirs["class_id"], theirs["confidence"], strict=True
    ):
        near = [
            at
            for at in left
            if ours.class_id[at] == label and abs(ours.confidence[at] - confidence) < 1e-4
        ]
        assert near, f"no object of class {label} and confidence {confidence}"
        best = min(near, key=lambda at: float(np.abs(ours.xyxy[at] - box).sum()))
        left.remove(best)
        pairs.append(best)
    return pairs


def overlap(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes in pairs, ``[N, 4]`` and ``[N, 4]`` to ``[N]``."""
    low, high = np.maximum(ours[:, :2], theirs[:, :2]), np.minimum(ours[:, 2:], theirs[:, 2:])
    shared = (high - low).clip(0).prod(axis=1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (ours, theirs)]
    shares: np.ndarray = shared / (areas[0] + areas[1] - shared)
    return shares


def compare_rotated(ours: Detections, pairs: list[int], theirs: np.ndarray) -> None:
    assert ours.rotated is not None
    rotated = ours.rotated[pairs]
    assert ((rotated[:, 4] >= 0) & (rotated[:, 4] < np.pi / 2)).all()
    assert np.ptp(rotated[:, 4]) > 0.5
    assert np.abs(rotated[:, :4] - theirs[:, :4]).max() <= 0.1
    assert np.abs(rotated[:, 4] - theirs[:, 4]).max() <= 0.01


def compare_masks(ours: Detections, pairs: list[int], theirs: np.ndarray) -> None:
    assert ours.masks is not None
    for at, expected in zip(pairs, theirs, strict=True):
        mask = ours.masks[at]
        assert isinstance(mask, RleMask)
        pixels = decode_rle(mask)
        assert pixels.shape == expected.shape == PICTURE[::-1]
        assert (pixels & expected).sum() >= 0.98 * (pixels | expected).sum()


def test_polygons_and_run_lengths_are_of_the_same_masks(shared: Path, picture: Path) -> None:
    path, _ = answers(shared, picture, "v8-segment")
    model, image = OnnxYolo.load(path), decode_image(picture.read_bytes())
    exact, outlines = (
        model.detect(image, confidence=CONFIDENCE, mask_format=masks, tolerance=0)
        for masks in ("rle", "polygon")
    )
    plain = model.detect(image, confidence=CONFIDENCE)
    assert plain.masks is None
    assert len(plain) == len(exact) == len(outlines) >= 10
    assert exact.masks is not None
    assert outlines.masks is not None
    for mask, outline in zip(exact.masks, outlines.masks, strict=True):
        assert isinstance(mask, RleMask)
        assert isinstance(outline, PolygonMask)
        canvas = np.zeros((mask.height, mask.width), dtype=np.uint8)
        for ring in outline.rings:
            cv2.fillPoly(canvas, [ring.astype(np.int32)], 1)
        pixels = decode_rle(mask)
        assert canvas[pixels].all()  # holes are filled
        assert (canvas.any(axis=1) == pixels.any(axis=1)).all()


@pytest.mark.parametrize(
    ("name", "count", "names"),
    [("v8-pose-nms", 17, "nose"), ("26-pose-xy", 5, "0"), ("v8-obb", 0, None)],
)
def test_keypoints_have_names(
    shared: Path, picture: Path, name: str, count: int, names: str | None
) -> None:
    path, _ = answers(shared, picture, name)
    person = {0: "person"} if name == "v8-pose-nms" else None
    model = OnnxYolo.load(path, names=person)
    assert len(model.keypoint_names) == count
    assert next(iter(model.keypoint_names), None) == names
