"""Recognition of files by content: other formats, and what is given in place of a model. Pure.

A file is recognised by signatures at fixed places, never by its name. The signatures are those that
each format defines: PKZIP's and HDF5's from their specifications; the identifiers of FlatBuffers
(``TFL3``, ``ORTM``, ``ET12``) at byte 4; a safetensors file's length of a JSON header; git-LFS's
first line; a TensorRT plan's ``ftrt``, which ultralytics puts behind a JSON header.
"""

import re
from dataclasses import dataclass

from servicekit.media_kinds import image_kind
from vision.onnx_names import outline

HEAD_BYTES = 64 * 1024
"""Bytes from the start of a file, and from its end, that `kind_of` needs."""

_EXPORT = "export an ONNX file with `yolo export model=best.pt format=onnx`"
_AGAIN = "download or copy it again"
_NOT_BACK = f"it cannot be converted back: take the checkpoint it was made from, and {_EXPORT}"
_MAX_TEXT = 60  # characters of a text that are shown
_TAR_AT = 257
_MAX_ROOT = 1 << 16  # of a FlatBuffer's first number; the first fields of an ONNX file are above it
_MAX_HEADER = 1 << 20  # bytes of ultralytics' JSON header
_PRINTABLE = frozenset(range(0x20, 0x7F)) | {0x09, 0x0A, 0x0C, 0x0D}
_TITLE = re.compile(rb"<title[^>]*>\s*([^<]{1,200})", re.IGNORECASE)
_LFS_SIZE = re.compile(rb"^size (\d{1,20})$", re.MULTILINE)
_VARINT, _BYTES = 0, 2  # wire types
_GRAPH_DEF_FIELDS = {1, 2, 3, 4}
_GRAPH, _OPSETS = 7, 8  # fields of ModelProto
_MODEL_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_COREML_FIELDS = range(200, 4000)  # the kinds of model of Core ML's Model message
_META_GRAPH_BYTES = 1024  # no producer_name, ONNX's field of the same number, is as long


@dataclass(frozen=True, slots=True)
class FileKind:
    """The kind of a file.

    Attributes:
        name: with its article, such as "a PyTorch checkpoint".
        advice: what to do if an ONNX file is needed; starts in lower case, without a full stop.
        endings: endings of a file name by which ultralytics reads this format; empty: it is no
            model, or none that ultralytics reads from one file.
        placeholder: True for what a failed download or checkout leaves in place of any file.
    """

    name: str
    advice: str
    endings: tuple[str, ...] = ()
    placeholder: bool = False


PYTORCH = FileKind("a PyTorch checkpoint", _EXPORT, (".pt",))
_TORCHSCRIPT = FileKind("a TorchScript module", _NOT_BACK, (".torchscript",))
_ENGINE = FileKind("a TensorRT engine", _NOT_BACK, (".engine",))
_TFLITE = FileKind("a TensorFlow Lite model", _NOT_BACK, (".tflite",))
_COREML = FileKind("a Core ML model", _NOT_BACK, (".mlmodel",))
_GRAPH_DEF = FileKind("a TensorFlow graph", _NOT_BACK, (".pb",))
_SAVED_MODEL = FileKind("a TensorFlow SavedModel", _NOT_BACK)
MODEL_ENDINGS = frozenset(
    ending
    for kind in (PYTORCH, _TORCHSCRIPT, _ENGINE, _TFLITE, _COREML, _GRAPH_DEF)
    for ending in kind.endings
)
"""Endings of the names of models in one file that are no ONNX files."""
_KERAS = FileKind("a Keras model", "convert it with `tf2onnx`, or export it to ONNX again")
_OPENVINO = FileKind("the description of an OpenVINO model", _NOT_BACK)
_UNPACK = "unpack it, and give the .onnx file in it"

