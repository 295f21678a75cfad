"""Data of a request and of its results, independent of protobuf."""

from dataclasses import dataclass, field

from servicekit.errors import SightlineError
from vision import Classes, Detections, MaskFormat, OpenedImage


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parameters of a request; None: the model's own setting."""

    confidence: float | None = None
    """Detections must be above this confidence, in [0, 1]."""
    iou: float | None = None
    """Overlap above which boxes of one class are merged, in [0, 1]."""
    max_detections: int | None = None
    """Maximum number of detections per image, 1 to 10 000."""
    top_k: int | None = None
    """Maximum number of classes per image, 1 to 1000; no effect on detectors."""
    mask_format: MaskFormat | None = None
    """Format of the masks of a model that segments."""
    polygon_tolerance: float | None = None
    """Largest distance between a polygon and its mask's outline in pixels, 0 to 100."""


@dataclass(frozen=True, slots=True)
class ImageContent:
    """An encoded image, from the request or from an upload."""

    data: bytes
    sha256: bytes
    """SHA-256 of the data, 32 bytes."""


@dataclass(frozen=True, slots=True)
class CheckedImage:
    """One image of a request that passed every check that precedes decoding."""

    index: int
    """Position in the request, from 0."""
    image_id: str
    opened: OpenedImage = field(compare=False)
    """The opened image, which can be decoded once."""
    sha256: bytes
    """SHA-256 of its data, 32 bytes."""
    origin: str = "data"
    """Field of `Image` that it came from: `data` or `reference`."""


@dataclass(frozen=True, slots=True)
class RefusedImage:
    """One image that gets an error, although other images of the request may be answered."""

    index: int
    image_id: str
    sha256: bytes
    """SHA-256 of the image, or of the reference's text if the reference is unknown."""
    error: SightlineError
    lost: bool = False
    """True if it was uploaded but is no longer stored: its response may still be stored."""


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """A request that passed validation."""

    model_name: str
    """Requested model; empty: the default model."""
    model_version: str
    """Requested version; empty: the model's default version."""
    parameters: Parameters
    images: tuple[CheckedImage | RefusedImage, ...]
    """Images in the order of the request; at least one is a `CheckedImage` or a lost one."""


@dataclass(frozen=True, slots=True)
class ImagePrediction:
    """The result of a model for one image."""

    width: int
    """Width of the upright image, in pixels."""
    height: int
    result: Detections | Classes


@dataclass(frozen=True, slots=True)
class Timing:
    """Duration of each stage in seconds.

    `queue` is the longest wait of any image. `decode`, `infer` and `post` are sums over the images;
    since images are processed in parallel, the sums can exceed `total`.
    """

    validate: float
    queue: float
    decode: float
    infer: float
    post: float
    total: float
