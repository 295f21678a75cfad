"""A detector in ultralytics (AGPL-3.0; the extra `ultralytics`)."""

import hashlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.detect.base import DetectorResult, Image, Thresholds
from edge.detect.pictures import pixels
from edge.detect.results import detections_of
from servicekit.vision import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from ultralytics import YOLO
    from ultralytics.engine.results import Results


class UltralyticsDetector:
    """A detection model that ultralytics runs: `.pt`, `.onnx` and what else it opens.

    Says nothing on stdout, and neither downloads weights nor installs packages: ultralytics
    would do both on its own.

    Args:
        path: the model file.
        name: the model's name in logs; None: the file's name without its suffix.
        version: the model's version in logs; None: the first 12 hex digits of the file's SHA-256.
        thresholds: what counts as a detection; None: the defaults.
        device: what ultralytics should run on, such as "cpu" or "cuda:0"; None: its own choice.

    Raises:
        ModuleNotFoundError: ultralytics is not installed.
        servicekit.vision.ModelError: there is no such file, or it is no detection model.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        name: str | None = None,
        version: str | None = None,
        thresholds: Thresholds | None = None,
        device: str | None = None,
    ) -> None:
        path = Path(path)
        self.name = name or path.stem
        self.version = version or _sha256(path)[:12]
        self._options = _options(thresholds or Thresholds())
        if device is not None:
            self._options["device"] = device
        self._lock = threading.Lock()  # a predictor holds the picture it works on
        self._model = self._load(path)

    def detect(self, image: Image) -> DetectorResult:
        """Find objects in one picture; see `edge.detect.Detector`.

        Raises:
            SightlineError: the picture is at fault.
            Exception: whatever ultralytics raises.
        """
        array = pixels(image)
        detections = detections_of(self._predict(array))
        height, width, _ = array.shape
        return DetectorResult(detections, width, height, self.name, self.version)

    def _load(self, path: Path) -> "YOLO":
        # Read when ultralytics is first imported. Where only onnxruntime-gpu is installed, some
        # of its versions would otherwise install onnxruntime over it.
        os.environ.setdefault("YOLO_AUTOINSTALL", "false")
        with redirect_stdout(sys.stderr):  # its log handler keeps the stream that it finds now
            from ultralytics import YOLO

        with _quiet():
            model = YOLO(path, task="detect")
            # Loads the weights and runs once, so that no picture has to pay for it.
            model.predict(np.zeros((32, 32, 3), np.uint8), verbose=False, **self._options)
        _check(path, model)
        return model

    def _predict(self, array: "NDArray[np.uint8]") -> "Results":
        bgr = np.ascontiguousarray(array[..., ::-1])  # what ultralytics takes arrays for
        with self._lock:
            (results,) = self._model.predict(bgr, verbose=False, **self._options)
        return results


def _options(thresholds: Thresholds) -> dict[str, Any]:
    return {
        "conf": thresholds.confidence,
        "iou": thresholds.iou,
        "max_det": thresholds.max_detections,
    }


def _check(path: Path, model: "YOLO") -> None:
    """Tasks whose boxes mean something else, or that have none, are refused.

    The task of a checkpoint stands in the model; that of an export in its metadata, which is read
    when the model is set up, and does not change the task that was asked for.
    """
    for task in (model.task, getattr(model.predictor.model, "task", None)):
        if task not in ("detect", None):
            raise ModelError("MODEL_UNSUPPORTED", f"{path}: task must be detect, is {task}")


def _sha256(path: Path) -> str:
    """SHA-256 of the file in hex. Ultralytics would try to download a file that is missing."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError("MODEL_FILE_MISSING", f"{path} cannot be read: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep ultralytics from announcing what it loads; warnings still come."""
    chatter = logging.getLogger("ultralytics")
    before = chatter.level
    chatter.setLevel(logging.WARNING)
    try:
        yield
    finally:
        chatter.setLevel(before)
