"""The trial of a model: nonsense is found before the first image of a customer."""

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from inference_service.models.check import check_files, files
from inference_service.models.folders import ModelVersion
from inference_service.models.install import install
from inference_service.models.loader import RepositoryError, Runtime, load_model
from tests.unit.vision.models import (
    END_TO_END,
    METADATA,
    YOLOV8,
    save,
    save_detector,
    save_segmenter,
)
from vision import OnnxYolo
from vision.trial import TRIALS, trial_images

RUNTIME = Runtime()
REAL = Path(os.environ.get("SIGHTLINE_TEST_MODELS", "")) / "yolov8n_int8.onnx"
PLATES = Path(__file__).parents[3] / "models" / "repository" / "plates" / "1"


def changed(output: NDArray[np.float32], *values: tuple[int, int, float]) -> NDArray[np.float32]:
    made = output.copy()
    for row, column, value in values:
        made[row, column] = value
    return made


def nan_if_bright(path: Path) -> Path:
    """Save a detector whose score is the root of half minus the mean of the image."""
    where = np.zeros((1, *YOLOV8.shape), dtype=np.float32)
    where[0, 4, 0] = 1
    constants = {"known": YOLOV8[None], "where": where, "half": np.array([0.5], dtype=np.float32)}
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[0, 1, 2, 3], keepdims=0),
        helper.make_node("Sub", ["half", "mean"], ["left"]),
        helper.make_node("Sqrt", ["left"], ["root"]),
        helper.make_node("Mul", ["root", "where"], ["lift"]),
        helper.make_node("Add", ["known", "lift"], ["output0"]),
    ]
    graph = helper.make_graph(
        nodes,
        "bright",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 64, 96])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, *YOLOV8.shape])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return save(path, graph, METADATA)


# All of them answer a grey image, at the usual threshold, as a good model does.
FRACTIONS = np.array([[0.2, 0.6], [0.2, 0.4], [0.2, 0.1], [0.2, 0.1], [0, 0], [0, 0.5]], np.float32)


@pytest.mark.parametrize(
    ("output", "moved", "says"),
    [
        (changed(YOLOV8, (4, 0, 0.54)), (4, 0), "has a score of 1.54, allowed are 0..1"),
        (changed(END_TO_END, (1, 4, 0.1)), (1, 5), "a class that is not a whole number in 0..1"),
        (changed(YOLOV8, (0, 0, 500), (0, 1, -60)), (4, 0), "are outside the input of 96 x 64 pix"),
        (FRACTIONS, (4, 0), "smaller than a pixel, such as [0.55, 0.35, 0.65, 0.45]: are they fr"),
    ],
    ids=["score", "class", "outside", "fractions"],
)
@pytest.mark.parametrize("door", ["check", "add"])
def test_nonsense_is_found(
    tmp_path: Path, output: NDArray[np.float32], moved: tuple[int, int], says: str, door: str
) -> None:
    path = save_detector(tmp_path / "best.onnx", output=output, moved=moved)

    def checked() -> object:
        return check_files(*files(path), RUNTIME)

    def added() -> object:
        return install(*files(path), tmp_path / "models", ModelVersion("a", ""), RUNTIME)

    with pytest.raises(RepositoryError) as caught:
        (checked if door == "check" else added)()
    assert says in str(caught.value)
    assert str(caught.value).endswith("The weights may also be corrupt.")
    assert not (tmp_path / "models").exists()


def test_what_a_bright_image_brings_about_is_found(tmp_path: Path) -> None:
    path = nan_if_bright(tmp_path / "best.onnx")
    with pytest.raises(RepositoryError, match=r"output contains NaN or infinity"):
        check_files(*files(path), RUNTIME)


