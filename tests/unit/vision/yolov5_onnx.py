"""Detectors with the head of YOLOv5 and YOLOv7, built on the spot, and what they compute in NumPy.

Each level is one convolution of the picture; the head is YOLOv5's: a sigmoid of everything, centres
near their cell, sizes up to four times an anchor.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.unit.vision.models import save

SIDE = 64
STRIDES = (8, 16, 32)
ANCHORS = np.array([[1.25, 1.6], [2, 3.75], [4.1, 2.9]], dtype=np.float32)  # in cells


@dataclass
class Level:
    """One level of the head: its stride, its weights ``[3 * columns, 3, stride, stride]``."""

    stride: int
    weights: np.ndarray
    bias: np.ndarray

    @property
    def cells(self) -> int:
        return SIDE // self.stride

    def grid(self) -> np.ndarray:
        y, x = np.mgrid[: self.cells, : self.cells]
        return np.stack([x, y], axis=-1)[None].astype(np.float32)


def make_levels(classes: int, seed: int = 1) -> list[Level]:
    rng = np.random.default_rng(seed)
    rows = len(ANCHORS) * (5 + classes)
    return [
        Level(
            stride,
            (rng.standard_normal((rows, 3, stride, stride)) * 3 / stride).astype(np.float32),
            rng.standard_normal(rows).astype(np.float32),
        )
        for stride in STRIDES
    ]


def compute(levels: list[Level], image: np.ndarray) -> np.ndarray:
    """Return the output ``[rows, 5 + classes]`` for an input ``[3, SIDE, SIDE]``."""
    parts = []
    for level in levels:
        cells, stride = level.cells, level.stride
        tiles = image.reshape(3, cells, stride, cells, stride)
        raw = np.einsum("ocyx,chywx->ohw", level.weights, tiles) + level.bias[:, None, None]
        share = 1 / (1 + np.exp(-raw.reshape(len(ANCHORS), -1, cells, cells)))
        share = share.transpose(0, 2, 3, 1)
        centre = (share[..., :2] * 2 - 0.5 + level.grid()) * stride
        size = (share[..., 2:4] * 2) ** 2 * ANCHORS[:, None, None] * stride
        rows = np.concatenate([centre, size, share[..., 4:]], axis=-1)
        parts.append(rows.reshape(-1, rows.shape[-1]))
    return np.concatenate(parts)


def save_yolov5(path: Path, levels: list[Level], metadata: dict[str, str]) -> Path:
    """Save the model in the layout ``[1, anchors, 5 + classes]``."""
    columns = len(levels[0].bias) // len(ANCHORS)
    nodes = []
    constants: dict[str, np.ndarray | np.float32] = {"two": np.float32(2), "half": np.float32(0.5)}
    constants["rows"] = np.array([1, -1, columns])
    for at, level in enumerate(levels):
        constants |= {
            f"weights{at}": level.weights,
            f"bias{at}": level.bias,
            f"shape{at}": np.array([1, len(ANCHORS), columns, level.cells, level.cells]),
            f"corner{at}": level.grid()[None],
            f"stride{at}": np.float32(level.stride),
            f"anchor{at}": ANCHORS[None, :, None, None] * level.stride,
            f"parts{at}": np.array([2, 2, columns - 4]),
        }
        steps: list[tuple[str, list[str], list[str], dict[str, object]]] = [
            ("Conv", ["images", "weights", "bias"], ["raw"], {"strides": [level.stride] * 2}),
            ("Reshape", ["raw", "shape"], ["split"], {}),
            ("Transpose", ["split"], ["turned"], {"perm": [0, 1, 3, 4, 2]}),
            ("Sigmoid", ["turned"], ["share"], {}),
            ("Split", ["share", "parts"], ["xy", "wh", "scores"], {"axis": 4}),
            ("Mul", ["xy", "two"], ["xy2"], {}),
            ("Sub", ["xy2", "half"], ["offset"], {}),
            ("Add", ["offset", "corner"], ["place"], {}),
            ("Mul", ["place", "stride"], ["centre"], {}),
            ("Mul", ["wh", "two"], ["wh2"], {}),
            ("Mul", ["wh2", "wh2"], ["square"], {}),
            ("Mul", ["square", "anchor"], ["size"], {}),
            ("Concat", ["centre", "size", "scores"], ["joined"], {"axis": 4}),
            ("Reshape", ["joined", "rows"], ["level"], {}),
        ]
        shared = {"images", "two", "half", "rows"}
        nodes += [
            helper.make_node(
                kind,
                [name if name in shared else f"{name}{at}" for name in inputs],
                [f"{name}{at}" for name in outputs],
                **attributes,
            )
            for kind, inputs, outputs, attributes in steps
        ]
    nodes.append(helper.make_node("Concat", ["level0", "level1", "level2"], ["output"], axis=1))
    total = sum(len(ANCHORS) * level.cells**2 for level in levels)
    graph = helper.make_graph(
        nodes,
        "yolov5",
        [_tensor("images", [1, 3, SIDE, SIDE])],
        [_tensor("output", [1, total, columns])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return save(path, graph, metadata)


def _tensor(name: str, shape: list[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
