"""Tiny ONNX detectors in the YOLOv8 layout, and pictures that they answer predictably."""

import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.integration.inference.waiting_service import WAIT_SECONDS

SIDE = 64
NAMES = {0: "red", 1: "green", 2: "blue"}
BOX = (32.0, 32.0, 32.0, 16.0)  # centre and size, in pixels of the input


def colour_model(
    path: Path,
    *,
    names: dict[int, str] | None = NAMES,
    side: int = SIDE,
    matmuls: int = 0,
    wait_seconds: float = 0.0,
    task: str = "detect",
    batches: bool = False,
) -> Path:
    """Write a model that sees one box, whose class is the picture's strongest colour.

    Its score is the mean of that colour, in [0, 1].

    Args:
        path: of the `.onnx` file; its folder is made.
        names: labels in the metadata; None: no metadata of labels.
        side: of the square input, in pixels.
        matmuls: products of 512 x 512 matrices that a run costs on top; how long they take is the
            machine's, so no test may build on it.
        wait_seconds: how long a run takes at least, on any machine, in a service that tests start
            (`tests.integration.inference.waiting_service`); elsewhere nothing waits.
        task: as the metadata says.
        batches: whether it takes any number of pictures at once; else one.
    """
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("Reshape", ["mean", "score_shape"], ["scores"]),
        *_waste(matmuls),
        *_per_picture("wasted" if matmuls else "box"),
        helper.make_node("Concat", ["boxes", "scores"], ["output0"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(np.array([0, 3, 1], dtype=np.int64), "score_shape"),
        numpy_helper.from_array(np.array(BOX, dtype=np.float32).reshape(1, 4, 1), "box"),
        numpy_helper.from_array(np.array([0.0], dtype=np.float32), "zero"),
    ]
    if matmuls:
        constants.append(numpy_helper.from_array(np.eye(512, dtype=np.float32), "eye"))
    count = "batch" if batches else 1
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [count, 3, side, side])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [count, 7, 1])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    metadata = {"task": task, "stride": "32", "imgsz": str([side, side])}
    if wait_seconds:
        metadata[WAIT_SECONDS] = str(wait_seconds)
    if names is not None:
        metadata["names"] = str(names)
    helper.set_model_props(model, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def _per_picture(box: str) -> Sequence[onnx.NodeProto]:
    """Return the nodes that repeat the box for every picture."""
    return [
        helper.make_node("ReduceMax", ["scores"], ["highest"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["highest", "zero"], ["none"]),
        helper.make_node("Add", [box, "none"], ["boxes"]),
    ]


def _waste(matmuls: int) -> Sequence[onnx.NodeProto]:
    if not matmuls:
        return []
    nodes = [
        # Depends on the picture, or it would be computed once, when the model is loaded.
        helper.make_node("ReduceMax", ["images"], ["most"], keepdims=0),
        helper.make_node("Add", ["eye", "most"], ["m0"]),
    ]
    for i in range(matmuls):
        nodes.append(helper.make_node("MatMul", [f"m{i}", "eye"], [f"m{i + 1}"]))
    nodes.append(helper.make_node("ReduceMean", [f"m{matmuls}"], ["one"], keepdims=0))
    nodes.append(helper.make_node("Mul", ["one", "zero"], ["nothing"]))
    nodes.append(helper.make_node("Add", ["box", "nothing"], ["wasted"]))
    return nodes


def picture(
    colour: tuple[int, int, int] = (255, 0, 0),
    *,
    size: tuple[int, int] = (128, 128),
    kind: str = "PNG",
) -> bytes:
    """Return an encoded picture of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """Return a small PNG whose header promises more pixels than it is wise to decode."""
    data = bytearray(picture())
    data[16:24] = width.to_bytes(4) + height.to_bytes(4)
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    return bytes(data)


def corrupt() -> bytes:
    """Return a JPEG whose header is right and whose data ends early."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()[:-1500]
