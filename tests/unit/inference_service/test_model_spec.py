"""What a model.yaml may say, and how it is refused."""

from pathlib import Path

import pytest

from inference_service.models.model_spec import (
    InputSize,
    ModelSpec,
    ModelSpecError,
    Thresholds,
    check_defect_labels,
    read,
)


def spec(tmp_path: Path, text: str) -> ModelSpec:
    path = tmp_path / "model.yaml"
    path.write_text(text)
    return read(path)


def test_no_file_and_an_empty_file_say_nothing(tmp_path: Path) -> None:
    assert read(tmp_path / "model.yaml") == ModelSpec()
    assert spec(tmp_path, "") == ModelSpec()
    assert spec(tmp_path, "# only a comment\n") == ModelSpec()


def test_every_key(tmp_path: Path) -> None:
    text = """
task: detect
description: scratches on plates
license: Apache-2.0
labels: [scratch, pit]
input: {width: 320, height: 256}
thresholds: {confidence: 0.4, iou: 0.5, max_detections: 50}
defect_labels: [pit]
"""
    assert spec(tmp_path, text) == ModelSpec(
        description="scratches on plates",
        license="Apache-2.0",
        labels={0: "scratch", 1: "pit"},
        input=InputSize(width=320, height=256),
        thresholds=Thresholds(confidence=0.4, iou=0.5, max_detections=50),
        defect_labels=("pit",),
    )


def test_labels_may_be_a_map(tmp_path: Path) -> None:
    assert spec(tmp_path, "labels: {0: scratch, 1: pit}").labels == {0: "scratch", 1: "pit"}


def test_a_threshold_of_zero_may_be_written_without_a_point(tmp_path: Path) -> None:
    assert spec(tmp_path, "thresholds: {confidence: 0, iou: 1}").thresholds.confidence == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("treshold: 1", "treshold: is no key"),
        ("thresholds: {conf: 0.5}", r"thresholds\.conf: is no key"),
        ("thresholds: {confidence: 1.1}", r"thresholds\.confidence: .*1.*got 1\.1"),
        ("thresholds: {confidence: high}", r"thresholds\.confidence: .*'high'"),
        ("thresholds: {iou: -0.1}", r"thresholds\.iou: "),
        ("thresholds: {confidence: .nan}", r"thresholds\.confidence: "),
        ("thresholds: {max_detections: 0}", r"thresholds\.max_detections: "),
        ("thresholds: {max_detections: 10001}", r"thresholds\.max_detections: "),
        ("task: classify", "task: must be 'detect'.*'classify'"),
        ("input: {width: 0, height: 5}", r"input\.width: "),
        ("input: {width: 5}", r"input\.height: "),
        ("labels: scratch", "labels: "),
        ("labels: {scratch: 0}", "labels"),
        ("- a\n- b", "must be a map"),
        ("just text", "must be a map"),
        ("a: [", "is not YAML"),
        ("a: \x00", "is not YAML"),
        ("!!python/object/apply:os.system [true]", "is not YAML"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ModelSpecError, match=rf"model\.yaml: {says}") as caught:
        spec(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").mkdir()
    with pytest.raises(ModelSpecError, match="cannot be read"):
        read(tmp_path / "model.yaml")


def test_defect_labels_are_labels() -> None:
    names = {0: "scratch", 1: "pit"}
    check_defect_labels(ModelSpec(), names)
    check_defect_labels(ModelSpec(defect_labels=("pit",)), names)
    with pytest.raises(ModelSpecError, match=r"defect_labels: .*'dent' is none of scratch, pit"):
        check_defect_labels(ModelSpec(defect_labels=("pit", "dent")), names)
