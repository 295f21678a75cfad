"""Loading of a repository, at the start and when it changes; real ONNX files."""

import gc
import os
import random
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from onnx import external_data_helper

from inference_service.models.engine import Model
from inference_service.models.folders import version_key
from inference_service.models.loader import RepositoryError, Runtime, load_model
from inference_service.models.repository import Models, Repository
from servicekit.errors import SightlineError
from tests.unit.inference_service.tiny_onnx import colour_model
from vision import OnnxYolo, SessionOptions


def load(path: Path) -> Model:
    return load_model(path, Runtime())


def repository(folder: Path, *versions: str) -> Path:
    for version in versions:
        colour_model(folder / version / "model.onnx")
    return folder


def broken(folder: Path, version: str) -> None:
    (folder / version).mkdir(parents=True, exist_ok=True)
    (folder / version / "model.onnx").write_bytes(b"no model")


class Followed:
    """A repository, what it has published, and which models it could not load."""

    def __init__(
        self,
        folder: Path,
        default: str = "",
        pinned: dict[str, str] | None = None,
        load: Callable[[Path], Model] = load,
    ) -> None:
        self.models = Models([], "")
        self.failures: list[str] = []
        self.published = 0
        self.repository = Repository(
            folder,
            default=default,
            pinned=pinned or {},
            load=load,
            publish=self.publish,
            on_failure=self.failures.append,
        )
        self.repository.start()

    def publish(self, models: Models) -> None:
        self.models = models
        self.published += 1

    def poll(self, times: int = 1) -> None:
        for _ in range(times):
            self.repository.poll()

    @property
    def loaded(self) -> list[str]:
        return [f"{model.name}/{model.version}" for model in self.models.all]

    def labels(self, name: str = "", version: str = "") -> list[str]:
        return list(self.models.find(name, version).network.names.values())


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


# While serving.


def test_nothing_is_loaded_again_as_long_as_nothing_changes(tmp_path: Path) -> None:
    served = Followed(repository(tmp_path, "a/1"))
    before = served.models
    served.poll(3)
    assert served.models is before


def test_a_new_version_is_taken_in_once_it_is_at_rest(tmp_path: Path) -> None:
    served = Followed(repository(tmp_path, "a/1"))
    old = served.models.find("a", "1")
    repository(tmp_path, "a/2", "b/1")
    served.poll()
    assert served.loaded == ["a/1"]
    served.poll()
    assert served.loaded == ["a/1", "a/2", "b/1"]
    assert served.models.find("", "").version == "2"
    assert served.models.find("a", "1") is old
    assert served.published == 3


def test_a_file_that_is_being_copied_is_left_alone(tmp_path: Path) -> None:
    served = Followed(repository(tmp_path, "a/1"))
    whole = colour_model(tmp_path / "whole.onnx").read_bytes()
    (tmp_path / "a" / "2").mkdir()
    with (tmp_path / "a" / "2" / "model.onnx").open("wb", buffering=0) as file:
        for at in range(0, len(whole), 64):
            file.write(whole[at : at + 64])
            served.poll()
    assert (served.loaded, served.failures) == (["a/1"], [])
    served.poll(2)
    assert served.loaded == ["a/1", "a/2"]


def test_what_is_known_to_be_complete_is_taken_in_at_once(tmp_path: Path) -> None:
    served = Followed(repository(tmp_path, "a/1"))
    repository(tmp_path, "a/2")
    shutil.rmtree(tmp_path / "a" / "1")
    served.repository.poll(settled=True)
    assert served.loaded == ["a/2"]


def in_place(folder: Path) -> None:
    colour_model(folder / "model.onnx", names={0: "x", 1: "y", 2: "z"})


def by_rename_of_the_file(folder: Path) -> None:
    colour_model(folder / ".new.onnx", names={0: "x", 1: "y", 2: "z"})
    (folder / ".new.onnx").rename(folder / "model.onnx")


def by_rename_of_the_folder(folder: Path) -> None:
    colour_model(folder.parent / ".new" / "model.onnx", names={0: "x", 1: "y", 2: "z"})
    folder.rename(folder.parent / ".old")
    (folder.parent / ".new").rename(folder)


def by_another_yaml(folder: Path) -> None:
    (folder / "model.yaml").write_text("labels: [x, y, z]")


def with_the_old_times_and_size(folder: Path) -> None:
    path = folder / "model.onnx"
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"'red'", b"'x  '"))
    (folder / "model.yaml").write_text("")
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("name", ["weights.bin", "deeper/still/weights.bin"])
def test_new_weights_beside_the_network_are_taken_in(tmp_path: Path, name: str) -> None:
    folder = repository(tmp_path, "a/1") / "a" / "1"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    network = onnx.load(folder / "model.onnx")
    (box,) = (tensor for tensor in network.graph.initializer if tensor.name == "box")
    external_data_helper.set_external_data(box, location=name)
    (folder / name).write_bytes(box.raw_data)
    box.ClearField("raw_data")
    (folder / "model.onnx").write_bytes(network.SerializeToString())
    served = Followed(tmp_path)
    old = served.models.find("", "").network
    with (folder / name).open("r+b") as file:
        file.write(np.array([16, 16], dtype=np.float32).tobytes())
    served.poll(2)
    new = served.models.find("", "").network
    assert new.sha256 != old.sha256
    red = np.zeros((64, 64, 3), dtype=np.uint8)
    red[..., 0] = 255
    assert isinstance(new, OnnxYolo)
    assert new.detect(red).xyxy.tolist() == [[0, 8, 32, 24]]


