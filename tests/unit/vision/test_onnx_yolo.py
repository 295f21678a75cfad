"""Real ONNX Runtime sessions on tiny models."""

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import onnxruntime
import pytest

from tests.unit.vision.models import (
    END_TO_END,
    LABELS,
    METADATA,
    YOLOV8,
    save_detector,
    save_failing,
    save_segmenter,
)
from vision import (
    COCO_KEYPOINTS,
    Layout,
    MaskFormat,
    ModelError,
    OnnxYolo,
    PolygonMask,
    RleMask,
    SessionOptions,
    decode_rle,
)

CUDA, TENSORRT, CPU = (f"{name}ExecutionProvider" for name in ("CUDA", "Tensorrt", "CPU"))


def flat(level: int, height: int = 64, width: int = 96) -> np.ndarray:
    return np.full((height, width, 3), level, dtype=np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def refusal(path: Path, *positional: object, **options: object) -> ModelError:
    with pytest.raises(ModelError) as caught:
        OnnxYolo.load(path, *positional, **options)  # type: ignore[arg-type]
    return caught.value


def test_a_model_says_what_it_is(path: Path) -> None:
    detector = OnnxYolo.load(save_detector(path))
    assert dict(detector.names) == LABELS
    assert detector.input_size == (64, 96)
    assert detector.batch_size == 1
    assert detector.layout is Layout.YOLOV8
    assert (detector.provider, detector.providers) == (CPU, (CPU,))
    assert detector.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_objects_are_found_in_the_pixels_of_the_image(path: Path) -> None:
    detector = OnnxYolo.load(save_detector(path))
    detector.warm_up()
    detections = detector.detect(flat(204, height=128, width=192))  # twice the size of the input
    assert detections.xyxy.tolist() == [[24, 24, 56, 56], [112, 72, 128, 88]]
    assert detections.confidence == pytest.approx([0.8, 0.5], abs=1e-4)
    assert [detector.names[number] for number in detections.class_id] == ["plate", "mould"]


def test_thresholds_reach_the_decoder(path: Path) -> None:
    detector = OnnxYolo.load(save_detector(path))
    assert len(detector.detect(flat(204), confidence=0.6)) == 1
    assert len(detector.detect(flat(204), max_detections=1)) == 1
    assert len(detector.detect(flat(0))) == 1
    with pytest.raises(ValueError, match="iou"):
        detector.detect(flat(0), iou=7)


@pytest.mark.parametrize("end_to_end", ["True", "False"])
def test_an_end_to_end_model(path: Path, end_to_end: str) -> None:
    metadata = {**METADATA, "end2end": end_to_end}
    save_detector(path, output=END_TO_END, moved=(0, 4), metadata=metadata)
    detector = OnnxYolo.load(path)
    assert detector.layout is Layout.END_TO_END
    detections = detector.detect(flat(204))
    assert detections.xyxy.tolist() == [[12, 12, 28, 28], [56, 36, 64, 44]]
    assert detections.confidence == pytest.approx([0.8, 0.5], abs=1e-4)
    assert detections.class_id.tolist() == [0, 1]


def test_half_precision_models_take_and_give_single(path: Path) -> None:
    detector = OnnxYolo.load(save_detector(path, dtype=np.float16))
    batch, _ = detector.prepare(flat(204))
    output = detector.run(batch)
    assert batch.dtype == np.float32
    assert output.dtype == np.float32
    assert detector.detect(flat(204)).confidence == pytest.approx([0.8, 0.5], abs=1e-3)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((1, 3, 64, 96), 1), ((4, 3, 64, 96), 4), (("n", 3, 64, 96), None), ((2, 3, "h", "w"), 2)],
)
def test_any_number_of_images_runs(
    path: Path, shape: tuple[int | str, ...], size: int | None
) -> None:
    detector = OnnxYolo.load(save_detector(path, shape=shape))
    assert detector.batch_size == size
    levels = [0, 51, 102, 153, 204]
    batch = np.concatenate([detector.prepare(flat(level))[0] for level in levels])
    output = detector.run(batch)
    assert output.shape == (5, *YOLOV8.shape)
    assert output[:, 4, 0] == pytest.approx([level / 255 for level in levels], abs=1e-4)


