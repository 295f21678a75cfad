"""Masks and keypoints of the benchmarks: polygons of 40 points, and 17 points with confidence."""

import math
from typing import Any, Literal

from sightline.types.v1 import prediction_pb2

from sightline import Keypoint, Mask

Task = Literal["detect", "segment", "pose"]
TASKS: tuple[Task, ...] = ("detect", "segment", "pose")
POLYGON_POINTS, KEYPOINTS = 40, 17


def polygon(number: int) -> list[tuple[float, float]]:
    """Return the outline of an ellipse."""
    turns = (2 * math.pi * at / POLYGON_POINTS for at in range(POLYGON_POINTS))
    x, y = 200.5 + number % 640, 240.25
    return [(x + 100 * math.cos(turn), y + 80 * math.sin(turn)) for turn in turns]


def keypoints(number: int) -> list[tuple[float, float, float]]:
    """Return the points of a skeleton."""
    return [(number % 640 + 5.5 * at, 20.25 + 9 * at, 0.9 - at / 100) for at in range(KEYPOINTS)]


def fields(task: Task, number: int) -> dict[str, Any]:
    """Return the arguments of a `Detection` beside its box."""
    if task == "segment":
        return {"mask": Mask([polygon(number)])}
    if task == "pose":
        return {"keypoints": [Keypoint(*point) for point in keypoints(number)]}
    return {}


def add_to(message: prediction_pb2.Detection, task: Task, number: int) -> None:
    """Add the same to a message of the contract."""
    if task == "segment":
        points = message.mask.polygons.add().points
        for x, y in polygon(number):
            points.extend((x, y))
    elif task == "pose":
        for x, y, confidence in keypoints(number):
            message.keypoints.add(x=x, y=y, confidence=confidence)
