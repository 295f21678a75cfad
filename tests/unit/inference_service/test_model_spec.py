"""`model.yaml`: allowed keys, errors, and the writing of a temperature."""

import stat
from pathlib import Path

import pytest

from inference_service.models.model_spec import (
    Batching,
    InputSize,
    ModelSpec,
    ModelSpecError,
    ModelThresholds,
    PreprocessSpec,
    check_defect_labels,
    read,
    write_temperature,
)
from vision import Interpolation, Layout, Preprocess, Scores

CLASSIFIER = """\
# A classifier of ours.
task: classify   # not detect

labels: [scratch, pit]  # in the order of training
preprocess:
  resize: 256
  crop: 224
  interpolation: bicubic
  mean: [0.485, 0.456, 0.406]
  std: [0.229, 0.224, 0.225]
output: logits
top_k: 2
"""


def spec(tmp_path: Path, text: str) -> ModelSpec:
    path = tmp_path / "model.yaml"
    path.write_text(text)
    return read(path)


def test_no_file_and_an_empty_file_say_nothing(tmp_path: Path) -> None:
    assert read(tmp_path / "model.yaml") == ModelSpec()
    assert spec(tmp_path, "") == ModelSpec()
    assert spec(tmp_path, "# only a comment\n") == ModelSpec()


def test_every_key_of_a_detector(tmp_path: Path) -> None:
    text = """
task: detect
description: scratches on plates
license: Apache-2.0
labels: [scratch, pit]
input: {width: 320, height: 256}
thresholds: {confidence: 0.4, iou: 0.5, max_detections: 50}
layout: end_to_end
defect_labels: [pit]
batching: {max_size: 8, max_wait_ms: 2}
"""
    assert spec(tmp_path, text) == ModelSpec(
        layout=Layout.END_TO_END,
        description="scratches on plates",
        license="Apache-2.0",
        labels={0: "scratch", 1: "pit"},
        input=InputSize(width=320, height=256),
        thresholds=ModelThresholds(confidence=0.4, iou=0.5, max_detections=50),
        defect_labels=("pit",),
        batching=Batching(max_size=8, max_wait_ms=2),
    )


