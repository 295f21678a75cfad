"""Models as their makers export them, against the makers' own code on the same pictures.

Detectors and a classifier of ultralytics by its exporter, ResNet-50 and EfficientNet-B4 of
torchvision by torch's, fp16 by onnxconverter and int8 by ONNX Runtime's tools. Weights are random.
"""

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxconverter_common.float16 import convert_float_to_float16
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from models.plates import camera
from tests.once import made_once
from tests.photographs import photograph
from vision import (
    Detections,
    Interpolation,
    Layout,
    OnnxClassifier,
    OnnxYolo,
    Preprocess,
    Scores,
    decode_image,
)

PROGRAM = Path(__file__).with_name("export_models.py")
ROOT = Path(__file__).parents[3]
PLATES = ROOT / "models" / "repository" / "plates" / "1" / "model.onnx"
HELD_OUT_CAMERA = 500
PICTURES = ["bus.jpg", "zidane.jpg"]
LABELS = {number: f"class {number}" for number in range(1000)}
pytestmark = pytest.mark.timeout(300)  # the first test waits for the exports

IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.fixture(scope="session")
def pictures() -> dict[str, np.ndarray]:
    return {name: decode_image(photograph(name).read_bytes()) for name in PICTURES}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the makers' models."""
    return made_once(tmp_path_factory, "exports", export)


@pytest.fixture(scope="session")
def reference(folder: Path) -> dict[str, Any]:
    """Return the detections of the makers' code."""
    detections: dict[str, Any] = json.loads((folder / "reference.json").read_text())
    return detections


