"""A repository whose models change while it serves."""

import gc
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import external_data_helper

from inference_service.models.engine import Model
from tests.unit.inference_service.repositories import Followed, broken, load, repository
from tests.unit.inference_service.tiny_onnx import colour_model
from vision import OnnxYolo

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