def test_every_key_of_a_classifier(tmp_path: Path) -> None:
    read_back = spec(tmp_path, f"{CLASSIFIER}temperature: 1.5\n")
    assert read_back == ModelSpec(
        task="classify",
        labels={0: "scratch", 1: "pit"},
        preprocess=PreprocessSpec(
            resize=256,
            crop=InputSize(width=224, height=224),
            interpolation="bicubic",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        output="logits",
        temperature=1.5,
        top_k=2,
    )
    assert read_back.scores is Scores.LOGITS
    assert read_back.preprocess is not None
    assert read_back.preprocess.to_vision() == Preprocess(
        256, (224, 224), Interpolation.BICUBIC, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )


def test_a_classifier_that_says_nothing(tmp_path: Path) -> None:
    parsed = spec(tmp_path, "task: classify\npreprocess: {}")
    assert (parsed.scores, parsed.temperature, parsed.top_k) == (None, 1, 5)
    assert parsed.batching == Batching(max_size=None, max_wait_ms=None)
    assert parsed.preprocess is not None
    assert parsed.preprocess.to_vision() == Preprocess()


def test_sizes_are_height_and_width_for_the_network(tmp_path: Path) -> None:
    text = (
        "task: classify\npreprocess: {resize: {width: 9, height: 5}, crop: {width: 7, height: 3}}"
    )
    parsed = spec(tmp_path, text)
    assert parsed.preprocess is not None
    assert parsed.preprocess.to_vision() == Preprocess(resize=(5, 9), crop=(3, 7))


def test_labels_may_be_a_map(tmp_path: Path) -> None:
    assert spec(tmp_path, "labels: {0: scratch, 1: pit}").labels == {0: "scratch", 1: "pit"}


def test_a_threshold_of_zero_may_be_written_without_a_point(tmp_path: Path) -> None:
    assert spec(tmp_path, "thresholds: {confidence: 0, iou: 1}").thresholds.confidence == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("treshold: 1", "treshold: is not a key"),
        ("thresholds: {conf: 0.5}", r"thresholds\.conf: is not a key"),
        ("thresholds: {confidence: 1.1}", r"thresholds\.confidence: .*1.*got 1\.1"),
        ("thresholds: {confidence: high}", r"thresholds\.confidence: .*'high'"),
        ("thresholds: {iou: -0.1}", r"thresholds\.iou: "),
        ("thresholds: {confidence: .nan}", r"thresholds\.confidence: "),
        ("thresholds: {max_detections: 0}", r"thresholds\.max_detections: "),
        ("thresholds: {max_detections: 10001}", r"thresholds\.max_detections: "),
        ("task: depth", "task: must be 'detect', 'segment', .* or 'classify'.*'depth'"),
        ("thresholds: {mask_format: bitmap}", r"thresholds\.mask_format: must be 'polygon'"),
        ("thresholds: {polygon_tolerance: 101}", r"thresholds\.polygon_tolerance: must be less"),
        ("thresholds: {polygon_tolerance: .nan}", r"thresholds\.polygon_tolerance: "),
        ("keypoint_names: [tip]", "keypoint_names: is allowed for task pose only"),
        ("task: pose\nkeypoint_shape: [5, 4]", r"keypoint_shape\.1: must be 2 or 3"),
        ("task: pose\nkeypoint_shape: [0, 3]", r"keypoint_shape\.0: "),
        ("preprocess: {}", "preprocess: is allowed for task classify only"),
        ("output: logits", "output: is allowed for task classify only"),
        ("temperature: 1", "temperature: is allowed for task classify only"),
        ("task: detect\ntop_k: 5", "top_k: is allowed for task classify only"),
        ("task: classify\nthresholds: {}", "thresholds: is allowed for tasks detect, segment, "),
        ("task: classify\ntemperature: 0", "temperature: must be greater than 0"),
        ("task: classify\ntemperature: 100.1", "temperature: must be less than or equal to 100"),
        ("task: classify\ntemperature: .nan", "temperature: "),
        ("task: classify\ntop_k: 0", "top_k: "),
        ("task: classify\ntop_k: 1001", "top_k: "),
        ("task: classify\noutput: scores", "output: must be 'logits' or 'probabilities'"),
        ("task: classify\npreprocess: {size: 5}", r"preprocess\.size: is not a key"),
        ("task: classify\npreprocess: {resize: 0}", r"preprocess\.resize: must be .* 1 \(got 0\)$"),
        ("task: classify\npreprocess: {resize: 16385}", r"preprocess\.resize: "),
        ("task: classify\npreprocess: {resize: true}", r"preprocess\.resize: must be a valid int"),
        ("task: classify\npreprocess: {resize: big}", r"preprocess\.resize: must be a valid int"),
        ("task: classify\npreprocess: {resize: {width: 5}}", r"preprocess\.resize\.height: "),
        ("task: classify\npreprocess: {crop: 0}", r"preprocess\.crop\.width: "),
        ("task: classify\npreprocess: {crop: big}", r"preprocess\.crop: "),
        ("task: classify\npreprocess: {interpolation: nearest}", r"preprocess\.interpolation: "),
        ("task: classify\npreprocess: {mean: [0, 0]}", r"preprocess\.mean\.2: "),
        ("task: classify\npreprocess: {mean: [0, 0, x]}", r"preprocess\.mean\.2: "),
        ("task: classify\npreprocess: {mean: [0, 0, .inf]}", r"preprocess\.mean\.2: "),
        ("task: classify\npreprocess: {std: [1, 1, 0]}", r"preprocess\.std\.2: "),
        ("batching: {max_size: 0}", r"batching\.max_size: "),
        ("batching: {max_size: 1025}", r"batching\.max_size: "),
        ("batching: {max_wait_ms: -1}", r"batching\.max_wait_ms: "),
        ("batching: {max_wait_ms: 1001}", r"batching\.max_wait_ms: "),
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
    with pytest.raises(ModelSpecError, match=r"defect_labels: .*scratch, pit .got 'dent'"):
        check_defect_labels(ModelSpec(defect_labels=("pit", "dent")), names)


def temperature_of(tmp_path: Path, text: str, value: float) -> str:
    """Return the file after a temperature has been set in it."""
    path = tmp_path / "model.yaml"
    path.write_bytes(text.encode())
    before = read(path)
    write_temperature(path, value)
    assert read(path) == before.model_copy(update={"temperature": round(value, 6)})
    assert list(tmp_path.iterdir()) == [path]
    return path.read_bytes().decode()


def test_a_new_temperature_is_added_and_the_rest_stays(tmp_path: Path) -> None:
    assert temperature_of(tmp_path, CLASSIFIER, 1.5) == f"{CLASSIFIER}temperature: 1.5\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("temperature: 1 # cold\n", "temperature: 2.25 # cold\n"),
        ("temperature:   1.75\ntop_k: 3", "temperature:   2.25\ntop_k: 3"),
        ("temperature: 1\r\ntop_k: 3\r\n", "temperature: 2.25\r\ntop_k: 3\r\n"),
        ("top_k: 3", "top_k: 3\ntemperature: 2.25\n"),
        ("top_k: 3\r\n", "top_k: 3\r\ntemperature: 2.25\r\n"),
        ("'temperature': 1\n", "'temperature': 2.25\n"),
        ("description: 'temperature: 1'\n", "description: 'temperature: 1'\ntemperature: 2.25\n"),
        ("description: grün\n", "description: grün\ntemperature: 2.25\n"),
    ],
)
def test_everything_else_stays_as_it_was(tmp_path: Path, before: str, after: str) -> None:
    head = "task: classify\r\n" if "\r" in before else "task: classify\n"
    assert temperature_of(tmp_path, head + before, 2.25) == head + after


