"""Loading of a repository, at the start and when it changes; real ONNX files."""

import random
from pathlib import Path

import grpc
import pytest

from inference_service.models.engine import Model
from inference_service.models.folders import version_key
from inference_service.models.loader import RepositoryError, Runtime, load_model
from servicekit.errors import SightlineError
from tests.unit.inference_service.repositories import Followed, broken, load, repository, yaml
from tests.unit.inference_service.tiny_onnx import colour_model
from vision import SessionOptions


def test_versions_are_ordered_as_people_order_them() -> None:
    ordered = ["rc", "rc2", "rc10", "1", "1-rc", "1.0", "1.9", "1.10", "2", "10", "2026-01-02"]
    shuffled = list(ordered)
    random.Random(0).shuffle(shuffled)
    assert sorted(shuffled, key=version_key) == ordered


def test_all_versions_are_loaded_and_the_highest_is_the_default(tmp_path: Path) -> None:
    served = Followed(repository(tmp_path, "a/2", "a/10", "a/9"))
    models = served.models
    assert served.loaded == ["a/2", "a/9", "a/10"]
    assert models.find("", "").version == "10"
    assert models.find("a", "").version == "10"
    assert models.find("a", "9").version == "9"
    assert [models.is_default_version(model) for model in models.all] == [False, False, True]


def test_unknown_names_and_versions(tmp_path: Path) -> None:
    models = Followed(repository(tmp_path, "a/1", "a/2")).models
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
    with pytest.raises(RepositoryError, match=r"default_model: must be set.*contains a, b"):
        Followed(tmp_path)
    assert Followed(tmp_path, "b").models.find("", "").name == "b"


def test_a_default_must_be_there(tmp_path: Path) -> None:
    repository(tmp_path, "a/1")
    with pytest.raises(RepositoryError, match=r"default_model: 'x' is not in .* contains a"):
        Followed(tmp_path, "x")


def test_a_pinned_version_comes_before_the_highest(tmp_path: Path) -> None:
    repository(tmp_path, "a/1", "a/2", "b/1", "b/2")
    models = Followed(tmp_path, "a", {"b": "1"}).models
    assert models.find("", "").version == "2"
    assert models.find("b", "").version == "1"
    assert models.find("b", "2").version == "2"
    assert [models.is_default_version(m) for m in models.all] == [False, True, True, False]


def test_a_pinned_version_must_be_there_and_work(tmp_path: Path) -> None:
    repository(tmp_path, "a/1")
    with pytest.raises(RepositoryError, match="default_versions: model a version 2 is not in"):
        Followed(tmp_path, pinned={"a": "2"})
    broken(tmp_path, "a/2")
    with pytest.raises(RepositoryError, match=r"model a version 2: .*cannot be loaded as a model"):
        Followed(tmp_path, pinned={"a": "2"})


def test_no_folder_and_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"model_repository: .*nowhere is not a folder"):
        Followed(tmp_path / "nowhere")
    with pytest.raises(RepositoryError, match=r"model_repository: .* contains no model"):
        Followed(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RepositoryError, match=r"model_repository: .*file is not a folder"):
        Followed(tmp_path / "file")


def test_what_is_no_model_is_passed_over(tmp_path: Path) -> None:
    repository(tmp_path, "a/1", ".hidden/1", "a/.git")
    (tmp_path / "README.md").write_text("about the models")
    served = Followed(tmp_path)
    assert (served.loaded, served.failures) == (["a/1"], [])


def test_a_model_without_versions_does_not_take_others_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository(tmp_path, "a/1")
    (tmp_path / "b").mkdir()
    (tmp_path / "c").symlink_to("c")  # leads nowhere, for ever
    assert Followed(tmp_path, "a").loaded == ["a/1"]
    assert "not loaded: model b: " in caplog.text
    assert "not loaded: model c: " in caplog.text


