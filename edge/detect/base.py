"""What a detector is: a name, a version, and an image in, detections out."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from edge.records import Detection

if TYPE_CHECKING:  # the edge core runs without numpy and Pillow
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray

Image: TypeAlias = "NDArray[np.uint8] | bytes | str | Path | PIL.Image.Image"
"""An image: RGB uint8 `[H, W, 3]`, an encoded JPEG, PNG, WebP or BMP, its path, or Pillow's."""

Tracker = Literal["bytetrack", "botsort"]
"""What gives objects an identity across frames (ByteTrack, BoT-SORT), as ultralytics names it."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What counts as a detection; the defaults are ultralytics'.

    Attributes:
        confidence: detections must be above it, in [0, 1].
        iou: of two boxes of one class that overlap by more, one is left out, in [0, 1].
        max_detections: per image, 1 to 10 000.
        top_k: classes of one image where the model is a classifier, whatever their
            confidence, 1 to 1000.

    Raises:
        ValueError: a bound is broken; names the attribute.

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

    def __post_init__(self) -> None:
        for name, value in (("confidence", self.confidence), ("iou", self.iou)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], is {value}")
        if not 1 <= self.max_detections <= 10_000:
            raise ValueError(f"max_detections must be 1 to 10000, is {self.max_detections}")
        if not 1 <= self.top_k <= 1000:
            raise ValueError(f"top_k must be 1 to 1000, is {self.top_k}")


@dataclass(frozen=True, slots=True)
class DetectorResult:
    """What one model says about one image.

    Attributes:
        detections: most confident first; boxes in pixels of the upright image. A classifier's
            have no box.
        image_width: of the upright image in pixels, >= 1; 0: not known.
        image_height: the same, downwards.
        model_name: of the model that answered; never empty.
        model_version: empty: not known.

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
    """A model on the device. Called from worker threads; one instance serves one process.

    It may have a method `close()`, which gives back what it holds; see `close_detector`. It may
    have an attribute `labels`, the names of all its classes: in the modes `cascade` and `hedged`
    they are held against those of the cloud's model.

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
        """The model's name, as it is logged; not empty."""

    @property
    def version(self) -> str:
        """The model's version, as it is logged; empty: not known."""

    def detect(self, image: Image) -> DetectorResult:
        """Find objects in one image, or name what it shows.

        Raises:
            SightlineError: the image is at fault (category `validation`): the cloud would say
                the same and is not asked.
            Exception: whatever else went wrong: the cloud is asked, where the mode allows it.
        """


def close_detector(detector: Detector) -> None:
    """Give back what a detector holds (a process, a GPU's memory), if it has a `close()`.

    Args:
        detector: not to be asked again.
    """
    close = getattr(detector, "close", None)
    if close is not None:
        close()
