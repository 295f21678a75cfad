"""The protocol of a detector, its result and its thresholds."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, get_args

from edge.records import Detection
from servicekit.contract_bounds import MAX_DETECTIONS, MAX_POLYGON_TOLERANCE
from servicekit.mask_formats import POLYGON_TOLERANCE, MaskFormat

if TYPE_CHECKING:  # the edge core runs without numpy and Pillow
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray

Image: TypeAlias = "NDArray[np.uint8] | bytes | str | Path | PIL.Image.Image"
"""RGB uint8 `[H, W, 3]`, an encoded image (JPEG, PNG, WebP, BMP, TIFF, GIF, JPEG 2000, AVIF or
Netpbm), its path, or a Pillow image of any mode."""

Tracker = Literal["bytetrack", "botsort"]
"""A tracker that identifies objects across frames (ByteTrack, BoT-SORT), by ultralytics' name."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Thresholds, limits and forms of a detector's result. Those of boxes are ultralytics'.

    Attributes:
        confidence: exclusive minimum confidence of a detection, in [0, 1].
        iou: overlap (IoU) above which the weaker of two boxes of one class is dropped, in [0, 1].
        max_detections: maximum number of detections per image, 1 to 10 000.
        top_k: number of classes that a classifier returns, whatever their confidence, 1 to 1000.
        mask_format: format of the masks of a model that segments: `polygon`, `rle` (COCO's run
            lengths, which are exact and keep holes) or `off`.
        polygon_tolerance: largest distance between a polygon and the outline of its mask in pixels,
            0 to 100.

    Raises:
        ValueError: an attribute is out of range; the message names it.

    Example:
        >>> from sightline import OnnxDetector, Thresholds
        >>> detector = OnnxDetector("model.onnx", thresholds=Thresholds(max_detections=1))
        >>> len(detector.detect("photo.jpg").detections)
        1
    """

    confidence: float = 0.25
    iou: float = 0.7
    max_detections: int = 300
    top_k: int = 5
    mask_format: MaskFormat = "polygon"
    polygon_tolerance: float = POLYGON_TOLERANCE

    def __post_init__(self) -> None:
        for name, value in (("confidence", self.confidence), ("iou", self.iou)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        if not 1 <= self.max_detections <= MAX_DETECTIONS:
            rule = f"max_detections must be 1 to {MAX_DETECTIONS}"
            raise ValueError(f"{rule}, got {self.max_detections}")
        if not 1 <= self.top_k <= 1000:
            raise ValueError(f"top_k must be 1 to 1000, got {self.top_k}")
        if self.mask_format not in get_args(MaskFormat):
            raise ValueError(f"mask_format must be polygon, rle or off, got {self.mask_format!r}")
        if not 0 <= self.polygon_tolerance <= MAX_POLYGON_TOLERANCE:
            rule = f"polygon_tolerance must be 0 to {MAX_POLYGON_TOLERANCE}"
            raise ValueError(f"{rule}, got {self.polygon_tolerance}")


@dataclass(frozen=True, slots=True)
class DetectorResult:
    """The result of one model for one image.

    Attributes:
        detections: the detections, most confident first, in pixels of the upright image. Those of
            a classifier have no box; those of the tasks obb, pose and segment have a box and a
            rotated box, keypoints or a mask beside it.
        image_width: width of the upright image in pixels, >= 1; 0: not known.
        image_height: height of the upright image in pixels, >= 1; 0: not known.
        model_name: name of the model, not empty.
        model_version: version of the model; empty: not known.

    Example:
        >>> from sightline import Box, Detection, DetectorResult
        >>> scratch = Detection(3, "scratch", 0.87, Box(10, 20, 110, 220))
        >>> result = DetectorResult((scratch,), 640, 480, model_name="parts", model_version="7")
        >>> max(detection.confidence for detection in result.detections)
        0.87
    """

    detections: tuple[Detection, ...]
    image_width: int
    image_height: int
    model_name: str
    model_version: str = ""


class Detector(Protocol):
    """A model on the device. It is called from worker threads; one instance serves one process.

    A detector may have a method `close()`, which releases its resources; see `close_detector`. It
    may have an attribute `labels` with the names of all its classes: in the modes `cascade` and
    `hedged` they are compared with the labels of the cloud's model.

    Example:
        >>> from sightline import DetectorResult, InferenceCoordinator, Mode, Policy
        >>> class Blank:
        ...     name, version = "blank", "1"
        ...     def detect(self, image):
        ...         return DetectorResult((), 640, 480, self.name, self.version)
        >>> with InferenceCoordinator(Blank(), None, Policy(mode=Mode.DEVICE)) as coordinator:
        ...     print(coordinator.ask("photo.jpg").model_name)
        blank
    """

    @property
    def name(self) -> str:
        """The model's name for the log, not empty."""

    @property
    def version(self) -> str:
        """The model's version for the log; empty: not known."""

    def detect(self, image: Image) -> DetectorResult:
        """Detect objects in one image, or classify it.

        Raises:
            SightlineError: the image is invalid (category `validation`). The cloud would reject it
                as well and is not asked.
            Exception: any other failure. The cloud is asked if the mode allows it.
        """


def close_detector(detector: Detector) -> None:
    """Release the resources of a detector (a process, GPU memory) if it has a method `close()`.

    Args:
        detector: a detector that is not used again.
    """
    close = getattr(detector, "close", None)
    if close is not None:
        close()
