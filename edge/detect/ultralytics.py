"""The ultralytics detector (AGPL-3.0; extra `ultralytics`)."""

import atexit
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.detect.base import DetectorResult, Image, Thresholds, Tracker
from edge.detect.images import pixels
from edge.detect.limits import DEVICE_LIMITS, DeviceImageLimits
from edge.detect.result_columns import ModelNames
from edge.detect.results import classes_of, columns_of
from edge.left_out import LeftOut
from edge.records import Detection
from vision import ModelError
from vision.errors import check_text
from vision.model_files import check_format, damaged_onnx
from vision.model_identity import model_sha256

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from ultralytics import YOLO
    from ultralytics.engine.predictor import BasePredictor
    from ultralytics.engine.results import Results


_BOXES = ("detect", "segment", "pose", "obb")
_TASKS = (*_BOXES, "classify")
# Ultralytics' default: a tracker follows an object through frames with a low confidence.
_TRACKED_ABOVE = 0.1


class UltralyticsDetector:
    """A model that ultralytics runs: a `.pt` or `.onnx` file, or the folder of an export.

    Its task is detect, segment (boxes with masks), pose (with keypoints), obb (with rotated boxes)
    or classify.

    The detector writes nothing to stdout, downloads no weights and installs no packages, although
    ultralytics does so by default.

    Args:
        path: the model file, or a folder such as `best_openvino_model`. Ultralytics chooses the
            format by the name.
        name: the model's name in logs; None: the file's name without its suffix.
        version: the model's version in logs; None: the first 12 hex digits of the SHA-256 of the
            file with its external data, or of all files in the folder.
        thresholds: thresholds and limits of the results, and the format of masks; None: the
            defaults.
        device: the device to run on, such as "cpu" or "cuda:0"; None: ultralytics' choice.
        tracker: the tracker that identifies objects across images, which must be the frames of one
            source in their order. It omits an object until it has confirmed it. None: no tracker.
        limits: limits on the images that are read; None: the defaults.

    Raises:
        ModuleNotFoundError: ultralytics is not installed, or `lap`, which trackers need.
        vision.ModelError: the file does not exist, is no model or has another format than its name
            says, the model has another task, or it has no boxes to track.

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
        limits: DeviceImageLimits | None = None,
    ) -> None:
        path = Path(path)
        check_text(path)
        self.name = name or path.stem
        check_format(path)
        # Always: it also checks the external data, which ultralytics leaves to ONNX Runtime.
        sha256 = model_sha256(path)
        self.version = version or sha256[:12]
        self._thresholds = thresholds or Thresholds()
        self._limits = limits or DEVICE_LIMITS
        self._options = _options(self._thresholds, device, tracker)
        self._tracks = tracker is not None
        self._left_out = LeftOut(self.name)
        self._lock = threading.Lock()  # a predictor stores its current image, so is not reentrant
        self._model = self._load(path)

    @property
    def labels(self) -> tuple[str, ...]:
        """The model's labels by class_id, as its detections have them."""
        return tuple(ModelNames(self._model.names).values())

    @property
    def provider(self) -> str:
        """The device in use, by torch's name."""
        return str(self._model.predictor.device)

    def detect(self, image: Image) -> DetectorResult:
        """Detect objects in one image, or classify it; see `edge.detect.Detector`.

        Raises:
            SightlineError: the image is invalid.
            Exception: ultralytics raised it.
        """
        array = pixels(image, limits=self._limits)
        results = self._run(array)
        detections = classes_of(results, self._thresholds.top_k)
        if not detections:
            detections = self._confident(self._objects(results))
        height, width, _ = array.shape
        return DetectorResult(detections, width, height, self.name, self.version)

    def _objects(self, results: "Results") -> tuple[Detection, ...]:
        left_out: Counter[str] = Counter()
        columns = columns_of(
            results, self._thresholds.mask_format, self._thresholds.polygon_tolerance
        )
        detections = () if columns is None else tuple(columns.arrays(left_out))
        self._left_out.add(left_out)
        return detections

    def _load(self, path: Path) -> "YOLO":
        # Ultralytics reads this when it is first imported. If only onnxruntime-gpu is installed,
        # some versions of ultralytics would install onnxruntime over it.
        os.environ.setdefault("YOLO_AUTOINSTALL", "false")
        # Its log handler keeps the stdout of the import.
        with _some_home(), redirect_stdout(sys.stderr):
            from ultralytics import YOLO

        with _quiet():
            try:
                return self._ready(path, YOLO(path, task="detect"))
            except _OtherTaskError as other:  # an export must be opened with its own task
                return self._ready(path, YOLO(path, task=other.task))
            except Exception as error:
                if damaged := damaged_onnx(path, error):
                    raise damaged from error
                raise

    def _ready(self, path: Path, model: "YOLO") -> "YOLO":
        """Return the model loaded and run once, so that the first image is not slow."""
        self._check(path, model.task)
        model.add_callback("on_predict_start", partial(self._check_export, path))
        black = np.zeros((32, 32, 3), np.uint8)
        self._ask(model, black)
        for tracker in getattr(model.predictor, "trackers", ()):
            tracker.reset()  # a tracker confirms new objects immediately in its first frame only
        return model

    def _check(self, path: Path, task: str) -> None:
        allowed = _BOXES if self._tracks else _TASKS
        if task not in allowed:
            name = "task of a tracked model" if self._tracks else "task"
            text = f"{path}: {name} must be {', '.join(allowed[:-1])} or {allowed[-1]}, got {task}"
            raise ModelError("MODEL_UNSUPPORTED", text)

    def _check_export(self, path: Path, predictor: "BasePredictor") -> None:
        """Check the task in an export's metadata, which ultralytics reads at the first run."""
        task = getattr(predictor.model, "task", None)
        if task not in (None, predictor.args.task):
            self._check(path, task)
            raise _OtherTaskError(task)

    def _run(self, array: "NDArray[np.uint8]") -> "Results":
        bgr = np.ascontiguousarray(array[..., ::-1])  # ultralytics expects arrays in BGR
        with self._lock:
            return self._ask(self._model, bgr)

    def _ask(self, model: "YOLO", bgr: "NDArray[np.uint8]") -> "Results":
        if self._tracks:
            (results,) = model.track(bgr, persist=True, verbose=False, **self._options)
        else:
            (results,) = model.predict(bgr, verbose=False, **self._options)
        return results

    def _confident(self, detections: tuple[Detection, ...]) -> tuple[Detection, ...]:
        if not self._tracks:
            return detections
        threshold = self._thresholds.confidence
        return tuple(detection for detection in detections if detection.confidence > threshold)


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


@contextmanager
def _some_home() -> Iterator[None]:
    """Give the import of ultralytics a home folder if this user has none.

    It looks for one even if `YOLO_CONFIG_DIR` is set. The home is a new folder that is deleted when
    the process ends; nothing else may take it for the user's, so HOME is set in the block only.
    """
    try:
        Path.home()
    except (RuntimeError, KeyError):  # as in a container whose user is only a number
        folder = tempfile.mkdtemp(prefix="sightline-ultralytics-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ.setdefault("YOLO_CONFIG_DIR", folder)
        os.environ["HOME"] = folder
        try:
            yield
        finally:
            del os.environ["HOME"]
    else:
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress ultralytics' log messages below WARNING."""
    log = logging.getLogger("ultralytics")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)