_AT_START = (
    (b"\x89HDF\r\n\x1a\n", FileKind("an HDF5 file, such as Keras writes", _KERAS.advice)),
    (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20", PYTORCH),  # a pickle of torch's magic number
    (b"ftrt", _ENGINE),
    (b"7767517\n", FileKind("the description of an NCNN model", _NOT_BACK)),
    (b"GGUF", FileKind("a GGUF file", _NOT_BACK)),
    (b"RKNN", FileKind("an RKNN model", _NOT_BACK)),
    (b"\x93NUMPY", FileKind("a NumPy array", _EXPORT)),
    (b"\x1f\x8b", FileKind("a gzip archive", _UNPACK)),
    *((b"BZh%d1AY&SY" % level, FileKind("a bzip2 archive", _UNPACK)) for level in range(1, 10)),
    (b"\xfd7zXZ\x00", FileKind("an xz archive", _UNPACK)),
    (b"\x28\xb5\x2f\xfd", FileKind("a zstd archive", _UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", FileKind("a 7z archive", _UNPACK)),
    (b"Rar!\x1a\x07", FileKind("a RAR archive", _UNPACK)),
    (b"%PDF-", FileKind("a PDF document", "give a model, not a document")),
    (b"\x7fELF", FileKind("a program or library", "give a model, not a program")),
)
_AT_FOUR = (
    (b"TFL3", _TFLITE),
    (b"ET12", FileKind("an ExecuTorch program", _NOT_BACK)),
)
# Names of entries, which a zip archive lists at its end; the first that matches decides.
_IN_ZIP = (
    (b"constants.pkl", _TORCHSCRIPT),
    (b"/data.pkl", PYTORCH),
    (b"model.weights.h5", _KERAS),
    (b".mlmodel", FileKind("a zip archive with a Core ML model", _NOT_BACK)),
    (b".onnx", FileKind("a zip archive with an ONNX file", _UNPACK)),
    (b".npy", FileKind("a NumPy archive", _EXPORT)),
)


def kind_of(head: bytes, tail: bytes, size: int) -> FileKind | None:
    """Return the kind of a file that is certainly no ONNX file; None for all others.

    Args:
        head: its first `HEAD_BYTES` bytes, or all of it.
        tail: its last `HEAD_BYTES` bytes, or all of it.
        size: its size in bytes.
    """
    if not size:
        return FileKind("an empty file", _AGAIN)
    if not head.strip(b"\0"):
        advice = f"its content was lost, for instance on a full disk: {_AGAIN}"
        return FileKind(f"a file of zeros in its first {len(head)} bytes", advice)
    if signed := _by_signature(head):
        return signed
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _in_zip(head, tail, size)
    if head[_TAR_AT:].startswith(b"ustar"):
        return FileKind("a tar archive", _UNPACK)
    return _pickle(head) or _with_json(head, size) or _text(head, size)


def _by_signature(head: bytes) -> FileKind | None:
    for signature, kind in _AT_START:
        if head.startswith(signature):
            return kind
    if int.from_bytes(head[:4], "little") < _MAX_ROOT:
        for signature, kind in _AT_FOUR:
            if head[4:].startswith(signature):
                return kind
    if image := image_kind(head):
        article = "an" if image == "AVIF" else "a"
        return FileKind(f"{article} {image} image", "give a model, not an image")
    return None


def kind_of_protobuf(content: bytes) -> FileKind | None:
    """Return what a file is that ONNX Runtime refuses; None if it has all parts of an ONNX file.

    Args:
        content: the whole file, of which `kind_of` says nothing.
    """
    try:
        fields, missing = outline(content)
    except ValueError:
        return _unknown(content)
    numbers = {number for number, _, _ in fields}
    if fields and all(_MODEL_FIELDS.get(number) == wire for number, wire, _ in fields):
        return _part_of_onnx(fields, missing, len(content))
    first = fields[0][:2] if fields else None
    if first == (1, _BYTES) and numbers <= _GRAPH_DEF_FIELDS and not missing:
        return _GRAPH_DEF
    if first == (1, _VARINT) and not numbers.isdisjoint(_COREML_FIELDS):
        return _COREML
    return _unknown(content)


def _unknown(content: bytes) -> FileKind:
    return FileKind(f"an unknown file that starts with the bytes {content[:8].hex(' ')}", _EXPORT)


def _part_of_onnx(fields: list[tuple[int, int, int]], missing: int, size: int) -> FileKind | None:
    """Return what a file is whose fields could be those of an ONNX file; None if all are there."""
    numbers = {number for number, _, _ in fields}
    if missing:
        name = f"an ONNX file that is cut off: it has {size} of at least {size + missing} bytes"
        return FileKind(name, _AGAIN)
    if _GRAPH not in numbers:
        # A SavedModel is a version and graphs; ONNX's field of the graphs' number is a short text.
        if any(number == 2 and length > _META_GRAPH_BYTES for number, _, length in fields):
            return _SAVED_MODEL
        return FileKind("an ONNX file without a network, which may be cut off", _AGAIN)
    if _OPSETS not in numbers:
        return FileKind("an ONNX file without its operator sets, which may be cut off", _AGAIN)
    return None


def _in_zip(head: bytes, tail: bytes, size: int) -> FileKind:
    names = head + tail
    kind = next((kind for name, kind in _IN_ZIP if name in names), None)
    if b"PK\x05\x06" not in tail:
        name = kind.name if kind else "a zip archive"
        return FileKind(f"{name} that is cut off at {size} bytes", _AGAIN)
    return kind or FileKind("a zip archive", _UNPACK)


def _pickle(head: bytes) -> FileKind | None:
    protocol = head[1:2]
    if head[:1] == b"\x80" and protocol in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return FileKind("a Python pickle", _EXPORT)
    return None


def _with_json(head: bytes, size: int) -> FileKind | None:
    """Recognise the formats that start with the length of a JSON header."""
    length = int.from_bytes(head[:4], "little")
    if head[4:6] == b'{"' and length < min(_MAX_HEADER, size):
        return _ENGINE
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < size:
        return FileKind("a safetensors file", f"it has weights and no network: {_EXPORT}")
    return None


def _text(head: bytes, size: int) -> FileKind | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    lower = start[:1024].lower()
    if start.startswith((b"version https://git-lfs", b"version https://hawser.")):
        found = _LFS_SIZE.search(start)
        of = f" to {int(found[1])} bytes" if found else ""
        name = f"a git-LFS pointer{of}"
        return FileKind(name, "get the file itself with `git lfs pull`", placeholder=True)
    if lower.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        title = _TITLE.search(start)
        name = f"a web page with the title {_shown(title[1])}" if title else "a web page"
        advice = f"the download failed or needs a sign-in: {_AGAIN}"
        return FileKind(name, advice, placeholder=True)
    if lower.startswith((b"<?xml", b"<net")) and b"<net" in lower and b"<layers" in start:
        return _OPENVINO
    if all(byte in _PRINTABLE for byte in head[:1024]) and start:
        form = "XML" if lower.startswith(b"<?xml") else "JSON" if start[:1] in b"{[" else "text"
        return FileKind(f"{form} of {size} bytes that starts with {_shown(start)}", _AGAIN)
    return None


def _shown(text: bytes) -> str:
    """Return the first line of a text in quotes, without control characters."""
    (line, *_) = text.strip().splitlines() or [b""]
    return repr(line.decode(errors="replace").strip()[:_MAX_TEXT])
