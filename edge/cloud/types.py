"""What is asked of the inference service and what it answers: plain, frozen records."""

from dataclasses import dataclass
from enum import StrEnum

from edge.records import Detection
from servicekit.errors import SightlineError

UPLOAD_ABOVE_BYTES = 1 << 20
"""Size of an encoded image from which on it is uploaded first, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class ModelHint:
    """Which model should answer.

    Example:
        >>> from sightline import InferenceClient, ModelHint, SightlineError
        >>> with InferenceClient("127.0.0.1:1", timeout=5.0) as client:
        ...     try:
        ...         answer = client.infer(["photo.jpg"], model=ModelHint("yolov8n", "2"))
        ...     except SightlineError as error:  # no service listens on this port
        ...         print(error.category)
        network
    """

    name: str = ""
    """Empty: the server's default model."""
    version: str = ""
    """Empty: the model's default version."""


@dataclass(frozen=True, slots=True)
class InferParameters:
    """How an answer is made. None: the model's own setting.

    Example:
        >>> from sightline import InferenceClient, InferParameters, SightlineError
        >>> parameters = InferParameters(confidence_threshold=1.5)
        >>> with InferenceClient("127.0.0.1:1") as client:
        ...     try:
        ...         answer = client.infer(["photo.jpg"], parameters=parameters)
        ...     except SightlineError as error:  # before anything is sent
        ...         print(error.message)
        parameters.confidence_threshold must be in [0, 1], is 1.5
    """

    confidence_threshold: float | None = None
    """Detections below this confidence are left out, in [0, 1]."""
    iou_threshold: float | None = None
    """Of two boxes of one class that overlap by more, one is left out, in [0, 1]."""
    max_detections: int | None = None
    """At most this many detections per image, 1 to 10 000."""
    top_k: int | None = None
    """At most this many classes per image (classification), 1 to 1000."""


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class of a classified image."""

    class_id: int
    class_name: str
    """Empty: the model has no labels."""
    probability: float
    """Calibrated, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class ImageAnswer:
    """The answer for one image."""

    image_id: str
    """As in the question. Empty: none was given."""
    image_width: int
    """Of the upright image in pixels. 0: it could not be read."""
    image_height: int
    detections: tuple[Detection, ...] = ()
    """Most confident first (task detect)."""
    classes: tuple[ClassScore, ...] = ()
    """Most probable first (task classify)."""
    error: SightlineError | None = None
    """Why there is no answer for this image, though there is for others. None: there is one."""


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """How long each stage took on the server, in seconds; 0: not said."""

    validate: float
    queue: float
    decode: float
    infer: float
    post: float
    total: float


@dataclass(frozen=True, slots=True)
class InferAnswer:
    """The answers for the images of one call, in their order.

    Example:
        >>> from edge.cloud.types import ImageAnswer, StageSeconds
        >>> from sightline import Detection, InferAnswer
        >>> answer = InferAnswer(  # as `InferenceClient.infer` returns it
        ...     results=(ImageAnswer("photo", 640, 480, (Detection(0, "part", 0.9),)),),
        ...     model_name="parts",
        ...     model_version="7",
        ...     timing=StageSeconds(0.0, 0.001, 0.002, 0.012, 0.001, 0.016),
        ...     idempotent_replayed=False,
        ... )
        >>> for image in answer.results:
        ...     if image.error is None:
        ...         print(image.image_id, [detection.class_name for detection in image.detections])
        photo ['part']
    """

    results: tuple[ImageAnswer, ...]
    model_name: str
    model_version: str
    timing: StageSeconds
    idempotent_replayed: bool
    """Whether the service gave the answer that an earlier call with the same key had got."""
    bytes_sent: int = 0
    """Bytes of images handed to the connection for this answer, uploads and retries included."""
    bytes_saved: int = 0
    """Bytes of images that did not have to leave, because they were shrunk before. Of images
    that came as pixels it is not known, and not counted."""


class ModelTask(StrEnum):
    """What a model is for."""

    UNSPECIFIED = "unspecified"
    DETECT = "detect"
    CLASSIFY = "classify"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that the service has loaded."""

    name: str
    version: str
    task: ModelTask
    labels: tuple[str, ...]
    """The index is the class_id."""
    input_width: int
    """In pixels."""
    input_height: int
    provider: str
    """ONNX Runtime's execution provider in use."""
    default_version: bool
    """Whether a question that names no version gets this one."""
    default_model: bool
    """Whether a question that names no model gets this one."""