def test_a_model_of_open_shapes_takes_its_size_from_the_metadata(path: Path) -> None:
    save_detector(path, shape=("n", 3, "h", "w"), declare=False)
    detector = OnnxYolo.load(path)
    assert detector.input_size == (64, 96)
    assert detector.layout is Layout.YOLOV8


def test_a_fixed_shape_outweighs_the_metadata(path: Path) -> None:
    save_detector(path, metadata={**METADATA, "imgsz": "[640, 640]"})
    assert OnnxYolo.load(path).input_size == (64, 96)


@pytest.mark.parametrize("place", ["metadata", "argument"])
def test_labels_that_the_contract_does_not_take_are_shortened(path: Path, place: str) -> None:
    prompt = "a plate of metal, " * 20
    names = {0: prompt, 1: prompt + "bent"}
    metadata = {"names": repr(names)} if place == "metadata" else None
    save_detector(path, metadata=metadata)
    model = OnnxYolo.load(path, names=names if place == "argument" else None)
    assert all(len(label.encode()) <= 256 for label in model.names.values())
    assert model.names[0] != model.names[1]
    assert model.names[1].endswith("bent")


def test_given_names_outweigh_the_metadata(path: Path) -> None:
    save_detector(path, metadata={})
    detector = OnnxYolo.load(path, names={0: "x", 1: "y"})
    assert dict(detector.names) == {0: "x", 1: "y"}
    assert "names" in refusal(path, names={1: "x", 2: "y"}).message


