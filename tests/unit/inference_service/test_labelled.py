"""LabelledImage pictures: how they are found, split, and shown to a model."""

from pathlib import Path

import numpy as np
import pytest

from inference_service.models.calibrate import calibrate
from inference_service.models.labelled import LabelledError, LabelledImage, find, outputs, split
from inference_service.models.loader import RepositoryError, Runtime, load_model
from inference_service.models.model_spec import ModelSpecError, read
from tests.unit.inference_service.classifier_onnx import NAMES, colour_classifier
from tests.unit.inference_service.tiny_onnx import colour_model, picture
from vision import ImageLimits, OnnxClassifier

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
LIMITS = ImageLimits()


def pictures(folder: Path, shown: str, label: str, count: int) -> None:
    """Write pictures of a colour that are said to be of another."""
    (folder / label).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / label / f"{shown}-{number}.png"
        path.write_bytes(picture(COLOURS[shown], size=(8, 8)))


@pytest.fixture
def often_right(tmp_path: Path) -> Path:
    """Return a set in which a fifth of the labels is wrong."""
    folder = tmp_path / "pictures"
    for label, other in (("red", "green"), ("green", "blue"), ("blue", "red")):
        pictures(folder, label, label, 16)
        pictures(folder, other, label, 4)
    return folder


def in_repository(folder: Path, yaml: str = "task: classify", **how: object) -> Path:
    version = folder / "models" / "colours" / "1"
    colour_classifier(version / "model.onnx", **how)  # type: ignore[arg-type]
    if yaml:
        (version / "model.yaml").write_text(yaml)
    return version


def test_folders_are_labels(tmp_path: Path) -> None:
    pictures(tmp_path, "red", "red", 1)
    pictures(tmp_path / "blue", "red", "deeper", 1)
    (tmp_path / "red" / "notes.txt").write_text("no picture")
    (tmp_path / "at-the-top.png").write_bytes(b"has no label")
    images = [(image.path.name, image.class_id) for image in find(tmp_path, NAMES)]
    assert images == [("red-0.png", 2), ("red-0.png", 0)]


@pytest.mark.parametrize("head", ["", "file,label\n"])
def test_a_csv_says_the_labels(tmp_path: Path, head: str) -> None:
    (tmp_path / "set.csv").write_text(f"{head}a.png,blue\n\nsub/b.png,red\n")
    assert find(tmp_path / "set.csv", NAMES) == [
        LabelledImage(tmp_path / "a.png", 2),
        LabelledImage(tmp_path / "sub" / "b.png", 0),
    ]


def test_sets_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(LabelledError, match="cannot be read"):
        find(tmp_path / "nowhere", NAMES)
    with pytest.raises(LabelledError, match="contains no images"):
        find(tmp_path, NAMES)
    (tmp_path / "set.csv").write_text("a.png,red\nb.png")
    with pytest.raises(LabelledError, match="line 2: must be file,label"):
        find(tmp_path / "set.csv", NAMES)
    pictures(tmp_path, "red", "pink", 1)
    with pytest.raises(LabelledError, match="label 'pink' is not a label of the model: red, green"):
        find(tmp_path, NAMES)


def test_each_label_is_split_and_always_the_same_way() -> None:
    images = [LabelledImage(Path(f"{number}.png"), number % 3) for number in range(30)]
    fit, test = split(images, 0.3)
    assert sorted(image.class_id for image in test) == [0] * 3 + [1] * 3 + [2] * 3
    assert {*fit} | {*test} == {*images}
    assert not {*fit} & {*test}
    assert split(images[::-1], 0.3) == (fit, test)


@pytest.mark.parametrize("held_out", [0.01, 0.99])
def test_parts_that_would_be_empty(held_out: float) -> None:
    with pytest.raises(LabelledError, match="2 images are too few"):
        split([LabelledImage(Path("a"), 0), LabelledImage(Path("b"), 0)], held_out)


def test_the_logits_of_a_set(tmp_path: Path) -> None:
    network = load_model(in_repository(tmp_path, scale=7.0), Runtime()).network
    assert isinstance(network, OnnxClassifier)
    pictures(tmp_path, "red", "red", 1)
    pictures(tmp_path, "blue", "green", 1)
    logits, labels = outputs(network, find(tmp_path, NAMES), LIMITS)
    assert labels.tolist() == [1, 0]
    np.testing.assert_allclose(logits, [[0, 0, 7], [7, 0, 0]], atol=1e-5)


