"""The version of a model: equal for equal content, different if any part of it differs."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from tests.unit.vision.models import save_detector
from tests.unit.vision.test_external_data import SIDE, model
from vision import ModelError, OnnxSession
from vision.external_data import onnx_sha256
from vision.model_identity import model_sha256

ZEROS = np.zeros((1, SIDE, SIDE), dtype=np.float32)


def trained(folder: Path, value: float, *names: str) -> Path:
    """Write a model whose ONNX file is always the same, and whose weights are all `value`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = model(folder / "model.onnx", *(names or ("a.data",)))
    for name in names or ("a.data",):
        np.full((1, SIDE, SIDE), value, dtype=np.float32).tofile(folder / name)
    return path


def test_a_model_in_one_file_has_the_digest_of_the_file(tmp_path: Path) -> None:
    path = save_detector(tmp_path / "model.onnx")
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert OnnxSession.load(path).sha256 == model_sha256(path) == expected


def test_two_trainings_of_one_network_differ(tmp_path: Path) -> None:
    first, second = trained(tmp_path / "1", 1), trained(tmp_path / "2", 2)
    assert first.read_bytes() == second.read_bytes()
    loaded = [OnnxSession.load(path) for path in (first, second)]
    assert [session.run(ZEROS)[0].max() for session in loaded] == [1, 2]
    assert loaded[0].sha256 != loaded[1].sha256
    assert [model_sha256(path) for path in (first, second)] == [one.sha256 for one in loaded]
    again = trained(tmp_path / "elsewhere", 1)
    assert model_sha256(again) == loaded[0].sha256
    assert hashlib.sha256(first.read_bytes()).hexdigest() != loaded[0].sha256


def test_every_file_with_weights_counts_and_so_does_its_name(tmp_path: Path) -> None:
    path = trained(tmp_path, 1, "a.data", "b.data")
    before = OnnxSession.load(path).sha256
    np.full((1, SIDE, SIDE), 2, dtype=np.float32).tofile(tmp_path / "b.data")
    after = OnnxSession.load(path).sha256
    (tmp_path / "a.data").rename(tmp_path / "c")
    (tmp_path / "b.data").rename(tmp_path / "a.data")
    (tmp_path / "c").rename(tmp_path / "b.data")
    assert len({before, after, OnnxSession.load(path).sha256}) == 3


def test_what_is_loaded_is_what_was_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the file between the two, as a deployment does that meets a start."""
    path, other = trained(tmp_path / "1", 1), save_detector(tmp_path / "other.onnx")
    expected = model_sha256(path)
    from onnxruntime import SessionOptions

    add = SessionOptions.add_external_initializers_from_files_in_memory

    def replacing(options: SessionOptions, *arguments: object) -> None:
        add(options, *arguments)
        other.replace(path)

    monkeypatch.setattr(SessionOptions, "add_external_initializers_from_files_in_memory", replacing)
    session = OnnxSession.load(path)
    assert session.sha256 == expected != model_sha256(path)
    assert session.run(ZEROS)[0].max() == 1


def test_external_data_is_looked_for_in_the_model_s_folder_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trained(tmp_path / "1", 1)
    (tmp_path / "1" / "a.data").rename(tmp_path / "a.data")
    monkeypatch.chdir(tmp_path)
    for load in (OnnxSession.load, onnx_sha256):
        with pytest.raises(ModelError, match=r"external data 'a\.data' is missing\. Copy it into"):
            load(path)


def test_a_session_does_not_keep_the_file(tmp_path: Path) -> None:
    session = OnnxSession.load(save_detector(tmp_path / "model.onnx"))
    assert session._run_feed.func.__self__._model_bytes is None  # type: ignore[attr-defined]


def folder_of(path: Path) -> Path:
    (path / "deeper").mkdir(parents=True)
    (path / "best.xml").write_text("<net/>")
    (path / "best.bin").write_bytes(b"weights")
    (path / "deeper" / "more.bin").write_bytes(b"more")
    return path


@pytest.mark.parametrize("change", ["content", "below", "name", "new", "split"])
def test_every_file_of_a_folder_counts(tmp_path: Path, change: str) -> None:
    folder = folder_of(tmp_path / "best_openvino_model")
    before = model_sha256(folder)
    if change == "content":
        (folder / "best.bin").write_bytes(b"Weights")
    elif change == "below":
        (folder / "deeper" / "more.bin").write_bytes(b"less")
    elif change == "name":
        (folder / "best.bin").rename(folder / "rest.bin")
    elif change == "new":
        (folder / "metadata.yaml").write_bytes(b"")
    else:
        (folder / "best.bin").write_bytes(b"weight")
        (folder / "c").write_bytes(b"s")
    assert model_sha256(folder) != before


def test_a_copy_of_a_folder_is_the_same(tmp_path: Path) -> None:
    folder, copy = folder_of(tmp_path / "a_ncnn_model"), folder_of(tmp_path / "b_ncnn_model")
    (copy / ".DS_Store").write_bytes(b"of the Finder")
    (copy / "best.bin").rename(tmp_path / "weights")
    (copy / "best.bin").symlink_to(tmp_path / "weights")
    os.utime(copy / "best.xml", (1, 1))
    assert model_sha256(copy) == model_sha256(folder)


def test_an_onnx_file_in_a_folder_brings_its_external_data(tmp_path: Path) -> None:
    folders = [trained(tmp_path / f"{value}_model", value, ".w").parent for value in (1, 2)]
    assert model_sha256(folders[0]) != model_sha256(folders[1])
    (folders[0] / ".w").unlink()
    with pytest.raises(ModelError, match=r"external data '\.w' is missing"):
        model_sha256(folders[0])


def test_what_is_no_model_has_no_digest(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="it has no files"):
        model_sha256(tmp_path / "empty")
    (tmp_path / "empty" / "loop").symlink_to(tmp_path / "empty")
    with pytest.raises(ModelError) as caught:
        model_sha256(tmp_path / "empty")
    assert caught.value.reason == "MODEL_FILE_MISSING"
    with pytest.raises(ModelError, match="No such file"):
        model_sha256(tmp_path / "none.pt")
