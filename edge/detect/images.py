"""Conversion of images: to pixels for a model, to encoded bytes for the wire.

Encoded images are checked by their content before they are decoded (`vision`). numpy and Pillow
are imported only where pixels are handled: a node that forwards encoded images needs neither.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edge.detect.base import Image
from servicekit.errors import invalid

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray

ArrayFormat = Literal["jpeg", "png"]
"""Encoding of pixels for the wire: JPEG of quality 95, or PNG (lossless, several times larger)."""


def pixels(image: Image, field: str = "image") -> "NDArray[np.uint8]":
    """Return an image as RGB uint8 `[H, W, 3]`, upright.

    Args:
        image: the image, in any form.
        field: name of the image in errors.

    Raises:
        SightlineError: INVALID_ARGUMENT: it is not an image, exceeds a limit of `vision`, or
            cannot be read; the reason says which.
    """
    from vision import ImageError, decode_image

    if not isinstance(image, bytes | str | Path):
        return _array(image, field)
    try:
        return decode_image(_read(image, field))
    except ImageError as error:
        raise invalid(field, f"is refused: {error.message}", reason=error.reason) from error


def encoded(image: Image, *, array_format: ArrayFormat = "jpeg", field: str = "image") -> bytes:
    """Return an image as an encoded file: bytes and files unchanged, pixels encoded.

    Args:
        image: the image, in any form.
        array_format: encoding of arrays and Pillow images.
        field: name of the image in errors.

    Raises:
        SightlineError: INVALID_ARGUMENT: it is empty, cannot be read, or is not an array of an
            image.
    """
    if not isinstance(image, bytes | str | Path):
        return _encode(_array(image, field), array_format)
    data = _read(image, field)
    if not data:
        raise invalid(field, "must not be empty", reason="IMAGE_EMPTY")
    return data


def _read(image: bytes | str | Path, field: str) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        cause = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise invalid(
            field,
            f"must be a file that can be read, got {str(image)!r}: {cause}",
            reason="IMAGE_FILE_UNREADABLE",
        ) from error


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
            field, f"must be RGB uint8 [H, W, 3] and not empty, got {image.dtype} {image.shape}"
        )
    return image


def _upright(image: "PIL.Image.Image", field: str) -> "NDArray[np.uint8]":
    import numpy as np
    from PIL import ImageOps

    with _decoding_errors(field):
        rgb = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    return _array(rgb, field)


@contextmanager
def _decoding_errors(field: str) -> Iterator[None]:
    """Raise SightlineError for damage that Pillow finds when it reads the pixels."""
    try:
        yield
    except (OSError, ValueError, SyntaxError) as error:
        reason = "IMAGE_CORRUPT"
        raise invalid(field, f"must be a complete image: {error}", reason=reason) from error


def _encode(array: "NDArray[np.uint8]", array_format: ArrayFormat) -> bytes:
    import PIL.Image

    out = io.BytesIO()
    options = {"quality": 95} if array_format == "jpeg" else {"compress_level": 1}
    PIL.Image.fromarray(array).save(out, array_format.upper(), **options)
    return out.getvalue()