@pytest.mark.parametrize(
    ("change", "shape", "reason", "named"),
    [
        ({"names": None}, None, "MODEL_METADATA_INVALID", "'names'"),
        ({"names": "{0: 'a'"}, None, "MODEL_METADATA_INVALID", "'names'"),
        ({"names": "{0: 'a'}"}, None, "MODEL_UNSUPPORTED", "4 + 1 classes"),
        ({"task": "segment"}, None, "MODEL_UNSUPPORTED", "'task'"),
        ({"task": "classify"}, None, "MODEL_UNSUPPORTED", "'detect' or 'segment' or"),
        ({"head": "RTDETRDecoder"}, None, "MODEL_UNSUPPORTED", "RT-DETR"),
        ({"end2end": "True"}, None, "MODEL_UNSUPPORTED", "end to end"),
        ({"imgsz": None}, (1, 3, "h", "w"), "MODEL_METADATA_INVALID", "'imgsz'"),
        ({"imgsz": "[50, 50]"}, (1, 3, "h", "w"), "MODEL_METADATA_INVALID", "stride 32"),
        ({}, (1, 1, 64, 96), "MODEL_UNSUPPORTED", "[1, 1, 64, 96]"),
        ({}, (1, 64, 96, 3), "MODEL_UNSUPPORTED", "[1, 64, 96, 3]"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused(
    path: Path,
    change: dict[str, str | None],
    shape: tuple[int | str, ...] | None,
    reason: str,
    named: str,
) -> None:
    merged = {**METADATA, **change}
    metadata = {key: value for key, value in merged.items() if value is not None}
    save_detector(path, shape=shape or (1, 3, 64, 96), metadata=metadata)
    error = refusal(path)
    assert (error.reason, named in error.message) == (reason, True), error.message


@pytest.mark.parametrize(
    "change",
    [
        {"names": "['plate', 'mould']"},
        {"names": "broken"},
        {"imgsz": "64"},
        {"imgsz": "broken"},
        {"stride": "broken"},
        {"args": "broken"},
        {"end2end": "broken"},
        {"kpt_shape": "broken"},
        {"kpt_names": "broken"},
        {"batch": "broken", "channels": "broken", "date": "broken"},
    ],
)
def test_metadata_that_is_not_needed_does_not_block(path: Path, change: dict[str, str]) -> None:
    save_detector(path, metadata={**METADATA, **change})
    detections = OnnxYolo.load(path, names=LABELS).detect(flat(204))
    assert detections.confidence == pytest.approx([0.8, 0.5], abs=1e-4)


@pytest.mark.parametrize("imgsz", ["broken", None])
def test_an_input_size_that_is_needed_can_be_configured(path: Path, imgsz: str | None) -> None:
    metadata = {key: text for key, text in METADATA.items() if key != "imgsz"}
    metadata |= {} if imgsz is None else {"imgsz": imgsz}
    save_detector(path, shape=("n", 3, "h", "w"), metadata=metadata)
    error = refusal(path)
    assert error.reason == "MODEL_METADATA_INVALID"
    assert "key 'imgsz'" in error.message
    assert "set `input` in model.yaml" in error.message
    assert OnnxYolo.load(path, input_size=(64, 96)).input_size == (64, 96)
    assert "multiples of the stride 32, got [64, 97]" in refusal(path, input_size=(64, 97)).message


def test_a_fixed_side_outweighs_the_metadata_and_the_other_side_is_free(path: Path) -> None:
    save_detector(path, shape=(1, 3, 64, "w"), metadata={**METADATA, "imgsz": "[640, 96]"})
    assert OnnxYolo.load(path).input_size == (64, 96)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_half_precision_may_overflow_where_no_object_is(path: Path, value: float) -> None:
    output = np.concatenate([YOLOV8, [[value], [0], [value], [4], [0], [0.1]]], axis=1)
    detector = OnnxYolo.load(save_detector(path, output=output, dtype=np.float16))
    assert detector.detect(flat(204)).confidence == pytest.approx([0.8, 0.5], abs=1e-3)
    with pytest.raises(ModelError, match="NaN or infinity in a detection"):
        detector.detect(flat(204), confidence=0.05)


@pytest.mark.parametrize(
    ("metadata", "options", "named"),
    [
        ({}, {"keypoint_shape": (2, 4)}, "keypoint_shape must be (keypoints, 2 or 3), got [2, 4]"),
        ({}, {}, "key 'kpt_shape' is missing: set keypoint_shape"),
        ({"kpt_shape": "broken"}, {}, "key 'kpt_shape' must be [keypoints, 2 or 3], got 'broken'"),
        ({"kpt_shape": "[3, 2]"}, {}, "4 + 2 classes + 6 of the task"),
        ({"kpt_shape": "[1, 2]"}, {"keypoint_names": ["a", "b"]}, "must be 1 names, got 2"),
    ],
)
def test_keypoints_are_not_guessed(
    path: Path, metadata: dict[str, str], options: dict[str, object], named: str
) -> None:
    output = np.concatenate([YOLOV8, np.full((2, 2), 5, np.float32)])
    save_detector(path, output=output, metadata={**METADATA, "task": "pose", **metadata})
    assert named in refusal(path, **options).message


@pytest.mark.parametrize(
    ("metadata", "options", "names"),
    [
        ({"kpt_shape": "[1, 2]"}, {}, ("0",)),
        ({}, {"keypoint_shape": (1, 2)}, ("0",)),
        ({"kpt_shape": "[1, 2]", "kpt_names": "{0: ['tip'], 1: ['tip']}"}, {}, ("tip",)),
        ({"kpt_shape": "[1, 2]", "kpt_names": "{0: ['tip', 'end']}"}, {}, ("0",)),
        ({"kpt_shape": "[1, 2]", "kpt_names": "['tip']"}, {"keypoint_names": ["top"]}, ("top",)),
    ],
)
def test_keypoints_are_in_the_pixels_of_the_image(
    path: Path, metadata: dict[str, str], options: dict[str, object], names: tuple[str, ...]
) -> None:
    output = np.concatenate([YOLOV8, np.array([[30, -7], [10, 99]], np.float32)])
    save_detector(path, output=output, metadata={**METADATA, "task": "pose", **metadata})
    detector = OnnxYolo.load(path, **options)  # type: ignore[arg-type]
    assert (detector.task, detector.keypoint_names) == ("pose", names)
    detections = detector.detect(flat(204, height=128, width=192))
    assert detections.keypoints is not None
    assert detections.keypoints.tolist() == [[[60, 20]], [[0, 128]]]  # clipped to the picture


def test_seventeen_keypoints_of_a_person_have_coco_s_names(path: Path) -> None:
    output = np.zeros((5 + 51, 2), np.float32)
    metadata = {**METADATA, "task": "pose", "kpt_shape": "[17, 3]"}
    for label, names in (("person", COCO_KEYPOINTS), ("deer", tuple(map(str, range(17))))):
        save_detector(path, output=output, metadata={**metadata, "names": repr([label])})
        assert OnnxYolo.load(path).keypoint_names == names


@pytest.mark.parametrize("first", ["rows", "prototypes"])
@pytest.mark.parametrize("masks", get_args(MaskFormat))
def test_masks_are_cut_to_boxes_in_the_image(path: Path, first: str, masks: MaskFormat) -> None:
    rows = np.array([[20, 20, 16, 16, 0.9, 0, 1, 0], [60, 40, 8, 8, 0, 0.5, 0, 1]], np.float32).T
    prototypes = np.ones((2, 16, 24), np.float32)
    prototypes[0, :, :5] = -1  # nothing of the first object left of input column 20
    detector = OnnxYolo.load(save_segmenter(path, rows, prototypes, first=first))
    assert (detector.task, detector.layout) == ("segment", Layout.YOLOV8)
    image = flat(204, height=128, width=192)
    detections = detector.detect(image, mask_format=masks)
    assert detections.xyxy.tolist() == [[24, 24, 56, 56], [112, 72, 128, 88]]
    if detections.masks is None:
        assert masks == "off"
        return
    areas = []
    given: list[RleMask | PolygonMask] = list(detections.masks)
    for mask, box in zip(given, detections.xyxy.astype(int), strict=True):
        pixels = drawn(mask, image.shape[:2])
        left, top, right, bottom = box
        areas.append(pixels[top:bottom, left:right].sum() / pixels[top:bottom, left:right].size)
        assert pixels.sum() == pixels[top:bottom, left:right].sum()
    assert areas == [0.5, 1]


def drawn(mask: RleMask | PolygonMask, shape: tuple[int, ...]) -> np.ndarray:
    if isinstance(mask, RleMask):
        return decode_rle(mask)
    canvas = np.zeros(shape, dtype=np.uint8)
    for ring in mask.rings:
        cv2.fillPoly(canvas, [ring.astype(np.int32)], 1)
    return canvas


def test_rotated_boxes_are_regular_and_their_hulls_inside_the_image(path: Path) -> None:
    output = np.concatenate([YOLOV8, np.array([[3 * np.pi / 4, 0]], np.float32)])
    output[:2, 1] = [94, 40]
    save_detector(path, output=output, metadata={**METADATA, "task": "obb"})
    detections = OnnxYolo.load(path).detect(flat(204))
    assert detections.rotated is not None
    assert detections.rotated[0] == pytest.approx([20, 20, 16, 16, np.pi / 4], abs=1e-5)
    assert detections.rotated[1].tolist() == [94, 40, 8, 8, 0]
    half = 8 * np.sqrt(2)
    assert detections.xyxy[0] == pytest.approx([20 - half, 20 - half, 20 + half, 20 + half])
    assert detections.xyxy[1].tolist() == [90, 36, 96, 44]


def test_an_input_of_another_type_is_refused(path: Path) -> None:
    error = refusal(save_detector(path, dtype=np.float64))
    assert error.reason == "MODEL_UNSUPPORTED"
    assert "tensor(double)" in error.message


def test_a_missing_file_is_named(path: Path) -> None:
    error = refusal(path)
    assert error.reason == "MODEL_FILE_MISSING"
    assert error.message == (
        f"the model {path} cannot be read: No such file or directory (check the path and its "
        "permissions)"
    )


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a"])
def test_a_file_that_is_no_model_is_named(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    error = refusal(path)
    assert error.reason == "MODEL_FILE_INVALID"
    assert str(path) in error.message


@pytest.mark.parametrize("providers", [[], ["NoSuchExecutionProvider", CPU]])
def test_a_provider_that_does_not_exist_is_refused(path: Path, providers: list[str]) -> None:
    error = refusal(save_detector(path), SessionOptions(tuple(providers)))
    assert error.reason == "MODEL_PROVIDER_UNAVAILABLE"
    available = onnxruntime.get_available_providers()
    assert f"must be some of {available}, got {providers}" in error.message


@pytest.mark.parametrize("gpu_providers", [[CUDA, CPU], [TENSORRT, CUDA, CPU], [TENSORRT]])
def test_a_gpu_that_is_not_there_is_refused_not_replaced(
    path: Path, gpu_providers: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    save_detector(path)
    if (
        gpu_providers[0]
        in onnxruntime.InferenceSession(path, providers=gpu_providers).get_providers()
    ):
        pytest.skip("this machine has the GPU whose absence is tested")
    capsys.readouterr()
    error = refusal(path, SessionOptions(tuple(gpu_providers)))
    assert error.reason == "MODEL_PROVIDER_UNAVAILABLE"
    assert str(gpu_providers) in error.message
    assert "Falling back" not in capsys.readouterr().out  # ONNX Runtime's own word for it


def test_a_missing_gpu_names_what_the_session_has(path: Path) -> None:
    save_detector(path)
    if CUDA in onnxruntime.InferenceSession(path, providers=[CUDA, CPU]).get_providers():
        pytest.skip("this machine has CUDA")
    assert refusal(path, SessionOptions((CUDA, CPU))).message.count(CPU) == 2


@pytest.mark.parametrize("shape", [(0, 3, 64, 96), (1, 3, 96, 64), (3, 64, 96), (1, 1, 64, 96)])
def test_a_batch_of_another_shape_is_the_callers_error(path: Path, shape: tuple[int, ...]) -> None:
    detector = OnnxYolo.load(save_detector(path))
    with pytest.raises(ValueError, match="batch must be"):
        detector.run(np.zeros(shape, dtype=np.float32))


def test_a_run_that_fails_says_so_and_the_next_one_runs(path: Path) -> None:
    detector = OnnxYolo.load(save_failing(path))
    detector.warm_up()
    with pytest.raises(ModelError) as caught:
        detector.detect(flat(255))
    assert caught.value.reason == "MODEL_RUN_FAILED"
    assert len(detector.detect(flat(0))) == 1


@pytest.mark.parametrize(("rows", "sizes"), [(1, [1]), (4, [1, 4])])
def test_warm_up_runs_the_smallest_and_the_largest_batch(
    path: Path, rows: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = OnnxYolo.load(save_detector(path, shape=("n", 3, 64, 96)))
    run, seen = detector.session.run, []

    def counted(batch: np.ndarray) -> tuple[np.ndarray, ...]:
        seen.append(len(batch))
        return run(batch)

    monkeypatch.setattr(detector.session, "run", counted)
    detector.warm_up(rows)
    assert seen == sizes


def test_an_output_of_nan_is_an_error(path: Path) -> None:
    broken = YOLOV8.copy()
    broken[0, 1] = np.nan
    detector = OnnxYolo.load(save_detector(path, output=broken))
    with pytest.raises(ModelError, match="NaN"):
        detector.detect(flat(204))


def test_threads_get_their_own_answers(path: Path) -> None:
    detector = OnnxYolo.load(save_detector(path), SessionOptions(intra_op_threads=1))
    levels = [100 + n for n in range(64)]
    with ThreadPoolExecutor(8) as pool:
        detections = list(
            pool.map(lambda level: detector.detect(flat(level), confidence=0.2), levels)
        )
    for level, result in zip(levels, detections, strict=True):
        assert sorted(result.confidence) == pytest.approx(sorted([level / 255, 0.5]), abs=1e-4)


def test_the_package_imports_without_onnx_runtime() -> None:
    check = "import sys, vision; sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_onnx_runtime_does_not_report_to_its_maker(tmp_path: Path) -> None:
    """Check that its telemetry files do not appear in the temporary folder."""
    code = "import vision, onnxruntime; onnxruntime.SessionOptions()"
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment["TMPDIR"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)
    assert list(tmp_path.iterdir()) == []