def test_a_broken_model_does_not_take_others_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository(tmp_path, "a/1", "b/1")
    broken(tmp_path, "b/2")
    broken(tmp_path, "c/1")
    broken(tmp_path, "a/2")
    served = Followed(tmp_path, "a")
    assert served.loaded == ["a/1", "b/1"]
    assert served.models.find("b", "").version == "1"
    assert served.failures == ["a", "b", "c"]
    for each in ("a version 2", "b version 2", "c version 1"):
        assert f"not loaded: model {each}: " in caplog.text


def test_a_default_model_of_which_no_version_works_is_an_error(tmp_path: Path) -> None:
    repository(tmp_path, "b/1")
    broken(tmp_path, "a/1")
    broken(tmp_path, "a/2")
    with pytest.raises(RepositoryError, match="model a version 2"):
        Followed(tmp_path, "a")


def test_an_error_that_nobody_expected_of_a_model_is_its_own(tmp_path: Path) -> None:
    repository(tmp_path, "a/1", "b/1")

    def strange(path: Path) -> Model:
        if path.parent.name == "b":
            raise MemoryError("no room")
        return load(path)

    served = Followed(tmp_path, "a", load=strange)
    assert (served.loaded, served.failures) == (["a/1"], ["b"])


# One version.


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a" / "1").mkdir(parents=True)
    with pytest.raises(RepositoryError, match=r"model a version 1: .*model\.onnx"):
        Followed(tmp_path)
    colour_model(tmp_path / "a" / "1" / "best.onnx")
    with pytest.raises(RepositoryError, match=r"model\.onnx.*; its folder has best\.onnx$"):
        Followed(tmp_path)


@pytest.mark.parametrize("where", [".", "a"])
def test_a_model_in_the_wrong_folder_is_named(tmp_path: Path, where: str) -> None:
    (tmp_path / "a").mkdir()
    colour_model(tmp_path / where / "best.onnx")
    with pytest.raises(RepositoryError, match=r"no model .*; it has best\.onnx: `sightline models"):
        Followed(tmp_path)


def test_a_model_beside_its_versions_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository(tmp_path, "a/1")
    colour_model(tmp_path / "b" / "best.onnx")
    Followed(tmp_path, default="a")
    assert "b contains no version; it has best.onnx: `sightline models add`" in caplog.text


def test_a_file_that_is_no_model_is_named_at_the_start_and_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a" / "1").mkdir(parents=True)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"
    (tmp_path / "a" / "1" / "model.onnx").write_text(pointer)
    with pytest.raises(RepositoryError, match=r"model a version 1: .*pointer to 7.*git lfs pull"):
        Followed(tmp_path)
    repository(tmp_path, "b/1")
    served = Followed(tmp_path, default="b")
    (tmp_path / "a" / "1" / "model.onnx").write_bytes(b"PK\x05\x06" + bytes(18))
    served.poll(2)
    assert "not loaded: model a version 1: " in caplog.text.splitlines()[-1]
    assert "it is a zip archive, not an ONNX file." in caplog.text.splitlines()[-1]


def test_labels_come_from_the_yaml_or_the_metadata(tmp_path: Path) -> None:
    path = yaml(tmp_path, "")
    assert list(load(path).network.names.values()) == ["red", "green", "blue"]
    (path / "model.yaml").write_text("labels: [rot, grün, blau]")
    assert list(load(path).network.names.values()) == ["rot", "grün", "blau"]


def test_labels_that_nobody_gives(tmp_path: Path) -> None:
    colour_model(tmp_path / "a" / "1" / "model.onnx", names=None)
    with pytest.raises(RepositoryError, match=r"model a version 1: .*names"):
        load(tmp_path / "a" / "1")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("typo: 1", r"model\.yaml: typo: is not a key"),
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
    options = SessionOptions(("NoSuchExecutionProvider", "CPUExecutionProvider"), 1)
    with pytest.raises(RepositoryError, match="NoSuchExecutionProvider"):
        load_model(path, Runtime(options))