def test_a_map_in_braces(tmp_path: Path) -> None:
    text = "{task: classify, top_k: 3} # short\n"
    changed = "{task: classify, top_k: 3, temperature: 0.5} # short\n"
    assert temperature_of(tmp_path, text, 0.5) == changed
    assert temperature_of(tmp_path, changed, 7) == changed.replace("0.5", "7.0")


def test_six_decimals_are_enough(tmp_path: Path) -> None:
    assert "temperature: 0.000123\n" in temperature_of(tmp_path, CLASSIFIER, 1.2345e-4)


def test_the_file_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(CLASSIFIER)
    path.chmod(0o640)
    write_temperature(path, 2)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("text", "value", "says"),
    [
        ("task: detect", 2, "temperature: is allowed for task classify only"),
        ("", 2, "temperature: is allowed for task classify only"),
        (CLASSIFIER, 0, "temperature: must be greater than 0"),
        (CLASSIFIER, 1e-7, "temperature: must be greater than 0"),
        (CLASSIFIER, 100.5, "temperature: must be less than or equal to 100"),
        (CLASSIFIER, float("nan"), "temperature: must be a valid number"),
        (CLASSIFIER, float("inf"), "temperature: must be a valid number"),
        ("top_k: 0", 2, "top_k: "),
        ("a: [", 2, "is not YAML"),
        (f"---\n{CLASSIFIER}...\n", 2, "is not YAML"),
        ("task: classify\ndescription: |\n  no line break", 2, "cannot be changed"),
    ],
)
def test_what_cannot_be_changed_stays_as_it_was(
    tmp_path: Path, text: str, value: float, says: str
) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(text)
    with pytest.raises(ModelSpecError, match=rf"model\.yaml: {says}"):
        write_temperature(path, value)
    assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_there_or_not_text_cannot_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    with pytest.raises(ModelSpecError, match=r"model\.yaml: cannot be changed: No such file"):
        write_temperature(path, 2)
    path.write_bytes("task: classify\n".encode("utf-16"))
    with pytest.raises(ModelSpecError, match=r"model\.yaml: must be UTF-8"):
        write_temperature(path, 2)
