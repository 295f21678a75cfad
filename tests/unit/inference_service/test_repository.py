"""What is loaded from a repository and what is refused; real ONNX files."""

import random
from pathlib import Path

import grpc
import pytest

from inference_service.models.engine import Model
from inference_service.models.repository import (
    Models,
    RepositoryError,
    Runtime,
    load_all,
    load_model,
    version_key,
)
from servicekit.errors import SightlineError
from tests.unit.inference_service.tiny_onnx import colour_model

CPU = Runtime(("CPUExecutionProvider",), 1)


def load(path: Path) -> Model:
    return load_model(path, CPU)


def repository(folder: Path, *versions: str) -> Path:
    for version in versions:
        colour_model(folder / version / "model.onnx")
    return folder


def loaded(models: Models) -> list[str]:
    return [f"{model.name}/{model.version}" for model in models.all]


def test_versions_are_ordered_as_people_order_them() -> None:
    ordered = ["rc", "rc2", "rc10", "1", "1-rc", "1.0", "1.9", "1.10", "2", "10", "2026-01-02"]
    shuffled = list(ordered)
    random.Random(0).shuffle(shuffled)
    assert sorted(shuffled, key=version_key) == ordered


def test_all_versions_are_loaded_and_the_highest_is_the_default(tmp_path: Path) -> None:
    models = load_all(repository(tmp_path, "a/2", "a/10", "a/9"), "", load)
    assert loaded(models) == ["a/2", "a/9", "a/10"]
    assert models.find("", "").version == "10"
    assert models.find("a", "").version == "10"
    assert models.find("a", "9").version == "9"
    assert [models.is_default_version(model) for model in models.all] == [False, False, True]


def test_unknown_names_and_versions(tmp_path: Path) -> None:
    models = load_all(repository(tmp_path, "a/1", "a/2"), "", load)
    with pytest.raises(SightlineError, match="'b' is not loaded") as caught:
        models.find("b", "")
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    assert caught.value.reason == "MODEL_NOT_FOUND"
    with pytest.raises(SightlineError, match=r"no version '3'.*has 1, 2") as caught:
        models.find("a", "3")
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    assert caught.value.reason == "MODEL_VERSION_NOT_FOUND"


def test_a_default_must_be_chosen_among_several(tmp_path: Path) -> None:
    repository(tmp_path, "a/1", "b/1")
    with pytest.raises(RepositoryError, match=r"default_model: must be given.*holds a, b"):
        load_all(tmp_path, "", load)
    assert load_all(tmp_path, "b", load).find("", "").name == "b"


def test_a_default_must_be_there(tmp_path: Path) -> None:
    repository(tmp_path, "a/1")
    with pytest.raises(RepositoryError, match=r"default_model: 'x' is not in .* holds a"):
        load_all(tmp_path, "x", load)


def test_no_folder_and_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"model_repository: .*nowhere is not a folder"):
        load_all(tmp_path / "nowhere", "", load)
    with pytest.raises(RepositoryError, match=r"model_repository: .* holds no model"):
        load_all(tmp_path, "", load)


def test_what_is_no_model_is_passed_over(tmp_path: Path) -> None:
    repository(tmp_path, "a/1", ".hidden/1", "a/.git")
    (tmp_path / "README.md").write_text("about the models")
    assert loaded(load_all(tmp_path, "", load)) == ["a/1"]


def test_a_model_without_versions_does_not_take_others_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository(tmp_path, "a/1")
    (tmp_path / "b").mkdir()
    assert loaded(load_all(tmp_path, "", load)) == ["a/1"]
    assert "model b" in caplog.text


def broken(folder: Path, version: str) -> None:
    (folder / version).mkdir(parents=True)
    (folder / version / "model.onnx").write_bytes(b"no model")


def test_a_broken_model_does_not_take_others_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository(tmp_path, "a/1", "b/1")
    broken(tmp_path, "b/2")
    broken(tmp_path, "c/1")
    broken(tmp_path, "a/0")
    models = load_all(tmp_path, "a", load)
    assert loaded(models) == ["a/1", "b/1"]
    assert models.find("b", "").version == "1"
    assert "left out: model b version 2" in caplog.text
    assert "left out: model c version 1" in caplog.text
    assert "left out: model a version 0" in caplog.text


def test_a_broken_default_model_is_an_error_even_if_an_older_version_works(tmp_path: Path) -> None:
    repository(tmp_path, "a/1")
    broken(tmp_path, "a/2")
    with pytest.raises(RepositoryError, match="model a version 2"):
        load_all(tmp_path, "", load)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a" / "1").mkdir(parents=True)
    with pytest.raises(RepositoryError, match=r"model a version 1: .*model\.onnx"):
        load_all(tmp_path, "", load)


def yaml(folder: Path, text: str) -> Path:
    path = repository(folder, "a/1") / "a" / "1"
    (path / "model.yaml").write_text(text)
    return path


def test_labels_come_from_the_yaml_or_the_metadata(tmp_path: Path) -> None:
    path = yaml(tmp_path, "")
    assert list(load(path).detector.names.values()) == ["red", "green", "blue"]
    (path / "model.yaml").write_text("labels: [rot, grün, blau]")
    assert list(load(path).detector.names.values()) == ["rot", "grün", "blau"]


def test_labels_that_nobody_gives(tmp_path: Path) -> None:
    colour_model(tmp_path / "a" / "1" / "model.onnx", names=None)
    with pytest.raises(RepositoryError, match=r"model a version 1: .*names"):
        load(tmp_path / "a" / "1")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("typo: 1", r"model\.yaml: typo: is no key"),
        ("labels: [only, two]", r"4 \+ 2 classes"),
        ("labels: {0: a, 1: b, 7: c}", "names"),
        ("defect_labels: [dent]", "defect_labels: .*'dent'"),
        ("input: {width: 64, height: 32}", r"model\.yaml: input: .*64 x 64 .*got 64 x 32"),
    ],
)
def test_a_yaml_that_does_not_fit_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(RepositoryError, match=rf"model a version 1: .*{says}"):
        load(yaml(tmp_path, text))


def test_a_yaml_that_fits(tmp_path: Path) -> None:
    text = "input: {width: 64, height: 64}\ndefect_labels: [red]\nthresholds: {confidence: 0.9}"
    assert load(yaml(tmp_path, text)).spec.thresholds.confidence == 0.9


def test_a_model_for_another_task_is_refused(tmp_path: Path) -> None:
    colour_model(tmp_path / "a" / "1" / "model.onnx", task="segment")
    with pytest.raises(RepositoryError, match=r"model a version 1: .*'segment'"):
        load(tmp_path / "a" / "1")


def test_a_provider_that_is_missing_is_refused(tmp_path: Path) -> None:
    path = repository(tmp_path, "a/1") / "a" / "1"
    asked = Runtime(("NoSuchExecutionProvider", "CPUExecutionProvider"), 1)
    with pytest.raises(RepositoryError, match="NoSuchExecutionProvider"):
        load_model(path, asked)
