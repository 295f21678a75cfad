"""A model on its way into a repository: what is checked, what is copied, and what is refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import external_data_helper

from inference_service.models.check import check_files, files
from inference_service.models.folders import ModelVersion
from inference_service.models.install import install, next_version
from inference_service.models.loader import RepositoryError, Runtime, load_model
from tests.unit.inference_service.classifier_onnx import colour_classifier
from tests.unit.inference_service.tiny_onnx import colour_model
from vision import SessionOptions

RUNTIME = Runtime()


def put(file: Path, repository: Path, name: str = "a", version: str = "") -> Path:
    onnx_file, yaml = files(file)
    return install(onnx_file, yaml, repository, ModelVersion(name, version), RUNTIME).folder


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_detector_is_described(tmp_path: Path) -> None:
    checked = check_files(*files(colour_model(tmp_path / "best.onnx")), RUNTIME)
    assert (checked.task, checked.output) == ("detect", "yolov8")
    assert checked.labels == ("red", "green", "blue")
    assert (checked.input_width, checked.input_height, checked.batch) == (64, 64, 1)
    assert (checked.provider, checked.temperature) == ("CPUExecutionProvider", None)
    assert checked.run_ms > 0


def test_a_classifier_is_described(tmp_path: Path) -> None:
    colour_classifier(tmp_path / "model.onnx")
    (tmp_path / "model.yaml").write_text("task: classify\ntemperature: 1.5")
    checked = check_files(*files(tmp_path), RUNTIME)
    assert (checked.task, checked.output, checked.temperature) == ("classify", "logits", 1.5)
    assert (checked.input_width, checked.input_height, checked.batch) == (8, 8, None)


def test_the_exporter_says_the_task_if_nobody_else_does(tmp_path: Path) -> None:
    path = colour_classifier(tmp_path / "best.onnx", task="classify", probabilities=True)
    checked = check_files(*files(path), RUNTIME)
    assert (checked.task, checked.output) == ("classify", "probabilities")


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"nowhere\.onnx.*Give an \.onnx file"):
        check_files(*files(tmp_path / "nowhere.onnx"), RUNTIME)
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(RepositoryError, match=r"text\.onnx cannot be loaded.*text of 8 bytes"):
        check_files(*files(tmp_path / "text.onnx"), RUNTIME)


def test_a_model_that_lacks_something_gets_a_hint(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"'names' is missing.*labels: \["):
        check_files(*files(colour_model(tmp_path / "a.onnx", names=None)), RUNTIME)
    with pytest.raises(RepositoryError, match=r"neither .* Is `task` in model\.yaml right"):
        check_files(*files(colour_classifier(tmp_path / "b.onnx")), RUNTIME)
    other = Runtime(SessionOptions(("NoSuchExecutionProvider",)))
    with pytest.raises(RepositoryError, match=r"NoSuchExecutionProvider.*\. Install"):
        check_files(*files(colour_model(tmp_path / "c.onnx")), other)


def test_a_model_whose_answers_are_nonsense_does_not_pass(tmp_path: Path) -> None:
    path = colour_classifier(tmp_path / "model.onnx")
    (tmp_path / "model.yaml").write_text("task: classify\noutput: probabilities")
    with pytest.raises(RepositoryError, match=r"must be probabilities.*Is `output`"):
        check_files(*files(path), RUNTIME)


def test_versions_are_counted_on(tmp_path: Path) -> None:
    file, repository = colour_model(tmp_path / "best.onnx"), tmp_path / "models"
    for version, folder in (("", "1"), ("", "2"), ("9.3-rc", "9.3-rc"), ("", "10")):
        colour_model(file, names={0: folder, 1: "green", 2: "blue"})
        assert put(file, repository, version=version) == repository / "a" / folder
    assert load_model(repository / "a" / "10", RUNTIME).version == "10"


@pytest.mark.parametrize(
    ("there", "following"),
    [([], "1"), (["1", "9", "10"], "11"), (["rc"], "1"), (["2026-01-02"], "2027"), ([".5"], "1")],
)
def test_next_version(tmp_path: Path, there: list[str], following: str) -> None:
    for name in there:
        (tmp_path / name).mkdir()
    (tmp_path / "77").write_text("no folder")
    assert next_version(tmp_path) == following
    assert next_version(tmp_path / "nowhere") == "1"


def test_the_yaml_goes_along(tmp_path: Path) -> None:
    colour_model(tmp_path / "best.onnx")
    (tmp_path / "model.yaml").write_text("labels: [x, y, z]")
    folder = put(tmp_path / "best.onnx", tmp_path / "models")
    assert list(load_model(folder, RUNTIME).network.names.values()) == ["x", "y", "z"]
    assert everything(tmp_path / "models") == ["a", "a/1", "a/1/model.onnx", "a/1/model.yaml"]


def with_external_data(path: Path, data: str) -> Path:
    model = onnx.load(colour_model(path, matmuls=1))
    external_data_helper.convert_model_to_external_data(model, location=data, size_threshold=1024)
    onnx.save(model, path)
    assert (path.parent / data).exists()
    return path


def test_external_data_goes_along(tmp_path: Path) -> None:
    path = with_external_data(tmp_path / "best.onnx", "weights.bin")
    folder = put(path, tmp_path / "models")
    assert sorted(each.name for each in folder.iterdir()) == ["model.onnx", "weights.bin"]
    path.with_name("weights.bin").unlink()
    load_model(folder, RUNTIME)


def test_external_data_in_a_folder_goes_along_and_is_named_if_it_is_missing(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    path = with_external_data(tmp_path / "best.onnx", "deeper/weights.bin")
    folder = put(path, tmp_path / "models")
    (tmp_path / "deeper" / "weights.bin").unlink()
    load_model(folder, RUNTIME)
    with pytest.raises(RepositoryError, match=r"'deeper/weights\.bin' is missing\. Copy it"):
        put(path, tmp_path / "others")
    assert not (tmp_path / "others").exists()


def test_what_is_there_is_never_written_over(tmp_path: Path) -> None:
    file, repository = colour_model(tmp_path / "best.onnx"), tmp_path / "models"
    put(file, repository, version="1")
    before = (repository / "a" / "1" / "model.onnx").stat()
    colour_model(file, names={0: "other", 1: "green", 2: "blue"})
    with pytest.raises(RepositoryError, match="model a version 1 already exists"):
        put(file, repository, version="1")
    assert (repository / "a" / "1" / "model.onnx").stat() == before


def test_a_model_that_does_not_work_is_not_put_there(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_text("no model")
    with pytest.raises(RepositoryError, match=r"bad\.onnx cannot be loaded"):
        put(tmp_path / "bad.onnx", tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(("name", "version"), [("", ""), ("../x", ""), ("a", ".1"), ("a", "1/2")])
def test_names_that_no_repository_takes(tmp_path: Path, name: str, version: str) -> None:
    file = colour_model(tmp_path / "best.onnx")
    with pytest.raises(RepositoryError, match=r"--(name|version): must be 1 to 128"):
        put(file, tmp_path / "models", name, version)


def test_a_repository_that_cannot_be_written(tmp_path: Path) -> None:
    file = colour_model(tmp_path / "best.onnx")
    (tmp_path / "models").write_text("no folder")
    with pytest.raises(RepositoryError, match=r"models.*: Not a directory"):
        put(file, tmp_path / "models")


def trained(folder: Path, value: float) -> Path:
    """Write a model whose ONNX file is always the same, and whose weights are all `value`."""
    folder.mkdir(exist_ok=True)
    path = with_external_data(folder / "best.onnx", "weights.bin")
    weights = np.full((folder / "weights.bin").stat().st_size // 4, value, dtype=np.float32)
    weights.tofile(folder / "weights.bin")
    return path


@pytest.mark.parametrize("version", ["", "1"])
def test_the_same_content_is_added_once(tmp_path: Path, version: str) -> None:
    path, repository, key = trained(tmp_path / "a", 1), tmp_path / "models", ModelVersion("a", "")
    assert install(*files(path), repository, key, RUNTIME).added
    (path.parent / "copy.onnx").write_bytes(path.read_bytes())
    same = files(path.parent / "copy.onnx")
    found = install(*same, repository, ModelVersion("a", version), RUNTIME)
    assert (found.folder, found.added) == (repository / "a" / "1", False)
    assert found.description.labels == ("red", "green", "blue")
    assert everything(repository)[:2] == ["a", "a/1"]
    assert len(everything(repository)) == 4
    assert install(*same, repository, key, RUNTIME, again=True).folder.name == "2"
    assert install(*same, repository, ModelVersion("a", "7"), RUNTIME).folder.name == "7"


@pytest.mark.parametrize("what", ["weights", "yaml", "network"])
def test_another_content_is_another_version(tmp_path: Path, what: str) -> None:
    path, repository = trained(tmp_path / "a", 1), tmp_path / "models"
    put(path, repository)
    if what == "weights":
        path = trained(tmp_path / "b", 2)
        assert path.read_bytes() == (tmp_path / "a" / "best.onnx").read_bytes()
    elif what == "yaml":
        (tmp_path / "a" / "model.yaml").write_text("description: another")
    else:
        path = colour_model(tmp_path / "c" / "best.onnx", names={0: "b", 1: "g", 2: "rot"})
    assert put(path, repository).name == "2"


def test_a_broken_version_is_not_the_same(tmp_path: Path) -> None:
    path, repository = trained(tmp_path / "a", 1), tmp_path / "models"
    (put(path, repository) / "weights.bin").unlink()
    assert put(path, repository).name == "2"


@pytest.mark.parametrize("name", ["model.onnx", "./model.onnx"])
def test_external_data_may_not_take_the_repository_s_own_names(tmp_path: Path, name: str) -> None:
    path = with_external_data(tmp_path / "best.onnx", name)
    with pytest.raises(RepositoryError, match=f"external data '{name}' has a name"):
        put(path, tmp_path / "models")
    assert everything(tmp_path / "models") == ["a"]


@pytest.mark.parametrize("how", ["..", "absolute", "link"])
def test_weights_outside_of_the_model_s_folder_are_neither_read_nor_copied(
    tmp_path: Path, how: str
) -> None:
    folder = tmp_path / "from"
    folder.mkdir()
    good = with_external_data(folder / "best.onnx", "secret.bin")
    secret = (folder / "secret.bin").rename(tmp_path / "secret.bin")
    if how == "link":
        (folder / "secret.bin").symlink_to(secret)
        path = good
    else:
        network = onnx.load(good, load_external_data=False)
        name = str(secret) if how == "absolute" else "../secret.bin"
        for tensor in network.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = name
        path = folder / "other.onnx"
        path.write_bytes(network.SerializeToString())
    secret.chmod(0)  # whoever opens it all the same may fail
    with pytest.raises(RepositoryError, match="in the model's own folder"):
        check_files(path, folder / "model.yaml", RUNTIME)
    with pytest.raises(RepositoryError, match="in the model's own folder"):
        put(path, tmp_path / "models")
    assert not (tmp_path / "models").exists()
    (tmp_path / "served" / "a" / "1").mkdir(parents=True)
    served = tmp_path / "served" / "a" / "1" / "model.onnx"
    served.write_bytes(path.read_bytes())
    if how == "link":
        (served.parent / "secret.bin").symlink_to(secret)
    elif how == "..":
        (tmp_path / "served" / "a" / "secret.bin").write_bytes(b"x" * 2_000_000)
    with pytest.raises(RepositoryError, match="in the model's own folder"):
        load_model(served.parent, RUNTIME)


def test_a_yaml_that_never_ends_is_refused(tmp_path: Path) -> None:
    path = colour_model(tmp_path / "model.onnx")
    (tmp_path / "model.yaml").symlink_to("/dev/zero")
    with pytest.raises(RepositoryError, match="not a regular file"):
        check_files(path, tmp_path / "model.yaml", RUNTIME)
