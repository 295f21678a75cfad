"""Tiny ONNX detectors that really fail in ONNX Runtime, on some pictures or from some run on."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIDE = 64
FAILS_FOR = 6
"""Runs of a model that has died that are sure to fail."""
_NAMES = {0: "red", 1: "green", 2: "blue"}


def mortal_model(path: Path, runs: int) -> Path:
    """Write a detector that sees nothing in its first runs, and fails in all that follow.

    ONNX Runtime keeps no state for a model but that of its random numbers, so the model draws one
    in each run, and looks beyond the end of a table where it is high. The seed is one with which
    that comes true.

    Args:
        path: of the `.onnx` file; its folder is made.
        runs: that succeed, the one of the warm-up included; at least 1.
    """
    drawn = helper.make_node("RandomUniform", [], ["drawn"], shape=[1], seed=_seed(runs))
    return _write(path, [drawn])


def choosy_model(path: Path) -> Path:
    """Write a detector that sees nothing, and fails on every picture that is not black."""
    return _write(path, [helper.make_node("ReduceMax", ["images"], ["drawn"], keepdims=0)])


def _write(path: Path, draw: list[onnx.NodeProto]) -> Path:
    constants = {
        "two": np.array([2], dtype=np.float32),
        "table": np.zeros((1, 7, 1), dtype=np.float32),
        "flat": np.array([1, 7, 1], dtype=np.int64),
        "one": np.array([1], dtype=np.int64),
    }
    nodes = [
        *draw,
        helper.make_node("Reshape", ["drawn", "one"], ["number"]),
        helper.make_node("Mul", ["number", "two"], ["doubled"]),
        helper.make_node("Floor", ["doubled"], ["floor"]),
        helper.make_node("Cast", ["floor"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["found"], axis=0),
        helper.make_node("Reshape", ["found", "flat"], ["output0"]),
    ]
    graph = helper.make_graph(
        nodes,
        "failing",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 7, 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    _save(path, graph, {"task": "detect", "names": str(_NAMES)})
    return path


def _save(path: Path, graph: onnx.GraphProto, metadata: dict[str, str]) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    helper.set_model_props(model, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def _seed(runs: int) -> float:
    """Return a seed whose first numbers are low, and the following ones high."""
    for seed in range(1, 1_000_000):
        drawn = _drawn(float(seed), runs + FAILS_FOR)
        if (drawn[:runs] < 0.5).all() and (drawn[runs:] >= 0.5).all():
            return float(seed)
    raise AssertionError("there is no such seed")


def _drawn(seed: float, count: int) -> NDArray[np.float32]:
    draw = helper.make_node("RandomUniform", [], ["drawn"], shape=[count], seed=seed)
    out = [helper.make_tensor_value_info("drawn", TensorProto.FLOAT, [count])]
    graph = helper.make_graph([draw], "draw", [], out)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    drawn: NDArray[np.float32] = session.run(None, {})[0]
    return drawn
