"""Weights beside the ONNX file: found by their names, and safe from who writes over them."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from vision import ModelError, OnnxSession
from vision.errors import unreadable
from vision.onnx_names import MESSAGES, find_names

SIDE = 64
# In a process of its own: without the fix it ends with SIGBUS.
OVERWRITTEN = """
import sys
from pathlib import Path
import numpy as np
from vision import OnnxSession
session = OnnxSession.load(Path(sys.argv[1]))
Path(sys.argv[2]).write_bytes(b"")
print(session.run(np.zeros((1, 1024, 1024), dtype=np.float32))[0].min())
"""


def model(path: Path, *weights: str, side: int = SIDE) -> Path:
    """Write a model that adds 1 for each of its weights, which are in files of these names."""
    nodes, tensors, last = [], [], "x"
    for number, name in enumerate(weights):
        tensor = numpy_helper.from_array(np.ones((1, side, side), dtype=np.float32), f"w{number}")
        external_data_helper.set_external_data(tensor, location=name)
        tensors.append(tensor)
        nodes.append(helper.make_node("Add", [last, f"w{number}"], [f"y{number}"]))
        last = f"y{number}"
    shape = ["batch", side, side]
    graph = helper.make_graph(
        nodes,
        "adds",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, shape)],
        tensors,
    )
    created = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(created, path)
    return path


def test_weights_in_several_files(tmp_path: Path) -> None:
    path = model(tmp_path / "model.onnx", "a.data", "b_data")
    assert find_names(path.read_bytes()) == [b"a.data", b"b_data"]
    session = OnnxSession.load(path)
    zeros = np.zeros((1, SIDE, SIDE), dtype=np.float32)
    np.testing.assert_array_equal(session.run(zeros)[0], zeros + 2)


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    path = model(tmp_path / "model.onnx", "a.data")
    (tmp_path / "a.data").unlink()
    with pytest.raises(ModelError, match=r"a\.data") as caught:
        OnnxSession.load(path)
    assert caught.value.reason == "MODEL_FILE_INVALID"


def test_weights_that_are_cut_off(tmp_path: Path) -> None:
    path = model(tmp_path / "model.onnx", "a.data")
    (tmp_path / "a.data").write_bytes(bytes(100))
    with pytest.raises(ModelError) as caught:
        OnnxSession.load(path)
    assert caught.value.reason == "MODEL_FILE_INVALID"


def test_weights_may_be_written_over_while_the_model_runs(tmp_path: Path) -> None:
    path = model(tmp_path / "model.onnx", "a.data", side=1024)
    command = [sys.executable, "-c", OVERWRITTEN, str(path), str(tmp_path / "a.data")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "1.0"), done.stderr


def initializers(name: str) -> onnx.ModelProto:
    """Return a model whose weights are in a file of this name, which is not written."""
    tensor = numpy_helper.from_array(np.ones((1, SIDE, SIDE), dtype=np.float32), "w")
    return adds(outside(tensor, name))


def outside(tensor: TensorProto, name: str) -> TensorProto:
    external_data_helper.set_external_data(tensor, location=name)
    tensor.ClearField("raw_data")
    return tensor


def adds(tensor: TensorProto, *more: onnx.NodeProto) -> onnx.ModelProto:
    """Return a model that adds `w`; `more` nodes may be what they like."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [*more, helper.make_node("Add", ["x", "w"], ["y"])],
        "adds",
        [info("x", TensorProto.FLOAT, ["batch", SIDE, SIDE])],
        [info("y", TensorProto.FLOAT, ["batch", SIDE, SIDE])],
        [tensor],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def plain_weights() -> TensorProto:
    return numpy_helper.from_array(np.ones((1, SIDE, SIDE), dtype=np.float32), "w")


def refused(path: Path) -> str:
    """Return the message with which a model is refused."""
    with pytest.raises(ModelError) as caught:
        OnnxSession.load(path)
    assert caught.value.reason == "MODEL_FILE_INVALID"
    return caught.value.message


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Return a file beside the model's folder, with weights that would be good."""
    (tmp_path / "model").mkdir()
    created = tmp_path / "secret.bin"
    created.write_bytes(np.ones((1, SIDE, SIDE), dtype=np.float32).tobytes())
    return created


@pytest.mark.parametrize(
    "name",
    [
        "../secret.bin",
        "below/../../secret.bin",
        "..",
        "./../secret.bin",
        "ABSOLUTE",
        "//secret.bin",
        "..\\secret.bin",
        "C:\\secret.bin",
        "C:secret.bin",
        "file://secret.bin",
        "",
        ".",
        "below/",
        "a\0b",
        "a\n",
        "*/_ORT_MEM_ADDR_/*",
        "n" * 1025,
    ],
)
def test_a_name_that_leaves_the_folder_is_refused(secret: Path, name: str) -> None:
    path = secret.parent / "model" / "model.onnx"
    (path.parent / "below").mkdir()
    created = initializers(str(secret) if name == "ABSOLUTE" else name)
    path.write_bytes(created.SerializeToString())
    assert "in the model's own folder" in refused(path)


