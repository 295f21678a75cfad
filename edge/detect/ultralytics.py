"""A detector in ultralytics (AGPL-3.0; the extra `ultralytics`)."""

import hashlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.detect.base import DetectorResult, Image, Thresholds, Tracker
from edge.detect.images import pixels
from edge.detect.results import classes_of, detections_of
from edge.records import Detection
from vision import ModelError
from vision.external_data import check_beside

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from ultralytics import YOLO
    from ultralytics.engine.predictor import BasePredictor
    from ultralytics.engine.results import Results


_BOXES = ("detect", "segment", "pose")
_TASKS = (*_BOXES, "classify")
# Ultralytics' own: a tracker keeps an object through frames in which the model is less sure.
_TRACKED_ABOVE = 0.1


class UltralyticsDetector:
    """A model that ultralytics runs: `.pt`, `.onnx` and what else it opens.

    Its task is detect, segment, pose (the boxes of both are taken) or classify. Turned boxes (obb)
    are refused: `Box` has no angle.

    Says nothing on stdout, and neither downloads weights nor installs packages: ultralytics
    would do both on its own.

    Args:
        path: the model file.
        name: the model's name in logs; None: the file's name without its suffix.
        version: the model's version in logs; None: the first 12 hex digits of the file's SHA-256.
        thresholds: what counts as a detection; None: the defaults.
        device: what ultralytics should run on, such as "cpu" or "cuda:0"; None: its own choice.
        tracker: gives objects an identity across images, which then must be the frames of one
            source, in their order. An object is left out until the tracker is sure of it. None:
            none.

    Raises:
        ModuleNotFoundError: ultralytics is not installed, or `lap`, which trackers need.
        vision.ModelError: there is no such file, it is no model of such a task, or it
            has no boxes to be tracked.

    Example:
        >>> from sightline import UltralyticsDetector
        >>> detector = UltralyticsDetector("model.onnx", device="cpu")
        >>> len(detector.detect("photo.jpg").detections)
        3
    """

    def __init__(
        self,
        path: Path | str,
        *,
        name: str | None = None,
        version: str | None = None,
        thresholds: Thresholds | None = None,
        device: str | None = None,
        tracker: Tracker | None = None,
    ) -> None:
        path = Path(path)
        self.name = name or path.stem
        self.version = version or _sha256(path)[:12]
        self._thresholds = thresholds or Thresholds()
        self._options = _options(self._thresholds, device, tracker)
        self._tracks = tracker is not None
        self._lock = threading.Lock()  # a predictor holds the image it works on
        if path.suffix == ".onnx":
            check_beside(path)  # ultralytics hands the file to ONNX Runtime as it is
        self._model = self._load(path)

    @property
    def labels(self) -> tuple[str, ...]:
        """The model's labels; the index is the class_id."""
        return tuple(str(label) for label in self._model.names.values())

    @property
    def provider(self) -> str:
        """The device in use, as torch names it."""
        return str(self._model.predictor.device)

    def detect(self, image: Image) -> DetectorResult:
        """Find objects in one image, or name what it shows; see `edge.detect.Detector`.

        Raises:
            SightlineError: the image is at fault.
            Exception: whatever ultralytics raises.
        """
        array = pixels(image)
        results = self._run(array)
        found = classes_of(results, self._thresholds.top_k) or self._sure(detections_of(results))
        height, width, _ = array.shape
        return DetectorResult(found, width, height, self.name, self.version)

    def _load(self, path: Path) -> "YOLO":
        # Read when ultralytics is first imported. Where only onnxruntime-gpu is installed, some
        # of its versions would otherwise install onnxruntime over it.
        os.environ.setdefault("YOLO_AUTOINSTALL", "false")
        with redirect_stdout(sys.stderr):  # its log handler keeps the stream that it finds now
            from ultralytics import YOLO

        with _quiet():
            try:
                return self._ready(path, YOLO(path, task="detect"))
            except _OtherTaskError as other:  # of an export, which must be opened as what it is
                return self._ready(path, YOLO(path, task=other.task))

    def _ready(self, path: Path, model: "YOLO") -> "YOLO":
        """Return the model with its weights loaded and run once: no image has to pay for it."""
        self._check(path, model.task)
        model.add_callback("on_predict_start", partial(self._check_export, path))
        black = np.zeros((32, 32, 3), np.uint8)
        self._ask(model, black)
        for tracker in getattr(model.predictor, "trackers", ()):
            tracker.reset()  # it trusts new objects at once in its first frame only
        return model

    def _check(self, path: Path, task: str) -> None:
        allowed = _BOXES if self._tracks else _TASKS
        if task not in allowed:
            what = "task of a tracked model" if self._tracks else "task"
            text = f"{path}: {what} must be {', '.join(allowed[:-1])} or {allowed[-1]}, is {task}"
            raise ModelError("MODEL_UNSUPPORTED", text)

    def _check_export(self, path: Path, predictor: "BasePredictor") -> None:
        """The task of an export stands in its metadata, which is read when it is first asked."""
        task = getattr(predictor.model, "task", None)
        if task not in (None, predictor.args.task):
            self._check(path, task)
            raise _OtherTaskError(task)

    def _run(self, array: "NDArray[np.uint8]") -> "Results":
        bgr = np.ascontiguousarray(array[..., ::-1])  # what ultralytics takes arrays for
        with self._lock:
            return self._ask(self._model, bgr)

    def _ask(self, model: "YOLO", bgr: "NDArray[np.uint8]") -> "Results":
        if self._tracks:
            (results,) = model.track(bgr, persist=True, verbose=False, **self._options)
        else:
            (results,) = model.predict(bgr, verbose=False, **self._options)
        return results

    def _sure(self, found: tuple[Detection, ...]) -> tuple[Detection, ...]:
        if not self._tracks:
            return found
        least = self._thresholds.confidence
        return tuple(detection for detection in found if detection.confidence > least)


class _OtherTaskError(Exception):
    def __init__(self, task: str) -> None:
        super().__init__(task)
        self.task = task


def _options(thresholds: Thresholds, device: str | None, tracker: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "conf": thresholds.confidence,
        "iou": thresholds.iou,
        "max_det": thresholds.max_detections,
    }
    if device is not None:
        options["device"] = device
    if tracker is not None:
        options["conf"] = min(thresholds.confidence, _TRACKED_ABOVE)
        options["tracker"] = f"{tracker}.yaml"
    return options


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
