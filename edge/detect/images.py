"""Conversion of images: to pixels for a model, to encoded bytes for the wire.

Encoded images are checked by their content before they are decoded (`vision`). numpy and Pillow
are imported only where pixels are handled: a node that forwards images in the formats of the
contract needs neither.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edge.detect.base import Image
from edge.detect.limits import DEVICE_LIMITS, DeviceImageLimits
from servicekit.contract_bounds import MAX_IMAGE_SIDE
from servicekit.errors import invalid
from servicekit.media_kinds import CONTRACT_FORMATS, HEAD_BYTES, image_kind
from servicekit.names import readable

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray

    from vision import OpenedImage

ArrayFormat = Literal["jpeg", "png"]
"""Encoding of pixels for the wire: JPEG of quality 95, or PNG (lossless, several times larger)."""


def pixels(
    image: Image, field: str = "image", limits: DeviceImageLimits = DEVICE_LIMITS
) -> "NDArray[np.uint8]":
    """Return an image as RGB uint8 `[H, W, 3]`, upright.

    All forms of an image have the same pixels: its path, its bytes, and what Pillow opens from
    them, whatever its mode. Samples of 16 bits keep their upper 8 bits, and alpha is dropped.

    Args:
        image: the image, in any form.
        field: name of the image in errors.
        limits: limits on paths and bytes; arrays and Pillow images are in memory already.

    Raises:
        SightlineError: INVALID_ARGUMENT: it is not an image, exceeds a limit, or cannot be read;
            the reason says which.
        MemoryError: there is not enough memory to decode it.
    """
    if not isinstance(image, bytes | str | Path):
        return _array(image, field)
    data = _read(image, field, limits)
    with _refusals(field):
        return _opened(data, limits).decode()


def encoded(
    image: Image,
    *,
    array_format: ArrayFormat = "jpeg",
    field: str = "image",
    limits: DeviceImageLimits = DEVICE_LIMITS,
) -> bytes:
    """Return an image as an encoded file that the inference service can decode.

    Args:
        image: the image, in any form; see `for_service`.
        array_format: encoding of pixels.
        field: name of the image in errors.
        limits: limits on paths and bytes.

    Raises:
        SightlineError: INVALID_ARGUMENT: as `for_service`.
    """
    loaded = for_service(image, field, limits)
    return loaded if isinstance(loaded, bytes) else encode(loaded, array_format)


def for_service(
    image: Image, field: str = "image", limits: DeviceImageLimits = DEVICE_LIMITS
) -> "bytes | NDArray[np.uint8]":
    """Return an image as the inference service can decode it: its bytes, or pixels to encode.

    Bytes and files in the formats of the contract (JPEG, PNG, WebP, BMP), and those of no known
    type, are returned unchanged: the service checks them. Files of other formats that a device
    reads, such as TIFF, become pixels.

    Args:
        image: the image, in any form.
        field: name of the image in errors.
        limits: limits on paths and bytes.

    Raises:
        SightlineError: INVALID_ARGUMENT: it is empty, exceeds a limit, cannot be read, or is not an
            array of an image.
    """
    if not isinstance(image, bytes | str | Path):
        return _array(image, field)
    data = _read(image, field, limits)
    if not data:
        raise invalid(field, "must not be empty", reason="IMAGE_EMPTY")
    kind = image_kind(data[:HEAD_BYTES])
    if kind is None or kind in CONTRACT_FORMATS or not _can_decode(kind):
        return data
    return pixels(data, field, limits)


def size_of(
    image: Image, field: str = "image", limits: DeviceImageLimits = DEVICE_LIMITS
) -> tuple[int, int]:
    """Return the stored width and height of an image in pixels, without decoding it.

    Raises:
        SightlineError: as `pixels`, for what a header shows.
    """
    if isinstance(image, bytes | str | Path):
        with _refusals(field):
            info = _opened(_read(image, field, limits), limits).info
        return info.width, info.height
    height, width, _ = _array(image, field).shape
    return width, height


def _opened(data: bytes, limits: DeviceImageLimits) -> "OpenedImage":
    from servicekit.memory import require
    from vision import OWN_FORMATS, ImageLimits, open_image

    allowed = ImageLimits(limits.max_bytes, limits.max_pixels, MAX_IMAGE_SIDE, OWN_FORMATS)
    opened = open_image(data, allowed)
    require(opened.memory)
    return opened


def _can_decode(kind: str) -> bool:
    """Return True if this device can decode a type that the service cannot."""
    try:
        from vision import OWN_FORMATS
    except ImportError:  # numpy or Pillow: the service says that it does not decode the type
        return False
    return kind in OWN_FORMATS


def _read(image: bytes | str | Path, field: str, limits: DeviceImageLimits) -> bytes:
    """Return the encoded image; of a file that is too large at most one byte more than allowed."""
    if isinstance(image, bytes):
        data = image
    else:
        try:
            with Path(image).open("rb") as file:
                data = file.read(limits.max_bytes + 1)
        except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
            cause = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise invalid(
                field,
                f"must be a file that can be read, got {readable(str(image))!r}: {cause}",
                reason="IMAGE_FILE_UNREADABLE",
            ) from error
    if len(data) > limits.max_bytes:
        raise invalid(
            field,
            f"must have at most {limits.max_bytes} bytes on this device (max_image_bytes)",
            reason="IMAGE_TOO_LARGE",
        )
    return data


@contextmanager
def _refusals(field: str) -> Iterator[None]:
    """Raise SightlineError for an image that `vision` refuses."""
    from vision import ImageError

    try:
        yield
    except ImageError as error:
        raise invalid(field, f"is refused: {error.message}", reason=error.reason) from error


def _array(image: "NDArray[np.uint8] | PIL.Image.Image", field: str) -> "NDArray[np.uint8]":
    import numpy as np
    import PIL.Image

    if isinstance(image, PIL.Image.Image):
        return _upright(image, field)
    if not isinstance(image, np.ndarray):
        kind = type(image).__name__
        raise invalid(field, f"must be an array, bytes, a path or a Pillow image, got a {kind}")
    valid = image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8 and image.size > 0
    if not valid:
        raise invalid(
            field,
            f"must be RGB uint8 [H, W, 3] and not empty, got {image.dtype} {image.shape}"
            f"{_advice(image)}",
        )
    return image


def _advice(array: "NDArray[np.generic]") -> str:
    """Return how to convert an array that is nearly an image; empty: it is not."""
    import numpy as np

    if array.size == 0 or array.ndim not in (2, 3):
        return ""
    if array.dtype == np.uint8 and array.ndim == 2:
        return ": repeat a grey image in three channels, as in np.stack([grey] * 3, axis=2)"
    if array.dtype == np.uint8 and array.shape[2] == 4:
        return ": drop alpha, as in rgba[..., :3]"
    if array.dtype != np.uint8 and array.dtype.kind in "biuf":
        return ": scale its levels to 0 to 255 and convert them with astype(np.uint8)"
    return ""


def _upright(image: "PIL.Image.Image", field: str) -> "NDArray[np.uint8]":
    from vision import decode_opened

    with _refusals(field):
        return _array(decode_opened(image), field)


def encode(array: "NDArray[np.uint8]", array_format: ArrayFormat = "jpeg") -> bytes:
    """Return pixels, RGB uint8 `[H, W, 3]`, as a file."""
    import PIL.Image

    out = io.BytesIO()
    options = {"quality": 95} if array_format == "jpeg" else {"compress_level": 1}
    PIL.Image.fromarray(array).save(out, array_format.upper(), **options)
    return out.getvalue()