@pytest.mark.parametrize(
    ("output", "moved"),
    [
        (YOLOV8, (4, 0)),
        (END_TO_END, (0, 4)),
        (changed(YOLOV8, (0, 0, 500)), (4, 0)),  # one of two boxes is good
        (np.zeros((6, 3), dtype=np.float32), (0, 0)),  # no candidates
        (np.zeros((3, 6), dtype=np.float32), (0, 0)),  # as after NMS inside
    ],
    ids=["yolov8", "end to end", "partly outside", "nothing", "nothing, end to end"],
)
def test_a_good_model_passes(
    tmp_path: Path, output: NDArray[np.float32], moved: tuple[int, int]
) -> None:
    path = save_detector(tmp_path / "best.onnx", output=output, moved=moved)
    assert check_files(*files(path), RUNTIME).run_ms > 0


def test_the_demo_model_passes() -> None:
    assert check_files(*files(PLATES), RUNTIME).task == "detect"


@pytest.mark.skipif(not REAL.is_file(), reason="SIGHTLINE_TEST_MODELS holds no yolov8n_int8.onnx")
def test_a_real_model_passes() -> None:
    assert check_files(*files(REAL), RUNTIME).output == "yolov8"


def test_images_of_a_trial_are_the_same_each_time_and_differ_from_each_other() -> None:
    once, again = list(trial_images(48, 80)), list(trial_images(48, 80))
    assert len(once) == TRIALS
    assert [image.shape for image in once] == [(48, 80, 3)] * TRIALS
    assert len({image.tobytes() for image in once}) == TRIALS
    assert all(np.array_equal(*pair) for pair in zip(once, again, strict=True))


def test_a_trial_decodes_candidates_of_a_real_network() -> None:
    network = load_model(PLATES, RUNTIME).network
    assert isinstance(network, OnnxYolo)
    images = trial_images(*network.input_size)
    assert sum(len(network.detect(image, confidence=0.001)) for image in images) > TRIALS


def segmenter(path: Path, prototype: float) -> Path:
    rows = np.array([[48, 32, 32, 24, 0.9, 0, 1]], np.float32).T
    prototypes = np.full((1, 16, 24), prototype, np.float32)
    return save_segmenter(path, rows, prototypes, first="rows")


def test_the_task_and_the_keypoints_are_described(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    found = check_files(*files(segmenter(tmp_path / "s" / "model.onnx", 1.0)), RUNTIME)
    assert (found.task, found.output, found.keypoint_names) == ("segment", "yolov8", None)
    output = np.concatenate([YOLOV8, np.ones((4, 2), np.float32)])
    metadata = {**METADATA, "task": "pose", "kpt_shape": "[2, 2]"}
    save_detector(tmp_path / "model.onnx", output=output, metadata=metadata)
    (tmp_path / "model.yaml").write_text("task: pose\nkeypoint_names: [tip, end]\n")
    found = check_files(*files(tmp_path), RUNTIME)
    assert (found.task, found.keypoint_names) == ("pose", ("tip", "end"))


def test_keypoints_that_the_metadata_lacks_are_those_of_model_yaml(tmp_path: Path) -> None:
    output = np.concatenate([YOLOV8, np.ones((4, 2), np.float32)])
    save_detector(tmp_path / "model.onnx", output=output, metadata={**METADATA, "task": "pose"})
    with pytest.raises(RepositoryError, match="keypoint_shape"):
        check_files(*files(tmp_path), RUNTIME)
    (tmp_path / "model.yaml").write_text("task: pose\nkeypoint_shape: [2, 2]\n")
    assert check_files(*files(tmp_path), RUNTIME).keypoint_names == ("0", "1")


def test_a_mask_of_nan_is_found(tmp_path: Path) -> None:
    path = segmenter(tmp_path / "model.onnx", np.nan)
    with pytest.raises(RepositoryError, match="NaN or infinity in a mask"):
        check_files(*files(path), RUNTIME)
    (tmp_path / "model.yaml").write_text("thresholds: {mask_format: off}\n")
    assert check_files(*files(path), RUNTIME).task == "segment"
