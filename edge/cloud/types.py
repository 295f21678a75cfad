"""Frozen records of requests to the inference service and of its answers."""

from dataclasses import dataclass
from enum import StrEnum

from edge.records import Detection
from servicekit.errors import SightlineError
from servicekit.mask_formats import MaskFormat

UPLOAD_ABOVE_BYTES = 1 << 20
"""Default size in bytes above which an encoded image is uploaded before the request."""


@dataclass(frozen=True, slots=True)
class ModelHint:
    """The name and version of the requested model.

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
    """Thresholds and limits of an answer. None: the model's own setting.

    Example:
        >>> from sightline import InferenceClient, InferParameters, SightlineError
        >>> parameters = InferParameters(confidence_threshold=1.5)
        >>> with InferenceClient("127.0.0.1:1") as client:
        ...     try:
        ...         answer = client.infer(["photo.jpg"], parameters=parameters)
        ...     except SightlineError as error:  # before anything is sent
        ...         print(error.message)
        parameters.confidence_threshold must be in [0, 1], got 1.5
    """

    confidence_threshold: float | None = None
    """Minimum confidence of a detection, in [0, 1]."""
    iou_threshold: float | None = None
    """Overlap (IoU) above which the weaker of two boxes of one class is dropped, in [0, 1]."""
    max_detections: int | None = None
    """Maximum number of detections per image, 1 to 10 000."""
    top_k: int | None = None
    """Maximum number of classes per image (classification), 1 to 1000."""
    mask_format: MaskFormat | None = None
    """Format of the masks (task segment): polygons, COCO's run lengths, or no masks."""
    polygon_tolerance: float | None = None
    """Largest distance between a polygon and the outline of its mask in pixels, 0 to 100. None:
    the model's own, in pixels of the image that is sent, which may be downscaled."""


@dataclass(frozen=True, slots=True)
class ClassScore:
    """The probability of one class of a classified image."""

    class_id: int
    class_name: str
    """Empty: the model has no labels."""
    probability: float
    """Calibrated, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class ImageAnswer:
    """The answer for one image.

    Example:
        >>> from sightline import Detection, ImageAnswer
        >>> image = ImageAnswer("photo", 640, 480, (Detection(0, "part", 0.9),))
        >>> image.detections[0].class_name if image.error is None else image.error.reason
        'part'
    """

    image_id: str
    """Name of the image, as in the request. Empty: it has none."""
    image_width: int
    """Width of the upright image in pixels. 0: the image could not be decoded."""
    image_height: int
    """Height of the upright image in pixels. 0: the image could not be decoded."""
    detections: tuple[Detection, ...] = ()
    """Most confident first (tasks detect, segment, pose and obb)."""
    classes: tuple[ClassScore, ...] = ()
    """Most probable first (task classify)."""
    error: SightlineError | None = None
    """The error of this image alone. None: the image was answered."""


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """Durations of the stages on the server in seconds; 0: not reported.

    Example:
        >>> from sightline import StageSeconds
        >>> timing = StageSeconds(
        ...     validate=0.0, queue=0.001, decode=0.002, infer=0.012, post=0.001, total=0.016
        ... )
        >>> f"{timing.infer / timing.total:.0%} of the time in the model"
        '75% of the time in the model'
    """

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
        >>> from sightline import Detection, ImageAnswer, InferAnswer, StageSeconds
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
    """True if the service returned the stored answer of an earlier call with the same key."""
    bytes_sent: int = 0
    """Image bytes handed to the connection for this answer, uploads and retries included."""
    bytes_saved: int = 0
    """Image bytes saved by downscaling. Images that were passed as pixels are not counted."""


class ModelTask(StrEnum):
    """The task of a model."""

    UNSPECIFIED = "unspecified"
    DETECT = "detect"
    CLASSIFY = "classify"
    SEGMENT = "segment"
    POSE = "pose"
    OBB = "obb"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that the service has loaded."""

    name: str
    version: str
    task: ModelTask
    labels: tuple[str, ...]
    """Labels by class_id."""
    input_width: int
    """Width of the model's input in pixels."""
    input_height: int
    """Height of the model's input in pixels."""
    provider: str
    """ONNX Runtime's execution provider in use."""
    default_version: bool
    """True if requests that name no version use this version."""
    default_model: bool
    """True if requests that name no model use this model."""
    keypoint_names: tuple[str, ...] = ()
    """Names of the keypoints in their order (task pose). Empty: none, or not named."""
