"""A repository of models of the tasks segment, pose and obb, whose answers never change."""

from pathlib import Path

import numpy as np

from tests.unit.vision.models import METADATA, save_detector, save_segmenter

TASKS = ("segment", "pose", "obb")
_ROWS = np.array([[20, 40], [20, 35], [22, 40], [30, 24], [0.9, 0], [-2, 0.5]], np.float32)
"""Output `[6, 2]`: two objects of two classes. The image moves the -2, which stays below 0."""


def save_models(repository: Path) -> None:
    """Save a model for each task, named by it, with an input of 96 x 64 pixels.

    Each finds two objects. The answers depend on the place of an image in the input, and not on the
    image.
    """
    for name in TASKS:
        (repository / name / "1").mkdir(parents=True)
    y, x = np.mgrid[:16, :24]
    near = [30 - (x - 5) ** 2 - (y - 5) ** 2, 40 - (x - 11) ** 2 - 2 * (y - 9) ** 2]
    rows = np.concatenate([_ROWS, np.eye(2, dtype=np.float32)])
    prototypes = np.array(near, np.float32)
    save_segmenter(repository / "segment" / "1" / "model.onnx", rows, prototypes, first="rows")
    points = np.array([[30, 7], [10, 40], [0.5, 1], [12, 50], [5, 44], [0.25, 0]], np.float32)
    save_detector(
        repository / "pose" / "1" / "model.onnx",
        output=np.concatenate([_ROWS, points]),
        moved=(5, 0),
        metadata={**METADATA, "task": "pose", "kpt_shape": "[2, 3]"},
    )
    save_detector(
        repository / "obb" / "1" / "model.onnx",
        output=np.concatenate([_ROWS, np.array([[0.4, 1.2]], np.float32)]),
        moved=(5, 0),
        metadata={**METADATA, "task": "obb"},
    )