@pytest.mark.parametrize("where", ["file", "folder", "dangling"])
def test_a_link_is_refused(secret: Path, where: str) -> None:
    folder = secret.parent / "model"
    name = "weights.bin" if where != "folder" else "below/secret.bin"
    if where == "folder":
        (folder / "below").symlink_to(secret.parent)
    else:
        target = secret if where == "file" else secret.with_name("nothing")
        (folder / "weights.bin").symlink_to(target)
    (folder / "model.onnx").write_bytes(initializers(name).SerializeToString())
    assert "is a link or not a regular file" in refused(folder / "model.onnx")


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder"])
def test_what_is_no_plain_file_is_refused(tmp_path: Path, kind: str) -> None:
    weights = tmp_path / "weights.bin"
    with socket.socket(socket.AF_UNIX) as created:
        if kind == "pipe":
            os.mkfifo(weights)
        elif kind == "folder":
            weights.mkdir()
        else:
            created.bind(str(weights))
        (tmp_path / "model.onnx").write_bytes(initializers("weights.bin").SerializeToString())
        assert "not a regular file" in refused(tmp_path / "model.onnx")


INFO = helper.make_tensor_value_info("c", TensorProto.FLOAT, [3])


def within_nodes(tensor: TensorProto) -> dict[str, onnx.NodeProto]:
    """Return nodes that hold a tensor, each in its own way."""
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    branch = helper.make_graph([constant], "b", [], [INFO])
    deep = branch
    for _ in range(20):
        node = helper.make_node("Loop", ["m", "k"], ["c"], body=deep)
        deep = helper.make_graph([node], "b", [], [INFO])
    initialized = helper.make_graph([], "b", [], [INFO], [tensor])
    tensors, graphs = onnx.NodeProto(op_type="X"), onnx.NodeProto(op_type="X")
    tensors.attribute.add(name="a", type=9).tensors.append(tensor)
    graphs.attribute.add(name="a", type=10).graphs.append(branch)
    return {
        "constant": constant,
        "branch": helper.make_node("If", ["k"], ["i"], then_branch=branch, else_branch=branch),
        "deep": helper.make_node("Loop", ["m", "k"], ["l"], body=deep),
        "branch's initializer": helper.make_node("Loop", ["m", "k"], ["l"], body=initialized),
        "tensors": tensors,
        "graphs": graphs,
    }


def within_models(tensor: TensorProto) -> dict[str, onnx.ModelProto]:
    """Return models that hold a tensor outside of their nodes, each in its own way."""
    created = {
        how: adds(plain_weights())
        for how in ("sparse", "indices", "function", "default of a function", "training")
    }
    created["sparse"].graph.sparse_initializer.add().values.CopyFrom(tensor)
    created["indices"].graph.sparse_initializer.add().indices.CopyFrom(tensor)
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    created["function"].functions.append(helper.make_function("d", "F", [], ["c"], [constant], []))
    function = helper.make_function("d", "F", [], ["c"], [], [])
    function.attribute_proto.add(name="a", type=4).t.CopyFrom(tensor)
    created["default of a function"].functions.append(function)
    created["training"].training_info.add().algorithm.initializer.append(tensor)
    return created


OUTSIDE = outside(numpy_helper.from_array(np.ones(3, dtype=np.float32), "t"), "../secret.bin")
NESTED = {how: adds(plain_weights(), node) for how, node in within_nodes(OUTSIDE).items()}
NESTED |= within_models(OUTSIDE)


@pytest.mark.parametrize("how", NESTED)
def test_names_are_found_wherever_a_tensor_can_be(tmp_path: Path, how: str) -> None:
    content = NESTED[how].SerializeToString()
    assert find_names(content) == [b"../secret.bin"]
    (tmp_path / "model.onnx").write_bytes(content)
    assert "in the model's own folder" in refused(tmp_path / "model.onnx")