def test_images_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    network = load_model(in_repository(tmp_path), Runtime()).network
    assert isinstance(network, OnnxClassifier)
    (tmp_path / "bad.png").write_text("no picture")
    for name, says in (("bad.png", "bad.png: "), ("nowhere.png", "nowhere.png cannot be read")):
        with pytest.raises(LabelledError, match=says):
            outputs(network, [LabelledImage(tmp_path / name, 0)], LIMITS)


def test_a_network_that_is_too_sure_is_told_so(tmp_path: Path, often_right: Path) -> None:
    folder = in_repository(tmp_path, "task: classify  # as trained\ntop_k: 3\n", scale=20.0)
    result = calibrate(folder, often_right, 0.5, LIMITS, Runtime())
    assert (result.fitted_to, result.after.pictures) == (30, 30)
    assert result.before.accuracy == result.after.accuracy == pytest.approx(0.8, abs=0.1)
    # The surest class has a probability of 0.8 where exp(20 / T) is 8 times 1.
    assert result.temperature == pytest.approx(20 / np.log(8), rel=0.25)
    assert result.after.ece < result.before.ece / 2
    assert result.after.nll < result.before.nll
    result.write(folder)
    text = (folder / "model.yaml").read_text()
    assert text.startswith("task: classify  # as trained\ntop_k: 3\ntemperature: ")
    again = calibrate(folder, often_right, 0.5, LIMITS, Runtime())
    assert again.before.ece == pytest.approx(result.after.ece, abs=1e-5)
    assert again.temperature == pytest.approx(result.temperature)


def test_a_temperature_is_not_written_beside_another_network(
    tmp_path: Path, often_right: Path
) -> None:
    folder = in_repository(tmp_path, "task: classify", scale=20.0)
    result = calibrate(folder, often_right, 0.5, LIMITS, Runtime())
    colour_classifier(folder / "model.onnx", scale=5.0)
    with pytest.raises(ModelSpecError, match="changed while the temperature was fitted"):
        result.write(folder)
    assert (folder / "model.yaml").read_text() == "task: classify"


def test_a_yaml_is_made_where_there_is_none(tmp_path: Path, often_right: Path) -> None:
    folder = in_repository(tmp_path, "", scale=20.0, task="classify", probabilities=True)
    result = calibrate(folder, often_right, 0.5, LIMITS, Runtime())
    result.write(folder)
    spec = read(folder / "model.yaml")
    assert spec.task == "classify"
    assert spec.temperature == pytest.approx(result.temperature)


def test_a_yaml_that_does_not_name_the_task(tmp_path: Path, often_right: Path) -> None:
    folder = in_repository(tmp_path, "license: MIT", task="classify", probabilities=True)
    result = calibrate(folder, often_right, 0.5, LIMITS, Runtime())
    with pytest.raises(ModelSpecError, match="add `task: classify`"):
        result.write(folder)


def test_sets_to_which_nothing_can_be_fitted(tmp_path: Path) -> None:
    folder = in_repository(tmp_path)
    for label in NAMES.values():
        pictures(tmp_path / "right", label, label, 4)
    with pytest.raises(LabelledError, match="all 6 images are classified correctly"):
        calibrate(folder, tmp_path / "right", 0.5, LIMITS, Runtime())
    for label, shown in (("red", "green"), ("green", "blue"), ("blue", "red")):
        pictures(tmp_path / "wrong", shown, label, 4)
    with pytest.raises(LabelledError, match="do not depend on the labels"):
        calibrate(folder, tmp_path / "wrong", 0.5, LIMITS, Runtime())


def test_models_that_have_no_temperature(tmp_path: Path, often_right: Path) -> None:
    colour_model(tmp_path / "detector" / "1" / "model.onnx")
    with pytest.raises(LabelledError, match="model detector version 1 is not a classifier"):
        calibrate(tmp_path / "detector" / "1", often_right, 0.5, LIMITS, Runtime())
    with pytest.raises(RepositoryError):
        calibrate(tmp_path / "nowhere" / "1", often_right, 0.5, LIMITS, Runtime())
