"""An answer for an image, and what it cost."""

from dataclasses import dataclass

from edge.errors import Attempt
from edge.records import CloudReason, Detection, Source


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer for one image, where it came from and what it cost.

    Attributes:
        detections: most confident first; boxes in pixels of the upright image. A
            classification has classes instead: detections without box.
        source: who answered.
        cloud_reason: why the cloud was asked, or was to be (see `cloud_error`); None: it was not.
        model_name: of the model that answered.
        model_version: empty: not known.
        image_width: of the upright image in pixels; 0: not known.
        image_height: the same, downwards.
        device_milliseconds: until the device answered or was given up; None: it was not asked.
        cloud_milliseconds: from the first try to the cloud's answer, retries and waits included;
            None: it was not asked.
        total_milliseconds: of the whole budget.
        attempts: every try, in the order in which they ended.
        idempotent_replayed: the cloud gave the answer that an earlier try had got.
        cloud_error: reason why the cloud, which was asked or was to be asked, did not answer and
            the device's answer was kept (modes `cascade` and `hedged`); empty: nothing of the kind.
        cloud_bytes: bytes of the image that went to the cloud for its answer, uploads and
            retries included; 0: the cloud did not answer.
        cloud_bytes_saved: bytes that did not have to, because the image was shrunk before.

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
        mine = (one for one in self.attempts if one.source is self.source and not one.error)
        return next(mine)