def test_every_message_on_the_way_to_a_tensor_is_known() -> None:
    """Hold the table of fields against the messages of the onnx package."""
    known = {kind: dict(fields) for kind, fields in MESSAGES.items()}
    waiting, seen = [onnx.ModelProto.DESCRIPTOR], set()
    reach = {"StringStringEntryProto"}
    messages: dict[str, dict[int, str]] = {}
    while waiting:
        message = waiting.pop()
        if message.name in seen:
            continue
        seen.add(message.name)
        inner = [field for field in message.fields if field.message_type is not None]
        messages[message.name] = {field.number: field.message_type.name for field in inner}
        waiting += [field.message_type for field in inner]
    reach = {"TensorProto"}
    while more := {k for k, v in messages.items() if reach & set(v.values())} - reach:
        reach |= more
    for kind in reach - {"TensorProto"}:
        assert known[kind] == {n: k for n, k in messages[kind].items() if k in reach}, kind
    assert known["TensorProto"] == {13: "StringStringEntryProto"}
    assert onnx.TensorProto.DESCRIPTOR.fields_by_name["external_data"].number == 13


def field(number: int, content: bytes) -> bytes:
    """Return a field of a message as it is on the wire."""
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def varint(number: int, width: int = 0) -> bytes:
    created = b""
    while number > 127 or len(created) + 1 < width:
        created += bytes([number & 127 | 128])
        number >>= 7
    return created + bytes([number])


def in_model(entry: bytes) -> bytes:
    return field(7, field(5, field(13, entry)))


LOCATION, NAME = field(1, b"location"), field(2, b"../x")


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        (LOCATION + NAME, [b"../x"]),
        (NAME + LOCATION, [b"../x"]),  # any order is right
        (LOCATION + field(2, b"good") + NAME, [b"../x", b"good"]),  # the last one counts
        (field(1, b"offset") + LOCATION + NAME, [b"../x"]),
        (b"\x8a\x80\x00" + b"\x88\x80\x00location" + NAME, [b"../x"]),  # longer than need be
        (b"\x8a\x80\x80\x80\x70\x08location" + NAME, [b"../x"]),  # bits that are dropped
        (LOCATION + field(2, b"n" * 1000), [b"n" * 1000]),
        (LOCATION, [b""]),
        (field(1, b"offset") + field(2, b"location"), []),
    ],
)
def test_names_are_found_in_any_spelling(entry: bytes, names: list[bytes]) -> None:
    assert find_names(in_model(entry)) == names
    split = field(7, field(1, field(5, field(5, field(13, entry)) + field(5, b"\x70\x01"))))
    assert find_names(split) == names  # protobuf merges the two halves of such a tensor


@pytest.mark.parametrize("content", [b"location", b"\x0a\xfflocation", in_model(b"\x0blocation")])
def test_bytes_that_are_no_model_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    assert re.search("not an ONNX file|may be cut off", refused(tmp_path / "model.onnx"))


@pytest.mark.parametrize("before", range(-12, 13))
def test_names_across_the_windows_of_the_search(before: int) -> None:
    fill = field(6, bytes(1024 * 1024 - before - 40))
    assert find_names(fill + in_model(LOCATION + NAME)) == [b"../x"]


def test_compiled_code_of_a_provider_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("EPContext", [], [], domain="com.microsoft", ep_cache_context="../x")
    (tmp_path / "model.onnx").write_bytes(adds(plain_weights(), node).SerializeToString())
    assert "EPContext" in refused(tmp_path / "model.onnx")


@pytest.mark.parametrize("name", ["deeper/weights.bin", "./weights.bin", "ü ::w", ".a"])
def test_names_in_the_folder_and_below_are_fine(tmp_path: Path, name: str) -> None:
    (tmp_path / "deeper").mkdir()
    path = model(tmp_path / "model.onnx", name)
    zeros = np.zeros((1, SIDE, SIDE), dtype=np.float32)
    np.testing.assert_array_equal(OnnxSession.load(path).run(zeros)[0], zeros + 1)


@pytest.mark.parametrize("target", ["/dev/zero", "pipe"])
def test_a_model_that_is_no_plain_file_is_refused(tmp_path: Path, target: str) -> None:
    if target == "pipe":
        os.mkfifo(tmp_path / "model.onnx")
    else:
        (tmp_path / "model.onnx").symlink_to(target)
    with pytest.raises(ModelError, match="not a regular file"):
        OnnxSession.load(tmp_path / "model.onnx")


def test_a_model_may_be_reached_by_links_that_its_operator_made(tmp_path: Path) -> None:
    (tmp_path / "v7").mkdir()
    model(tmp_path / "v7" / "model.onnx", "weights.bin")
    (tmp_path / "current").symlink_to("v7")
    OnnxSession.load(tmp_path / "current" / "model.onnx")


def test_the_file_that_cannot_be_read_is_named_with_its_model() -> None:
    error = unreadable(Path("a.onnx"), PermissionError(13, "Permission denied", "weights.bin"))
    assert error.reason == "MODEL_FILE_MISSING"
    assert error.message.startswith("the model a.onnx cannot be read: weights.bin: Permission de")
