"""The ONNX Runtime detector. It runs the same code as the inference service, without torch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import vision
from edge.detect.base import DetectorResult, Image, Thresholds
from edge.detect.images import pixels
from edge.detect.limits import DEVICE_LIMITS, DeviceImageLimits
from edge.detect.masks import record_of
from edge.detect.result_columns import ModelNames, ResultColumns
from edge.left_out import LeftOut
from edge.records import Detection
from vision.errors import check_text


class OnnxDetector:
    """A YOLO model or classifier in an ONNX file. Thread-safe.

    Args:
        path: the model file, with the metadata that ultralytics' exporter writes; its task is
            detect, segment (boxes with masks), pose (with keypoints), obb (with rotated boxes) or
            classify.
        name: the model's name in logs; None: the file's name without its suffix.
        version: the model's version in logs; None: the first 12 hex digits of the SHA-256 of the
            file and its external data.
        thresholds: thresholds and limits of the results, and the format of masks; None: the
            defaults.
        providers: ONNX Runtime's execution providers in order of preference.
        intra_op_threads: threads of one run; None: as many as the machine has cores, or
            CPUs that the process may use.
        limits: limits on the images that are read; None: the defaults.

    Raises:
        vision.ModelError: the file or the providers cannot be used, or masks are to be polygons and
            OpenCV is not installed.

    Example:
        >>> from sightline import OnnxDetector, Thresholds
        >>> detector = OnnxDetector("model.onnx", thresholds=Thresholds(confidence=0.7))
        >>> [detection.class_name for detection in detector.detect("photo.jpg").detections]
        ['plate']
    """

    def __init__(
        self,
        path: Path | str,
        *,
        name: str | None = None,
        version: str | None = None,
        thresholds: Thresholds | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        intra_op_threads: int | None = None,
        limits: DeviceImageLimits | None = None,
    ) -> None:
        options = vision.SessionOptions(tuple(providers), intra_op_threads)
        self._model = _network(Path(path), options)
        self._thresholds = thresholds or Thresholds()
        self._limits = limits or DEVICE_LIMITS
        self._mask_format = self._thresholds.mask_format
        if getattr(self._model, "task", None) == "segment":
            vision.check_mask_format(self._mask_format)
        self.name = name or Path(path).stem
        self._left_out = LeftOut(self.name)
        self.version = version or self._model.sha256[:12]
        self._model.warm_up()

    @property
    def labels(self) -> tuple[str, ...]:
        """The model's labels by class_id, as its detections have them."""
        return tuple(ModelNames(self._model.names).values())

    @property
    def provider(self) -> str:
        """The execution provider in use: the first one of the session."""
        return self._model.provider

    def detect(self, image: Image) -> DetectorResult:
        """Detect objects in one image, or classify it; see `edge.detect.Detector`.

        Raises:
            SightlineError: the image is invalid.
            vision.ModelError: the run failed, or its output has an unknown layout.
        """
        array = pixels(image, limits=self._limits)
        if isinstance(self._model, vision.OnnxClassifier):
            classes = self._model.classify(array, top_k=self._thresholds.top_k)
            detections = _classes(classes, ModelNames(self._model.names))
        else:
            boxes = self._model.detect(
                array,
                confidence=self._thresholds.confidence,
                iou=self._thresholds.iou,
                max_detections=self._thresholds.max_detections,
                mask_format=self._mask_format,
                tolerance=self._thresholds.polygon_tolerance,
            )
            detections = self._objects(boxes)
        height, width, _ = array.shape
        return DetectorResult(detections, width, height, self.name, self.version)

    def _objects(self, found: vision.Detections) -> tuple[Detection, ...]:
        left_out: Counter[str] = Counter()
        masks, tolerance = found.masks, self._thresholds.polygon_tolerance
        columns = ResultColumns(
            boxes=found.xyxy,
            confidence=found.confidence,
            class_id=found.class_id,
            names=ModelNames(self._model.names),
            rotated=found.rotated,
            keypoints=found.keypoints,
            masks=None
            if masks is None
            else lambda left_out: [record_of(mask, tolerance, left_out) for mask in masks],
        )
        detections = tuple(columns.arrays(left_out))
        self._left_out.add(left_out)
        return detections


def _network(path: Path, options: vision.SessionOptions) -> vision.OnnxYolo | vision.OnnxClassifier:
    check_text(path)
    session = vision.OnnxSession.load(path, options)
    match vision.parse_metadata(session.metadata).task:
        case None:
            return vision.OnnxYolo(session)
        case task if task in vision.YOLO_TASKS:
            return vision.OnnxYolo(session)
        case "classify":
            return vision.OnnxClassifier(session)
        case task:
            allowed = ", ".join(vision.YOLO_TASKS)
            raise vision.ModelError(
                "MODEL_UNSUPPORTED", f"{path}: task must be {allowed} or classify, got {task}"
            )


def _classes(classes: vision.Classes, names: Mapping[int, str]) -> tuple[Detection, ...]:
    rows = zip(classes.class_id.tolist(), classes.probability.tolist(), strict=True)
    return tuple(Detection(class_id, names[class_id], share) for class_id, share in rows)
