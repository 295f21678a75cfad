"""`sightline models`: what it prints, and the sentences with which it ends."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from inference_service.models.model_spec import read as read_spec
from servicekit.terminal import CommandError
from sightline.cli.app import app
from tests.unit.inference_service.classifier_onnx import colour_classifier
from tests.unit.inference_service.tiny_onnx import colour_model, picture


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("SIGHTLINE_INFERENCE_MODEL_REPOSITORY", raising=False)
    monkeypatch.delenv("SIGHTLINE_INFERENCE_PROVIDERS", raising=False)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A detector in two versions, one of which is broken, and a classifier."""
    folder = tmp_path / "models"
    colour_model(folder / "colours" / "1" / "model.onnx")
    (folder / "colours" / "2").mkdir()
    (folder / "colours" / "2" / "model.onnx").write_bytes(b"no model")
    colour_classifier(folder / "classes" / "1" / "model.onnx", scale=20.0)
    (folder / "classes" / "1" / "model.yaml").write_text("task: classify\n")
    return folder


def run(*words: object) -> str:
    """Return what a command prints to stdout; raise what it ends with."""
    result = CliRunner().invoke(app, ["models", *map(str, words)])
    if result.exception:
        raise result.exception
    return result.stdout


def said(*words: object) -> str:
    """Return the sentence that a command ends with."""
    with pytest.raises(CommandError) as caught:
        run(*words)
    return str(caught.value)


def read(*words: object) -> Any:
    return json.loads(run(*words, "--json"))


def test_ls_says_what_can_be_served_and_what_cannot(repository: Path) -> None:
    rows = {(row["name"], row["version"]): row for row in read("ls", "--repository", repository)}
    assert list(rows) == [("classes", "1"), ("colours", "1"), ("colours", "2")]
    assert rows["classes", "1"]["task"] == "classify"
    assert rows["colours", "1"]["labels"] == ["red", "green", "blue"]
    assert [row["problem"] is None for row in rows.values()] == [True, True, False]
    assert "cannot be loaded as a model" in rows["colours", "2"]["problem"]
    table = run("ls", "--repository", repository)
    assert "64 x 64" in table
    assert "cannot be loaded as a model" in table


def test_the_repository_may_be_the_service_s(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGHTLINE_INFERENCE_MODEL_REPOSITORY", str(repository))
    assert len(read("ls")) == 3


def test_ls_of_nothing(tmp_path: Path) -> None:
    assert "contains no model" in said("ls", "--repository", tmp_path)
    assert "is not a folder" in said("ls", "--repository", tmp_path / "nowhere")


def test_check_says_what_a_model_is(repository: Path) -> None:
    checked = read("check", repository / "classes" / "1")
    assert (checked["task"], checked["output"], checked["batch"]) == ("classify", "logits", None)
    shown = run("check", repository / "classes" / "1")
    assert "red, green, blue" in shown
    assert "CPUExecutionProvider" in shown


def test_check_says_what_is_wrong_and_what_helps(repository: Path) -> None:
    sentence = said("check", repository / "colours" / "2" / "model.onnx")
    assert "cannot be loaded as a model" in sentence
    assert sentence.endswith("'no model', not an ONNX file. Download or copy it again.")
    (repository / "colours" / "1" / "model.yaml").write_text("thresholds: {iou: 2}")
    assert "thresholds.iou: must be" in said("check", repository / "colours" / "1")
    cuda = said("check", repository / "classes" / "1", "--providers", "NoSuchExecutionProvider")
    assert "NoSuchExecutionProvider" in cuda


def test_add_says_where_it_is(repository: Path, tmp_path: Path) -> None:
    file = repository / "colours" / "1" / "model.onnx"
    made = read("add", file, "--name", "new", "--repository", repository)
    assert made["version"] == "1"
    assert made["folder"] == str(repository / "new" / "1")
    (tmp_path / "other.yaml").write_text("labels: [x, y, z]")
    flags = ["--name", "new", "--repository", repository, "--spec", tmp_path / "other.yaml"]
    assert read("add", file, *flags)["labels"] == ["x", "y", "z"]
    assert "already exists" in said("add", file, *flags[:-2], "--version", "2")
    assert "--spec: " in said("add", file, *flags[:-1], tmp_path / "nowhere.yaml")
    assert "--name: must be" in said("add", file, "--name", "a b", "--repository", repository)


def test_add_says_that_a_content_is_there_already(repository: Path) -> None:
    file = repository / "colours" / "1" / "model.onnx"
    flags = ["--name", "new", "--repository", repository]
    assert read("add", file, *flags)["added"]
    result = CliRunner().invoke(app, ["models", "add", str(file), *map(str, flags), "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert (found["added"], found["version"]) == (False, "1")
    assert "model new version 1 already has this content" in result.stderr
    assert [path.name for path in (repository / "new").iterdir()] == ["1"]
    assert read("add", file, *flags, "--again")["version"] == "2"


@pytest.fixture
def often_right(tmp_path: Path) -> Path:
    """A folder of images of which a fifth is labelled wrong."""
    folder, colours = tmp_path / "set", {"red": (255, 0, 0), "blue": (0, 0, 255)}
    for label, other in (("red", "blue"), ("blue", "red")):
        (folder / label).mkdir(parents=True)
        for number in range(20):
            shown = colours[other if number < 4 else label]
            (folder / label / f"{number}.png").write_bytes(picture(shown, size=(8, 8)))
    return folder


def test_calibrate_changes_nothing_unless_told_to(repository: Path, often_right: Path) -> None:
    words = ["calibrate", "classes", "--images", often_right, "--repository", repository]
    yaml = repository / "classes" / "1" / "model.yaml"
    found = read(*words)
    assert found["after"]["ece"] < found["before"]["ece"]
    assert not found["written"]
    assert yaml.read_text() == "task: classify\n"
    assert read(*words, "--write")["written"]
    assert read_spec(yaml).temperature == pytest.approx(found["after"]["temperature"])
    table = run(*words)
    for figure in ("ECE", "NLL", "accuracy", "temperature"):
        assert figure in table


def test_calibrate_refuses_what_it_cannot_do(repository: Path, often_right: Path) -> None:
    def refused(model: str, *more: object) -> str:
        return said("calibrate", model, "--images", often_right, "--repository", repository, *more)

    assert "holds no model 'nobody'" in refused("nobody")
    assert "has no version '7' (it has 1)" in refused("classes/7")
    assert "is not a classifier" in refused("colours/1")
    for share in (0, 1, -0.5):
        assert "--held-out: must be between 0 and 1" in refused("classes", "--held-out", share)
    (often_right / "pink").mkdir()
    (often_right / "pink" / "a.png").write_bytes(picture())
    assert "label 'pink' is not a label of the model" in refused("classes")
