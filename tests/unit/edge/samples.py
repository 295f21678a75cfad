"""Predictions for the tests of logging."""

import threading
import time
from collections.abc import Callable

from edge.records import Box, Detection, Prediction


def prediction(name: str = "image") -> Prediction:
    """A prediction with everything in it that a detector says."""
    return Prediction(
        name,
        "yolov8n",
        model_version="8.4",
        image_width=1280,
        image_height=720,
        inference_seconds=0.012,
        detections=(
            Detection(0, "person", 0.9, Box(1.5, 2.5, 100.25, 200.5), track_id=7),
            Detection(5, "bus", 0.5, Box(0.0, 0.0, 640.0, 480.0)),
        ),
        defect_detected=False,
        labels={"line": "3"},
    )


def eventually(reached: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Waits for a condition of another thread or process."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.005)
    return True
