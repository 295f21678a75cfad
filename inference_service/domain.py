"""What the service talks about, free of protobuf: a checked question and what was seen."""

from dataclasses import dataclass, field

from servicekit.errors import SightlineError
from vision import Classes, Detections, OpenedImage


@dataclass(frozen=True, slots=True)
class Parameters:
    """What the caller wants done differently; None: the model's own setting."""

    confidence: float | None = None
    """Detections below this confidence are left out, in [0, 1]."""
    iou: float | None = None
    """Boxes of one class that overlap by more than this are one, in [0, 1]."""
    max_detections: int | None = None
    """Detections per image at most, 1 to 10 000."""
    top_k: int | None = None
    """Classes per image at most, 1 to 1000; without effect on detectors."""


@dataclass(frozen=True, slots=True)
class ImageContent:
    """An encoded image, wherever it came from."""

    data: bytes
    sha256: bytes
    """Of the data, 32 bytes."""


@dataclass(frozen=True, slots=True)
class CheckedImage:
    """One image of a question that passed every check short of decoding it."""

    index: int
    """Position in the request, from 0."""
    image_id: str
    opened: OpenedImage = field(compare=False)
    """To be decoded once."""
    sha256: bytes
    """Of its data, 32 bytes."""
    origin: str = "data"
    """Where in `Image` it came from: `data` or `reference`."""


@dataclass(frozen=True, slots=True)
class RefusedImage:
    """One image that gets no answer, though others of the request may."""

    index: int
    image_id: str
    sha256: bytes
    """Of the image; of the reference's text, if that is none of the caller's."""
    error: SightlineError
    lost: bool = False
    """Whether it was uploaded, but is not there any more: an answer for it may still be kept."""


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """A checked request."""

    model_name: str
    """As asked for; empty: the default model."""
    model_version: str
    """As asked for; empty: the model's default version."""
    parameters: Parameters
    images: tuple[CheckedImage | RefusedImage, ...]
    """In the order of the request; at least one is a `CheckedImage`, or a `RefusedImage` one that is lost."""


@dataclass(frozen=True, slots=True)
class ImagePrediction:
    """What a model found in one image."""

    width: int
    """Of the upright image, in pixels."""
    height: int
    found: Detections | Classes


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds that each stage took.

    `queue` is the longest wait of any image; `decode`, `infer` and `post` are summed over the
    images, which are worked on side by side, so that their sum can exceed `total`.
    """

    validate: float
    queue: float
    decode: float
    infer: float
    post: float
    total: float