@pytest.mark.parametrize(
    "change",
    [
        in_place,
        by_rename_of_the_file,
        by_rename_of_the_folder,
        by_another_yaml,
        with_the_old_times_and_size,
    ],
)
def test_a_changed_version_is_loaded_and_takes_the_old_one_s_place(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    served = Followed(repository(tmp_path, "a/1"))
    old = weakref.ref(served.models.find("a", "1").network.session)
    change(tmp_path / "a" / "1")
    served.poll(2)
    assert served.labels()[0].strip() == "x"
    gc.collect()
    assert old() is None


def test_links_that_point_elsewhere_are_followed(tmp_path: Path) -> None:
    colour_model(tmp_path / "store" / "1" / "model.onnx")
    colour_model(tmp_path / "store" / "2" / "model.onnx", names={0: "x", 1: "y", 2: "z"})
    link = tmp_path / "models" / "a" / "1"
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "store" / "1")
    served = Followed(tmp_path / "models")
    (tmp_path / "new").symlink_to(tmp_path / "store" / "2")
    (tmp_path / "new").rename(link)
    served.poll(2)
    assert served.labels() == ["x", "y", "z"]


def test_a_change_that_does_not_load_leaves_the_old_one_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served = Followed(repository(tmp_path, "a/1"))
    before = served.models
    broken(tmp_path, "a/1")
    broken(tmp_path, "a/2")
    served.poll(5)
    assert served.models is before
    assert served.failures == ["a", "a"]
    assert caplog.text.count("not loaded: model a version 1") == 1
    assert "the version that was loaded before stays in use" in caplog.text
    colour_model(tmp_path / "a" / "2" / "model.onnx")
    served.poll(2)
    assert served.loaded == ["a/1", "a/2"]
    assert served.failures == ["a", "a"]


def test_a_version_that_changes_while_it_is_loaded_is_loaded_again(tmp_path: Path) -> None:
    changes = [lambda path: (path / "model.yaml").write_text("labels: [x, y, z]")]

    def slow(path: Path) -> Model:
        model = load(path)
        while path.name == "2" and changes:
            changes.pop()(path)
        return model

    served = Followed(repository(tmp_path, "a/1"), load=slow)
    repository(tmp_path, "a/2")
    served.poll(2)
    assert served.loaded == ["a/1"]
    served.poll(2)
    assert served.labels() == ["x", "y", "z"]


@pytest.mark.parametrize("loaded_before", [False, True])
def test_a_version_that_goes_while_it_is_loaded_is_gone(
    tmp_path: Path, *, loaded_before: bool
) -> None:
    goes: list[Path] = []

    def slow(path: Path) -> Model:
        model = load(path)
        if path in goes:
            shutil.rmtree(path)
        return model

    served = Followed(repository(tmp_path, "a/1", *["a/2"] * loaded_before), load=slow)
    goes.append(tmp_path / "a" / "2")
    repository(tmp_path, "a/2")
    served.poll(4)
    assert served.loaded == ["a/1"]


def test_a_version_that_is_gone_is_unloaded(tmp_path: Path) -> None:
    served = Followed(repository(tmp_path, "a/1", "a/2", "b/1"), "a")
    gone = weakref.ref(served.models.find("a", "2").network.session)
    used = served.models.find("b", "1")
    shutil.rmtree(tmp_path / "a" / "2")
    shutil.rmtree(tmp_path / "b")
    served.poll()
    assert served.loaded == ["a/1", "a/2", "b/1"], "it may be on its way to another place"
    served.poll()
    assert served.loaded == ["a/1"]
    gc.collect()
    assert gone() is None
    used.network.warm_up()  # who still has it can still use it
    repository(tmp_path, "a/2")
    served.poll(2)
    assert served.loaded == ["a/1", "a/2"]


def test_the_default_model_s_last_version_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served = Followed(repository(tmp_path, "a/1", "b/1"), "a")
    shutil.rmtree(tmp_path / "a")
    served.poll(4)
    assert served.loaded == ["a/1", "b/1"]
    assert caplog.text.count("stays loaded: it is the default model's last version") == 1
    repository(tmp_path, "a/2")
    served.poll(2)
    assert served.loaded == ["a/2", "b/1"]


def test_a_pinned_version_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    served = Followed(repository(tmp_path, "a/1", "a/2"), pinned={"a": "1"})
    shutil.rmtree(tmp_path / "a" / "1")
    served.poll(2)
    assert served.loaded == ["a/1", "a/2"]
    assert "stays loaded: default_versions pins it" in caplog.text


@pytest.mark.parametrize("empty", [False, True])
def test_a_repository_that_is_away_takes_no_model_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, empty: bool
) -> None:
    folder = repository(tmp_path / "models", "a/1", "b/1")
    served = Followed(folder, "a")
    before = served.models
    folder.rename(tmp_path / "away")
    if empty:
        folder.mkdir()
    served.poll(3)
    assert served.models is before
    assert caplog.text.count("the loaded models stay in use") == 1
    if empty:
        folder.rmdir()
    (tmp_path / "away").rename(folder)
    served.poll(3)
    assert served.models is before


def test_a_model_whose_folder_cannot_be_read_just_now_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Followed(repository(tmp_path, "a/1", "b/1"), "a")
    real = os.scandir

    def stale(path: Path) -> object:
        if Path(path) == tmp_path / "b":
            raise OSError(116, "Stale file handle")
        return real(path)

    monkeypatch.setattr(os, "scandir", stale)
    repository(tmp_path, "a/2")
    served.poll(3)
    assert served.loaded == ["a/1", "a/2", "b/1"]


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


def yaml(folder: Path, text: str) -> Path:
    path = repository(folder, "a/1") / "a" / "1"
    (path / "model.yaml").write_text(text)
    return path


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
