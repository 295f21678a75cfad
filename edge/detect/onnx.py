"""A detector in ONNX Runtime: the same code that answers in the cloud, and no torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from edge.detect.base import DetectorResult, Image, Thresholds
from edge.detect.pictures import pixels
from edge.records import Box, Detection
from servicekit import vision


class OnnxDetector:
    """A YOLO model (YOLOv8 layout or end to end) as an ONNX file. Safe in threads.

    Args:
        path: the model file, with the metadata that ultralytics' exporter writes.
        name: the model's name in logs; None: the file's name without its suffix.
        version: the model's version in logs; None: the first 12 hex digits of the file's SHA-256.
        thresholds: what counts as a detection; None: the defaults.
        providers: ONNX Runtime's execution providers, first choice first.
        intra_op_threads: threads of one run; None: ONNX Runtime's own choice.

    Raises:
        servicekit.vision.ModelError: the file or the providers cannot be used.
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
    ) -> None:
        options = vision.SessionOptions(tuple(providers), intra_op_threads)
        self._model = vision.OnnxDetector.load(path, options)
        self._thresholds = thresholds or Thresholds()
        self.name = name or Path(path).stem
        self.version = version or self._model.sha256[:12]
        self._model.warm_up()

    @property
    def provider(self) -> str:
        """The execution provider in use: the first that the session has."""
        return self._model.provider

    def detect(self, image: Image) -> DetectorResult:
        """Find objects in one picture; see `edge.detect.Detector`.

        Raises:
            SightlineError: the picture is at fault.
            servicekit.vision.ModelError: the run failed, or its output is no model's.
        """
        array = pixels(image)
        found = self._model.detect(
            array,
            confidence=self._thresholds.confidence,
            iou=self._thresholds.iou,
            max_detections=self._thresholds.max_detections,
        )
        height, width, _ = array.shape
        detections = _detections(found, self._model.names)
        return DetectorResult(detections, width, height, self.name, self.version)


def _detections(found: vision.Detections, names: Mapping[int, str]) -> tuple[Detection, ...]:
    rows = zip(found.class_id.tolist(), found.confidence.tolist(), found.xyxy.tolist(), strict=True)
    return tuple(
        Detection(class_id, names[class_id], confidence, Box(*xyxy))
        for class_id, confidence, xyxy in rows
    )
