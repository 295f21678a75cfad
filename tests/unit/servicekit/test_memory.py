"""Item 19 of issue 11: a lack of memory is never taken for bad input."""

import pytest
from google.protobuf.message import DecodeError
from sightline.ingest.v1.ingest_service_pb2 import PredictionLogRequest

from servicekit.memory import is_lacking, is_to_blame, require
from servicekit.parsing import parse
from tests.unit.ingest_service.samples import DECODERS
from tests.unit.servicekit.scarce import outcomes

MIB = 1 << 20

_PICTURE = """
import io
import numpy as np
from PIL import Image
from vision.images import ImageLimits, open_image

noise = np.random.default_rng(1).integers(0, 255, (1500, 1500, 3), dtype=np.uint8)
buffer = io.BytesIO()
Image.fromarray(noise).save(buffer, {kind!r}, **{options})
data, limits = buffer.getvalue(), ImageLimits(max_bytes=10**9)
def prepare():
    return None
def work(_):
    return open_image(data, limits).decode()
work(None)
"""
_MESSAGE = """
from sightline.ingest.v1.ingest_service_pb2 import PredictionLogRequest
from servicekit.parsing import parse
data = b"\\x12\\x00" * 1_000_000
def prepare():
    return None
def work(_):
    parse(PredictionLogRequest.FromString, data)
"""
_GROUP = """
from tests.unit.ingest_service.samples import DECODERS, header, predictions, request
decoder = DECODERS[{name!r}]
data = request(*predictions(1, 2000), head=header()).SerializeToString()
decoder.decode([data])
def prepare():
    return [data] * 20
def work(messages):
    assert not decoder.decode(messages).refused
"""
_RUN = """
import pathlib, tempfile
import numpy as np
import onnx
from onnx import TensorProto, helper
from vision.onnx_session import OnnxSession

shape = ["n", 3, 512, 512]
graph = helper.make_graph(
    [helper.make_node("Exp", ["images"], ["one"]), helper.make_node("Sin", ["one"], ["two"]),
     helper.make_node("MatMul", ["two", "one"], ["found"])],
    "hungry",
    [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
    [helper.make_tensor_value_info("found", TensorProto.FLOAT, shape)],
)
model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
path = pathlib.Path(tempfile.mkdtemp()) / "model.onnx"
onnx.save(model, path)
session = OnnxSession.load(path)
batch = np.zeros((16, 3, 512, 512), np.float32)
session.run(batch[:1])
def prepare():
    return None
def work(_):
    session.run(batch)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {"compress_level": 1}),
        ("WEBP", {"quality": 50}),
        ("BMP", {}),
    ],
    ids=["JPEG", "progressive", "PNG", "WEBP", "BMP"],
)
def test_a_good_image_is_never_called_corrupt(kind: str, options: dict[str, object]) -> None:
    extras = [*range(0, 12 * MIB, MIB // 2), *range(12 * MIB, 64 * MIB, 4 * MIB)]
    found = outcomes(_PICTURE.format(kind=kind, options=options), extras)
    assert set(found) == {"done", "MemoryError"}, found


def test_a_good_message_is_never_called_malformed() -> None:
    found = outcomes(_MESSAGE, [0, 10 * MIB, 40 * MIB, 80 * MIB, 1000 * MIB])
    assert found == ["MemoryError"] * 4 + ["done"]


@pytest.mark.parametrize("name", DECODERS)
def test_a_good_group_is_never_refused(name: str) -> None:
    found = outcomes(_GROUP.format(name=name), [0, MIB, 4 * MIB, 8 * MIB, 16 * MIB, 1000 * MIB])
    assert found[0] == "MemoryError"
    assert found[-1] == "done"
    assert set(found) == {"done", "MemoryError"}, found


def test_a_model_that_runs_without_memory_is_not_broken() -> None:
    found = outcomes(_RUN, [0, 10 * MIB, 40 * MIB, 80 * MIB, 120 * MIB, 2000 * MIB])
    assert found[0] == "MemoryError"
    assert found[-1] == "done"
    assert set(found) == {"done", "MemoryError"}, found


@pytest.mark.parametrize(
    "text",
    [
        "Error parsing message with type 'a.B': Arena alloc failed",
        "std::bad_alloc",
        "bad allocation",
        "Failed to allocate memory for requested buffer of size 4096",
        "CUDA error: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "Insufficient memory (case 4)",
        "memory allocation of 12 bytes failed",
    ],
)
def test_libraries_words_for_a_lack_of_memory_are_known(text: str) -> None:
    assert is_to_blame(RuntimeError(text))


@pytest.mark.parametrize(
    "text",
    [
        "Error parsing message with type 'a.B': Wire format was corrupt",
        "broken data stream when reading image file",
        "Non-zero status code returned while running MatMul node",
    ],
)
def test_other_words_are_those_of_bad_input(text: str) -> None:
    assert not is_to_blame(RuntimeError(text))


def test_what_is_malformed_is_still_malformed() -> None:
    with pytest.raises(DecodeError):
        parse(PredictionLogRequest.FromString, b"\xff\xff")
    assert parse(PredictionLogRequest.FromString, b"") == PredictionLogRequest()


def test_more_than_there_can_be_is_lacking() -> None:
    assert is_lacking(1 << 62)
    assert not is_lacking(0)
    with pytest.raises(MemoryError):
        require(1 << 62)