def export(folder: Path) -> None:
    """Write the makers' models, and the detections of their code as `reference.json`."""
    home = folder / "home"
    home.mkdir()
    offline = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": str(home)}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder), *(str(photograph(name)) for name in PICTURES)],
        env={**os.environ, **offline, "PYTHONPATH": str(ROOT)},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    (folder / "reference.json").write_text(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize(
    ("name", "layout", "batch_size"),
    [
        ("yolov8n", Layout.YOLOV8, None),
        ("yolov8n_nms", Layout.END_TO_END, 1),
        ("yolo11n", Layout.YOLOV8, 1),
        ("yolo26n", Layout.END_TO_END, 1),
        ("yolo26n_many", Layout.YOLOV8, 1),
        ("yolov10n", Layout.END_TO_END, 1),
    ],
)
def test_detectors_see_what_ultralytics_sees(
    folder: Path,
    reference: dict[str, Any],
    pictures: dict[str, np.ndarray],
    name: str,
    layout: Layout,
    batch_size: int | None,
    picture: str,
) -> None:
    detector = OnnxYolo.load(folder / f"{name}.onnx")
    theirs = reference[name][picture]
    ours = detector.detect(pictures[picture], confidence=theirs["threshold"])
    assert (detector.layout, detector.batch_size) == (layout, batch_size)
    assert len(detector.names) == 80
    assert 20 <= len(ours) <= 300
    assert len(set(ours.class_id.tolist())) >= 10
    compare(ours, theirs)


def compare(ours: Detections, theirs: dict[str, Any]) -> None:
    """Return the same objects in the same order; those that are as sure as others in any order."""
    xyxy = np.array(theirs["xyxy"])
    real = (xyxy[:, 2:] > xyxy[:, :2]).all(axis=1)  # we leave out boxes without an area
    expected = np.column_stack([theirs["confidence"], theirs["class_id"], xyxy])[real]
    detections = np.column_stack([ours.confidence, ours.class_id, ours.xyxy])
    assert len(detections) == len(expected)
    assert detections[:, 0] == pytest.approx(expected[:, 0], abs=1e-5)
    keys = [
        np.lexsort([*rows[:, 2:].round().T, rows[:, 1], -rows[:, 0].round(4)])
        for rows in (detections, expected)
    ]
    assert detections[keys[0]] == pytest.approx(expected[keys[1]], abs=0.02)


def test_rows_of_a_batch_are_as_if_alone(
    folder: Path, reference: dict[str, Any], pictures: dict[str, np.ndarray]
) -> None:
    detector = OnnxYolo.load(folder / "yolov8n.onnx")
    prepared = [detector.prepare(pictures[name]) for name in PICTURES]
    outputs = detector.run(np.concatenate([batch for batch, _ in prepared]))
    for name, output, (_, box) in zip(PICTURES, outputs, prepared, strict=True):
        theirs = reference["yolov8n"][name]
        compare(detector.decode(output, box, confidence=theirs["threshold"]), theirs)


@pytest.mark.parametrize("picture", PICTURES)
def test_an_ultralytics_classifier_needs_no_word_on_its_images(
    folder: Path, reference: dict[str, Any], pictures: dict[str, np.ndarray], picture: str
) -> None:
    classifier = OnnxClassifier.load(folder / "yolov8n-cls.onnx")
    expected = np.array(reference["yolov8n-cls"][picture])
    detections = classifier.classify(pictures[picture], top_k=1000)
    assert classifier.scores is Scores.PROBABILITIES
    assert expected.max() > 5 * expected.mean()
    assert detections.probability == pytest.approx(expected[detections.class_id], abs=1e-5)
    assert detections.class_id[:5].tolist() == np.argsort(-expected)[:5].tolist()


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize(
    ("name", "preprocess"),
    [
        ("resnet50", Preprocess(resize=232, **IMAGENET)),
        (
            "efficientnet_b4",
            Preprocess(resize=384, interpolation=Interpolation.BICUBIC, **IMAGENET),
        ),
    ],
)
def test_torchvisions_classifiers(
    folder: Path,
    reference: dict[str, Any],
    pictures: dict[str, np.ndarray],
    name: str,
    preprocess: Preprocess,
    picture: str,
) -> None:
    classifier = OnnxClassifier.load(folder / f"{name}.onnx", names=LABELS, preprocess=preprocess)
    expected = np.array(reference[name][picture])
    detections = classifier.classify(pictures[picture], top_k=1000)
    assert (classifier.scores, classifier.batch_size) == (Scores.LOGITS, None)
    assert expected.max() > 5 * expected.mean()
    assert detections.probability == pytest.approx(
        expected[detections.class_id], rel=1e-3, abs=1e-6
    )
    assert detections.class_id[:5].tolist() == np.argsort(-expected)[:5].tolist()
    warmer = classifier.classify(pictures[picture], temperature=2, top_k=5)
    assert warmer.class_id.tolist() == detections.class_id[:5].tolist()
    assert warmer.probability[0] < detections.probability[0]


@pytest.fixture(scope="session")
def plates() -> list[np.ndarray]:
    """Return pictures that the committed model was not trained on, with a defect each."""
    shown = [plate for plate in islice(camera(HELD_OUT_CAMERA), 40) if len(plate.boxes)]
    return [plate.image for plate in shown[:12]]


def test_half_precision(tmp_path: Path, plates: list[np.ndarray]) -> None:
    half = convert_float_to_float16(onnx.load(PLATES))
    onnx.save(half, tmp_path / "plates_fp16.onnx")
    detector = OnnxYolo.load(tmp_path / "plates_fp16.onnx")
    assert {info.dtype for info in (*detector.session.inputs, *detector.session.outputs)} == {
        np.dtype(np.float16)
    }
    assert agreement(detector, plates, confidence=0.02) == 1


def test_half_precision_of_an_export(
    folder: Path, tmp_path: Path, pictures: dict[str, np.ndarray]
) -> None:
    files = folder / "yolo11n.onnx", tmp_path / "yolo11n_fp16.onnx"
    onnx.save(convert_float_to_float16(onnx.load(files[0])), files[1])
    single, half = map(OnnxYolo.load, files)
    for picture in pictures.values():
        batch, _ = single.prepare(picture)
        expected, detections = single.run(batch), half.run(batch)
        off = np.abs(detections - expected)[
            0
        ]  # random weights amplify roundings more than trained ones
        assert off[4:].max() < 0.15
        assert off[4:].mean() < 0.005
        assert off[:4].mean() < 2  # pixels


@pytest.mark.parametrize("way", ["static", "dynamic"])
def test_quantised_models(tmp_path: Path, plates: list[np.ndarray], way: str) -> None:
    path = tmp_path / f"plates_{way}.onnx"
    if way == "static":
        rows = Rows([OnnxYolo.load(PLATES).prepare(picture)[0] for picture in plates])
        # Convolutions only: boxes and scores, which end in one tensor, cannot share a scale.
        options = {"op_types_to_quantize": ["Conv"], "quant_format": QuantFormat.QDQ}
        quantize_static(PLATES, path, rows, per_channel=True, **options)
    else:
        quantize_dynamic(PLATES, path, weight_type=QuantType.QUInt8)
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert operators & {"QuantizeLinear", "ConvInteger"}
    assert agreement(OnnxYolo.load(path), plates, confidence=0.15) >= 0.8


class Rows(CalibrationDataReader):  # type: ignore[misc]  # has no types
    def __init__(self, batches: list[np.ndarray]) -> None:
        self._left = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._left, None)
        return None if batch is None else {"images": batch}


def agreement(detector: OnnxYolo, images: list[np.ndarray], *, confidence: float) -> float:
    """Return the share of the single-precision detections that the other model makes, too."""
    single = OnnxYolo.load(PLATES)
    seen, same = 0, 0
    for image in images:
        expected, detections = (each.detect(image, iou=0.45) for each in (single, detector))
        seen += len(expected)
        same += sum(
            any(
                class_id == other
                and abs(sure - as_sure) <= confidence
                and np.abs(xyxy - elsewhere).max() <= 4
                for other, as_sure, elsewhere in zip(
                    detections.class_id, detections.confidence, detections.xyxy, strict=True
                )
            )
            for class_id, sure, xyxy in zip(
                expected.class_id, expected.confidence, expected.xyxy, strict=True
            )
        )
    assert seen >= 10
    return same / seen
