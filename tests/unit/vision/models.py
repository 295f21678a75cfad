"""Tiny detectors, built on the spot: the output is known, and the picture moves one score."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LABELS = {0: "plate", 1: "mould"}
METADATA = {
    "names": repr(LABELS),
    "imgsz": "[64, 96]",
    "stride": "32",
    "task": "detect",
    "end2end": "False",
    "args": "{'nms': False, 'half': False}",
}
# Two anchors: a plate whose score is the mean of the picture, and a mould of 0.5.
YOLOV8 = np.array([[20, 60], [20, 40], [16, 8], [16, 8], [0, 0], [0, 0.5]], dtype=np.float32)
END_TO_END = np.array([[12, 12, 28, 28, 0, 0], [56, 36, 64, 44, 0.5, 1]], dtype=np.float32)

TWO_OBJECTS = np.array(
    [[20, 24, 60], [20, 20, 40], [16, 16, 8], [16, 16, 8], [0.75, 0.5, 0], [0, 0, 0.625]],
    dtype=np.float32,
)
"""Output `[6, 3]` of a detector: two objects of two classes, and one below any threshold."""


def save_detector(
    path: Path,
    *,
    output: np.ndarray = YOLOV8,
    moved: tuple[int, int] = (4, 0),
    shape: Sequence[int | str] = (1, 3, 64, 96),
    dtype: type[np.generic] = np.float32,
    metadata: dict[str, str] | None = None,
    declare: bool = True,
) -> Path:
    """Save a model that answers `output`, with the mean of the input added at `moved`."""
    where = np.zeros((1, *output.shape), dtype=dtype)
    where[(0, *moved)] = 1
    constants = {"known": output[None].astype(dtype), "where": where}
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[2, 3], keepdims=1),
        helper.make_node("ReduceMean", ["mean"], ["each"], axes=[1, 2], keepdims=0),
        helper.make_node("Unsqueeze", ["each", "last"], ["level"]),
        helper.make_node("Mul", ["level", "where"], ["lift"]),
        helper.make_node("Add", ["known", "lift"], ["output0"]),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    declared = [shape[0], *output.shape] if declare else ["batch", "rows", "columns"]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", kind, list(shape))],
        [helper.make_tensor_value_info("output0", kind, declared)],
        [
            *(numpy_helper.from_array(value, name) for name, value in constants.items()),
            helper.make_tensor("last", TensorProto.INT64, [1], [1]),
        ],
    )
    return save(path, graph, METADATA if metadata is None else metadata)


def save_segmenter(path: Path, rows: np.ndarray, prototypes: np.ndarray, *, first: str) -> Path:
    """Save a segmentation model of constant outputs, `rows` or `prototypes` as the first one."""
    outputs = {"rows": rows, "prototypes": prototypes}
    order = sorted(outputs, key=lambda name: name != first)
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        *(helper.make_node("Add", [f"known_{name}", "nothing"], [name]) for name in order),
    ]
    graph = helper.make_graph(
        nodes,
        "segmenter",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 64, 96])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, *outputs[name].shape])
            for name in order
        ],
        [
            numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
            *(numpy_helper.from_array(outputs[name][None], f"known_{name}") for name in order),
        ],
    )
    return save(path, graph, {**METADATA, "task": "segment"})


def save_failing(path: Path) -> Path:
    """Save a model that runs on a black picture and fails on a white one."""
    nodes = [
        helper.make_node("ReduceMax", ["images"], ["brightest"], axes=[0, 1, 2, 3], keepdims=0),
        helper.make_node("Cast", ["brightest"], ["row"], to=TensorProto.INT64),
        helper.make_node("Gather", ["answers", "row"], ["output0"], axis=0),
    ]
    graph = helper.make_graph(
        nodes,
        "failing",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 64, 96])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, *YOLOV8.shape])],
        [numpy_helper.from_array(YOLOV8[None, None], "answers")],
    )
    return save(path, graph, METADATA)


def save(path: Path, graph: onnx.GraphProto, metadata: dict[str, str]) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
