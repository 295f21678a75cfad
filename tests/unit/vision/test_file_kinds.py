"""Kinds of files that are given as a model, and the advice for each."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.vision.models import save_detector
from tests.unit.vision.test_external_data import field, model, varint
from vision import ModelError, OnnxSession
from vision.file_kinds import HEAD_BYTES, FileKind, kind_of, kind_of_protobuf
from vision.model_files import check_format

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
REAL = Path(os.environ.get("SIGHTLINE_TEST_MODELS", "")) / "yolov8n_int8.onnx"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 12345678\n".format("ab" * 32)
PAGE = "\n<!DOCTYPE html>\n<html><head><title>\nSign in &amp; continue</title></head></html>"
S3 = "<?xml version='1.0'?>\n<Error><Code>AccessDenied</Code></Error>"
OPENVINO = '<?xml version="1.0"?>\n<net name="best" version="11">\n<layers></layers></net>'
PLAN = b"ftrt" + bytes(20) + b"\xf0plan"
COREML = b"\x08\x04" + field(2, b"\x0a\x03abc") + varint(502 << 3 | 2) + varint(3) + b"abc"


def tensors() -> dict[str, torch.Tensor]:
    return {"weight": torch.arange(50_000, dtype=torch.float32)}


def checkpoint(*, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors(), buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def torchscript() -> bytes:
    class Doubling(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(Doubling(), torch.ones(1)), buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return buffer.getvalue()


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("best.onnx"))
    return buffer.getvalue()


def array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    return buffer.getvalue()


def photograph(kind: str) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 8)).save(buffer, kind)
    return buffer.getvalue()


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


def engine() -> bytes:
    header = json.dumps({"stride": 32, "task": "detect"}).encode()
    return len(header).to_bytes(4, "little") + header + PLAN


FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "an empty file"),
    "zeros": (lambda: bytes(100_000), "a file of zeros in its first 65536 bytes"),
    "checkpoint": (checkpoint, "a PyTorch checkpoint"),
    "old checkpoint": (lambda: checkpoint(legacy=True), "a PyTorch checkpoint"),
    "half a checkpoint": (lambda: checkpoint()[:90_000], "a PyTorch checkpoint that is cut off"),
    "torchscript": (torchscript, "a TorchScript module"),
    "pickle": (lambda: pickle.dumps({"a": 1}), "a Python pickle"),
    "plan": (lambda: PLAN, "a TensorRT engine"),
    "engine": (engine, "a TensorRT engine"),
    "tflite": (lambda: b"\x1c\0\0\0TFL3" + bytes(50), "a TensorFlow Lite model"),
    "executorch": (lambda: b"\x30\0\0\0ET12" + bytes(50), "an ExecuTorch program"),
    "openvino": (OPENVINO.encode, "the description of an OpenVINO model"),
    "coreml": (lambda: COREML, "a Core ML model"),
    "coreml, zipped": (lambda: zipped("a.mlpackage/Data/m.mlmodel"), "a zip archive with a Core"),
    "safetensors": (safetensors, "a safetensors file"),
    "h5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file, such as Keras writes"),
    "keras": (lambda: zipped("config.json", "model.weights.h5"), "a Keras model"),
    "saved model": (lambda: b"\x08\x01" + field(2, b"x" * 2000), "a TensorFlow SavedModel"),
    "graph": (lambda: field(1, b"node") * 3 + field(4, b""), "a TensorFlow graph"),
    "ncnn": (lambda: b"7767517\n3 3\n", "the description of an NCNN model"),
    "npy": (array, "a NumPy array"),
    "npz": (lambda: zipped("w.npy"), "a NumPy archive"),
    "zip": (lambda: zipped("readme.txt"), "a zip archive"),
    "zip of a model": (lambda: zipped("best.onnx"), "a zip archive with an ONNX file"),
    "tar": (tar, "a tar archive"),
    "gzip": (lambda: gzip.compress(b"content"), "a gzip archive"),
    "bzip2": (lambda: bz2.compress(b"content"), "a bzip2 archive"),
    "xz": (lambda: lzma.compress(b"content"), "an xz archive"),
    "jpeg": (lambda: photograph("JPEG"), "a JPEG image"),
    "png": (lambda: photograph("PNG"), "a PNG image"),
    "webp": (lambda: photograph("WEBP"), "a WEBP image"),
    "tiff": (lambda: photograph("TIFF"), "a TIFF image"),
    "lfs": (LFS.encode, "a git-LFS pointer to 12345678 bytes"),
    "page": (PAGE.encode, "a web page with the title 'Sign in &amp; continue'"),
    "page without title": (lambda: b"\xef\xbb\xbf<html lang=en>", "a web page"),
    "s3": (S3.encode, "XML of 62 bytes that starts with \"<?xml version='1.0'?>\""),
    "json": (lambda: b'{"message": "Not Found"}', "JSON of 24 bytes that starts with '{\"mess"),
    "yaml": (lambda: b"nc: 80\nscales:\n", "text of 15 bytes that starts with 'nc: 80'"),
    "junk": (lambda: b"\xde\xad\xbe\xef" * 9, "an unknown file that starts with the bytes de ad"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        OnnxSession.load(path)
    assert caught.value.reason == "MODEL_FILE_INVALID"
    return caught.value.message


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_onnx_file_is_named(path: Path, name: str) -> None:
    make, kind = FILES[name]
    path.write_bytes(make())
    message = refusal(path)
    assert message.startswith(f"{path} cannot be loaded as a model: it is {kind}")
    assert ", not an ONNX file. " in message
    assert "rotobuf" not in message


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("lfs", "Get the file itself with `git lfs pull`."),
        ("page", "The download failed or needs a sign-in: download or copy it again."),
        ("checkpoint", "Export an ONNX file with `yolo export model=best.pt format=onnx`."),
        ("checkpoint", "`--detector ultralytics` runs it if its name ends in .pt."),
        ("engine", "It cannot be converted back"),
        ("zip of a model", "Unpack it, and give the .onnx file in it."),
        ("empty", "Download or copy it again."),
    ],
)
def test_the_message_says_what_to_do(path: Path, name: str, advice: str) -> None:
    path.write_bytes(FILES[name][0]())
    assert advice in refusal(path)


def test_an_onnx_file_that_is_cut_off_says_how_much_is_missing(path: Path) -> None:
    whole = save_detector(path).read_bytes()
    for size in range(2, len(whole) - 100, 37):
        path.write_bytes(whole[:size])
        assert "cut off" in refusal(path), size
    path.write_bytes(whole[:300])
    assert "it has 300 of at least" in refusal(path)


@pytest.mark.skipif(not REAL.is_file(), reason="SIGHTLINE_TEST_MODELS holds no yolov8n_int8.onnx")
def test_a_real_model_is_whole_or_cut_off(path: Path) -> None:
    whole = REAL.read_bytes()
    assert kind_of(whole[:HEAD_BYTES], whole[-HEAD_BYTES:], len(whole)) is None
    assert kind_of_protobuf(whole) is None
    path.write_bytes(whole[: len(whole) // 2])
    assert f"it has {len(whole) // 2} of at least " in refusal(path)


def test_what_the_runtime_says_of_a_whole_file_is_passed_on(path: Path) -> None:
    whole = save_detector(path).read_bytes()
    path.write_bytes(b"\x08\x7f" + whole[2:])  # a version of the format from the future
    message = refusal(path)
    assert "IR version" in message
    assert "Export it again" in message


@given(st.binary(max_size=200), st.sampled_from([b"", b"PK\3\4", b"\x08\x0a", b"{", b"ftrt", b"<"]))
def test_any_bytes_have_a_kind_or_none(content: bytes, start: bytes) -> None:
    content = start + content
    kind = kind_of(content, content, len(content))
    assert kind is None or isinstance(kind, FileKind)
    later = kind_of_protobuf(content)
    assert later is None or later.name


def test_a_text_s_control_characters_are_not_shown(path: Path) -> None:
    path.write_bytes(b"<html><title>\x1b[31mred\x07</title>")
    message = refusal(path)
    assert "\\x1b[31mred" in message
    assert "\x1b" not in message


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("best.xml", "a folder with an OpenVINO model"),
        ("saved_model.pb", "a folder with a TensorFlow SavedModel"),
        ("readme", "a folder"),
    ],
)
def test_a_folder_is_named(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_text("content")
    message = refusal(tmp_path)
    assert f"it is {kind}. Give an .onnx file" in message
    save_detector(tmp_path / "best.onnx")
    assert "Give an .onnx file: the folder has best.onnx." in refusal(tmp_path)


def test_a_missing_file_s_folder_is_looked_at(path: Path) -> None:
    (path.parent / "best.pt").write_bytes(checkpoint())
    save_detector(path.parent / "last.onnx")
    (path.parent / "notes.pt").write_text("no checkpoint")
    with pytest.raises(ModelError) as caught:
        OnnxSession.load(path)
    assert caught.value.reason == "MODEL_FILE_MISSING"
    assert caught.value.message.endswith(
        "; its folder has best.pt (a PyTorch checkpoint), last.onnx"
    )


def test_the_folder_of_another_export_is_named(path: Path) -> None:
    (path.parent / "best.xml").write_text(OPENVINO)
    with pytest.raises(ModelError, match=r"; its folder is a folder with an OpenVINO model$"):
        OnnxSession.load(path)


def test_a_file_too_large_for_onnx_is_refused_without_reading_it(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"\x08\x0a\x3a")
        file.truncate(2**31)
    assert f"it has {2**31} bytes, and an ONNX file at most {2**31 - 1}" in refusal(path)


@pytest.mark.parametrize("content", [LFS, PAGE])
def test_external_data_may_be_missing_in_the_same_way(path: Path, content: str) -> None:
    model(path, "a.data")
    (path.parent / "a.data").write_text(content)
    assert f"its external data 'a.data' is {kind_name(content)}" in refusal(path)


def kind_name(content: str) -> str:
    kind = kind_of(content.encode(), b"", len(content))
    assert kind is not None
    return kind.name


@pytest.mark.parametrize(
    ("file", "made", "says"),
    [
        ("best.pt", "checkpoint", ""),
        ("best.PT", "old checkpoint", ""),
        ("best.torchscript", "torchscript", ""),
        ("best.engine", "engine", ""),
        ("best_edgetpu.tflite", "tflite", ""),
        ("best.engine", "junk", ""),  # a format of another version may have another signature
        ("best.pt", "torchscript", "a TorchScript module. Rename it: its name must end in .torchs"),
        ("best.pt", "junk", "not a PyTorch checkpoint"),
        ("best.pt", "half a checkpoint", "cut off"),
        ("best.pt", "page", "a web page with the title 'Sign in &amp; continue', not a model that"),
        ("best.onnx", "checkpoint", "a PyTorch checkpoint, not an ONNX file. "),
        ("best.engine", "lfs", "a git-LFS pointer"),
        ("yolov8n.yaml", "yaml", "text of 15 bytes that starts with 'nc: 80', not a model that"),
    ],
)
def test_ultralytics_gets_files_of_the_format_that_they_are_named_by(
    tmp_path: Path, file: str, made: str, says: str
) -> None:
    path = tmp_path / file
    path.write_bytes(FILES[made][0]())
    if not says:
        check_format(path)
        return
    with pytest.raises(ModelError) as caught:
        check_format(path)
    assert says in caught.value.message
