"""A tiny ONNX classifier, whose logits are the means of the colours of its picture."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NAMES = {0: "red", 1: "green", 2: "blue"}


def colour_classifier(
    path: Path,
    *,
    names: dict[int, str] | None = NAMES,
    scale: float = 10.0,
    task: str | None = None,
    probabilities: bool = False,
) -> Path:
    """Write the model; it takes any number of pictures.

    Args:
        path: of the `.onnx` file; its folder is made.
        names: labels in the metadata; None: no metadata of labels.
        scale: what the means, in [0, 1], are multiplied with.
        task: as the metadata says; None: it says nothing.
        probabilities: whether the network ends in a softmax.
    """
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "scale"], ["logits"]),
        helper.make_node("Softmax" if probabilities else "Identity", ["logits"], ["output0"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.array(scale, dtype=np.float32), "scale")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    metadata = {"names": str(names)} if names else {}
    if task:
        metadata["task"] = task
    helper.set_model_props(model, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path
