"""A monitor that records events, and files for sources to read."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

CODECS = {"mp4": "mp4v", "avi": "MJPG", "mkv": "mp4v", "mov": "mp4v"}
"""Codec of a video with a suffix."""


class RecordingMonitor:
    """A `SourceMonitor` that records events and stops the reading once `enough` returns True."""

    def __init__(self, enough: Callable[[], bool] = lambda: False) -> None:
        self.enough = enough
        self.events: list[str] = []
        self.waits: list[float] = []

    def wait(self, seconds: float) -> bool:
        if seconds:
            self.waits.append(seconds)
            time.sleep(min(seconds, 0.01))
        return self.enough()

    def skipped(self) -> None:
        self.events.append("skipped")

    def damaged(self, count: int) -> None:
        self.events.append(f"damaged: {count}")

    def missing(self, count: int) -> None:
        self.events.append(f"missing: {count}")

    def lost(self, error: str) -> None:
        self.events.append(f"lost: {error}")

    def found(self) -> None:
        self.events.append("found")


def save_video(path: Path, frames: int = 50, fps: float = 10.0) -> Path:
    """Save a video of 64 x 48 pixels whose colour changes from red to blue."""
    code: Any = cv2
    writer = code.VideoWriter(str(path), code.VideoWriter_fourcc(*"mp4v"), fps, (64, 48))
    for index in range(frames):
        blue = index * 255 // max(frames - 1, 1)
        writer.write(np.full((48, 64, 3), (blue, 0, 255 - blue), np.uint8))
    writer.release()
    return path


def save_noise(path: Path, frames: int) -> Path:
    """Save a video of noise, so that each frame takes about as many bytes."""
    code: Any = cv2
    pixels = np.random.default_rng(0)
    codec = code.VideoWriter_fourcc(*CODECS[path.suffix[1:]])
    writer = code.VideoWriter(str(path), codec, 25.0, (160, 120))
    for _ in range(frames):
        writer.write(pixels.integers(0, 256, (120, 160, 3), np.uint8))
    writer.release()
    return path


def save_pictures(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        cv2.imwrite(str(folder / name), np.zeros((48, 64, 3), np.uint8))
    return folder
