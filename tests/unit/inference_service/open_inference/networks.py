"""Small networks with two outputs, whose numbers depend on every pixel."""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from inference_service.models.engine import Model
from inference_service.models.model_spec import ModelSpec
from inference_service.serving.admission import Lane
from vision import OnnxClassifier

SIDE = 16
CLASSES = 5


def network(path: Path, *, batch: int | None = None, half: bool = False) -> Path:
    """Write a classifier: `images` [N, 3, 16, 16] to `scores` [N, 5] and `best` int64 [N, 1].

    Args:
        path: of the `.onnx` file; its folder is made.
        batch: N; None: any.
        half: whether its numbers are of 16 bits.
    """
    numbers, kind = (np.float16, TensorProto.FLOAT16) if half else (np.float32, TensorProto.FLOAT)
    random = np.random.default_rng(0)
    constants = [
        numpy_helper.from_array(random.normal(size=shape).astype(numbers), name)
        for name, shape in (("w", (8, 3, 3, 3)), ("m", (8, CLASSES)))
    ]
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["convolved"]),
        helper.make_node("Relu", ["convolved"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "m"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=1),
    ]
    rows = "batch" if batch is None else batch
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("images", kind, [rows, 3, SIDE, SIDE])],
        [
            helper.make_tensor_value_info("scores", kind, [rows, CLASSES]),
            helper.make_tensor_value_info("best", TensorProto.INT64, [rows, 1]),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    names = {index: f"class-{index}" for index in range(CLASSES)}
    helper.set_model_props(model, {"names": str(names)})
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def loaded(path: Path, max_rows: int = 1, max_wait: float = 0.0) -> Model:
    """Return the model `two`, version 1, of such a file."""
    lane = Lane(max_rows=max_rows, max_wait=max_wait)
    return Model("two", "1", ModelSpec(task="classify"), OnnxClassifier.load(path), lane)


def rows(count: int) -> NDArray[np.float32]:
    """Input of so many rows, each another one."""
    return np.random.default_rng(count).random((count, 3, SIDE, SIDE), dtype=np.float32)
