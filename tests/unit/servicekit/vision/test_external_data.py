"""Weights beside the ONNX file: found by their names, and safe from who writes over them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from servicekit.vision import ModelError, OnnxSession
from servicekit.vision.external_data import find_names

SIDE = 64
# In a process of its own: without the fix it ends with SIGBUS.
OVERWRITTEN = """
import sys
from pathlib import Path
import numpy as np
from servicekit.vision import OnnxSession
session = OnnxSession.load(Path(sys.argv[1]))
Path(sys.argv[2]).write_bytes(b"")
print(session.run(np.zeros((1, 1024, 1024), dtype=np.float32))[0].min())
"""


def model(path: Path, *weights: str, side: int = SIDE) -> Path:
    """Writes a model that adds 1 for each of its weights, which are in files of these names."""
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
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(made, path)
    return path


def test_weights_in_several_files(tmp_path: Path) -> None:
    path = model(tmp_path / "model.onnx", "a.data", "b_data")
    assert find_names(path.read_bytes()) == ["a.data", "b_data"]
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


@pytest.mark.parametrize("before", [-20, -1, 0, 1, 11, 12, 13, 138, 139, 140])
def test_names_across_the_windows_of_the_search(before: int) -> None:
    name = b"n" * 127
    content = bytes(1024 * 1024 - before) + b"\x0a\x08location\x12\x7f" + name + bytes(10)
    assert find_names(content) == [name.decode()]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"", []),
        (b"\x0a\x08location", []),
        (b"\x0a\x08location\x12\x80", []),
        (b"\x0a\x08location\x12\x05ab", ["ab"]),
        (b"..\x0a\x08location\x12\x02ab..\x0a\x08location\x12\x02ab", ["ab"]),
        (b"\x0a\x08location\x12\x01\xff", ["\ufffd"]),
    ],
)
def test_bytes_that_name_files_or_none(content: bytes, names: list[str]) -> None:
    assert find_names(content) == names
