"""The answer for one image, with its origin and its cost."""

from dataclasses import dataclass

from edge.errors import Attempt
from edge.records import CloudReason, Detection, Source


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer for one image, with its origin and its cost.

    Attributes:
        detections: the detections, most confident first; boxes in pixels of the upright image. A
            classification consists of detections without a box.
        source: the device or the cloud, whichever answered.
        cloud_reason: why the cloud was asked, or should have been (see `cloud_error`); None: the
            cloud was not needed.
        model_name: name of the model that answered.
        model_version: version of the model; empty: not known.
        image_width: width of the upright image in pixels; 0: not known.
        image_height: height of the upright image in pixels; 0: not known.
        device_milliseconds: time until the device answered or its answer was dropped; None: it was
            not asked.
        cloud_milliseconds: time from the first try to the cloud's answer, retries and waits
            included; None: it was not asked.
        total_milliseconds: time from the request to the answer.
        attempts: all tries, in the order in which they ended.
        idempotent_replayed: True if the cloud returned the stored answer of an earlier try.
        cloud_error: reason why the cloud did not answer and the device's answer was used instead
            (modes `cascade` and `hedged`); empty: there was no such error.
        cloud_bytes: image bytes sent to the cloud for its answer, uploads and retries included; 0:
            the cloud did not answer.
        cloud_bytes_saved: image bytes saved by downscaling.

    Example:
        >>> from sightline import EdgeNode, EdgeSettings
        >>> settings = EdgeSettings(
        ...     mode="device",
        ...     device_model="model.onnx",
        ...     spool_dir="spool",
        ...     ingest_target="127.0.0.1:1",  # no service listens there
        ... )
        >>> with EdgeNode.from_settings(settings) as node:
        ...     answer = node.process("photo.jpg")
        >>> answer.source, answer.model_name, len(answer.detections)
        (<Source.DEVICE: 'device'>, 'model', 3)
        >>> answer.attempt.seconds <= answer.total_milliseconds / 1000
        True
    """

    detections: tuple[Detection, ...]
    source: Source
    cloud_reason: CloudReason | None
    model_name: str
    model_version: str
    image_width: int
    image_height: int
    device_milliseconds: float | None
    cloud_milliseconds: float | None
    total_milliseconds: float
    attempts: tuple[Attempt, ...]
    idempotent_replayed: bool
    cloud_error: str = ""
    cloud_bytes: int = 0
    cloud_bytes_saved: int = 0

    @property
    def attempt(self) -> Attempt:
        """The try that answered."""
        return next(a for a in self.attempts if a.source is self.source and not a.error)
