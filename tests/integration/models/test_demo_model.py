"""The committed ONNX file: small, self-contained, labelled, loadable by others, and good."""

import ast
from itertools import islice
from typing import Any

import numpy as np
import onnx
import pytest
import yaml

from models.average_precision import iou_matrix
from models.evaluate import MODEL, evaluate
from models.plates import CLASS_NAMES, Plate, camera
from vision import Layout, OnnxYolo, SessionOptions, parse_metadata

MODEL_CARD = MODEL.with_name("model.yaml")
# Neither a camera of the demo nor of the evaluation.
CAMERA = 900


@pytest.fixture(scope="module")
def graph() -> Any:
    return onnx.load(MODEL, load_external_data=False)


@pytest.fixture(scope="module")
def metadata(graph: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in graph.metadata_props}


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(MODEL_CARD.read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def detector() -> OnnxYolo:
    pytest.importorskip("onnxruntime", reason="the demo model runs in ONNX Runtime")
    return OnnxYolo.load(MODEL, SessionOptions(intra_op_threads=1))


@pytest.fixture(scope="module")
def plates() -> list[Plate]:
    return list(islice(camera(CAMERA), 60))


def test_the_file_is_small_and_whole(graph: Any) -> None:
    assert MODEL.stat().st_size <= 1_000_000
    assert all(tensor.data_location == tensor.DEFAULT for tensor in graph.graph.initializer)
    onnx.checker.check_model(graph, full_check=True)


def test_any_runtime_can_read_it(graph: Any) -> None:
    assert [(entry.domain, entry.version <= 20) for entry in graph.opset_import] == [("", True)]
    assert graph.ir_version <= 10


def test_inputs_and_outputs(graph: Any) -> None:
    shapes = {
        value.name: [
            dim.dim_value or dim.dim_param or "any" for dim in value.type.tensor_type.shape.dim
        ]
        for value in (*graph.graph.input, *graph.graph.output)
    }
    assert shapes == {"images": ["batch", 3, 320, 320], "output0": ["any", 7, 1600]}


def test_metadata_is_complete_and_ours(metadata: dict[str, str]) -> None:
    assert metadata["author"] == "Sightline"
    assert metadata["license"] == "Apache-2.0"
    assert metadata["task"] == "detect"
    assert ast.literal_eval(metadata["names"]) == dict(enumerate(CLASS_NAMES))
    assert ast.literal_eval(metadata["imgsz"]) == [320, 320]
    assert (metadata["stride"], metadata["batch"], metadata["channels"]) == ("32", "1", "3")
    assert ast.literal_eval(metadata["args"])["nms"] is False
    assert {"description", "date", "version", "docs"} <= metadata.keys()
    assert "ultralytics" not in str(metadata).lower()


def test_servicekit_understands_the_metadata(metadata: dict[str, str]) -> None:
    parsed = parse_metadata(metadata)
    assert parsed.names == dict(enumerate(CLASS_NAMES))
    assert parsed.input_size == (320, 320)
    assert not parsed.end_to_end


def test_the_model_card_agrees_with_the_metadata(
    card: dict[str, Any], metadata: dict[str, str]
) -> None:
    height, width = ast.literal_eval(metadata["imgsz"])
    assert card["task"] == metadata["task"]
    assert card["description"] == metadata["description"]
    assert card["license"] == metadata["license"]
    assert card["labels"] == list(CLASS_NAMES)
    assert card["input"] == {"width": width, "height": height}
    assert set(card["thresholds"]) == {"confidence", "iou", "max_detections"}
    assert set(card["defect_labels"]) <= set(card["labels"])


def test_it_finds_the_defects_of_plates_it_has_not_seen() -> None:
    pytest.importorskip("onnxruntime", reason="the demo model runs in ONNX Runtime")
    measured = evaluate(MODEL, 100)
    assert measured.plates == 100
    assert measured.map50 >= 0.90
    assert min(measured.ap50.values()) >= 0.85


def test_at_its_own_thresholds_it_tells_clean_plates_from_damaged_ones(
    detector: OnnxYolo, card: dict[str, Any], plates: list[Plate]
) -> None:
    verdicts = [
        (len(detector.detect(plate.image, **card["thresholds"])) > 0) == (len(plate.boxes) > 0)
        for plate in plates
    ]
    assert np.mean(verdicts) >= 0.95


def test_scores_and_boxes_are_in_range(detector: OnnxYolo, plates: list[Plate]) -> None:
    assert detector.layout is Layout.YOLOV8
    assert detector.batch_size is None
    output = detector.run(detector.prepare(plates[0].image)[0])
    assert output.shape == (1, 7, 1600)
    assert output.dtype == np.float32
    assert (output[:, 2:4] > 0).all()
    assert ((output[:, 4:] >= 0) & (output[:, 4:] <= 1)).all()


def test_black_white_and_noise_are_survived(detector: OnnxYolo) -> None:
    noise = np.random.default_rng(0).random((1, 3, 320, 320), dtype=np.float32)
    for batch in (np.zeros_like(noise), np.ones_like(noise), noise):
        assert np.isfinite(detector.run(batch)).all()


def test_a_batch_gives_what_its_images_give_alone(detector: OnnxYolo, plates: list[Plate]) -> None:
    inputs = [detector.prepare(plate.image)[0] for plate in plates[:3]]
    together = detector.run(np.concatenate(inputs))
    alone = np.concatenate([detector.run(single) for single in inputs])
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-3)


def test_ultralytics_loads_it_and_finds_the_same(
    detector: OnnxYolo, plates: list[Plate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    monkeypatch.setenv("YOLO_AUTOINSTALL", "false")
    ultralytics = pytest.importorskip("ultralytics", reason="ultralytics is optional")
    model = ultralytics.YOLO(MODEL, task="detect")
    for plate in plates[:12]:
        ours = detector.detect(plate.image, confidence=0.25, iou=0.45)
        bgr = np.ascontiguousarray(plate.image[:, :, ::-1])
        theirs = model.predict(bgr, conf=0.25, iou=0.45, verbose=False)[0]
        assert theirs.names == dict(enumerate(CLASS_NAMES))
        assert len(theirs.boxes) == len(ours)
        assert sorted(theirs.boxes.cls.tolist()) == sorted(ours.class_id.tolist())
        if len(ours):
            overlaps = iou_matrix(ours.xyxy, theirs.boxes.xyxy.numpy())
            assert (overlaps.max(axis=1) >= 0.95).all()
