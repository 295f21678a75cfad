"""Image validation and decoding. An image is always checked before it is decoded.

The sender's declarations are ignored. The type comes from the first bytes, the dimensions from the
header, and both are checked against `ImageLimits` before any pixel is decoded or memory for pixels
is allocated, so that a decompression bomb costs no more than parsing a header. Thread-safe.

Pillow's process-wide limits are not used, since other libraries switch them off. Only its
``ImageFile.LOAD_TRUNCATED_IMAGES`` must stay off, so that truncated images are refused.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from servicekit.memory import is_to_blame
from vision.errors import ImageError
from vision.guards import CountedReader, TooManyReadsError, count_jpeg_scans

logger = logging.getLogger(__name__)

_OPENERS: dict[str, Callable[[CountedReader], ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "BMP": BmpImageFile,
}
_MIME = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "BMP": "image/bmp"}

_HEADER_READS = 2_000  # about 500 segments or chunks
_BYTES_PER_CHUNK = 4_096  # PNG chunks usually hold at least 8 KiB; each takes three reads
_FULL_SCANS = 20  # scans allowed at the largest permitted size; more for smaller images

# EXIF orientation (TIFF 6.0, tag 274); 1 is upright.
_ORIENTATION = 0x0112
_SWAPPING = frozenset({5, 6, 7, 8})
# Orientation -> view of the upright pixels with the rows and columns of the stored image.
_STORED: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: upright.transpose(1, 0, 2)[::-1],
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: upright.transpose(1, 0, 2)[:, ::-1],
}
_PILLOW_BYTES, _RGB_BYTES = 4, 3  # per pixel
_STRIP_PIXELS, _WHOLE_PIXELS = 2**18, 2**22


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits on the size and the type of an image.

    Attributes:
        max_bytes: size of the encoded image.
        max_pixels: width times height. Decoding takes at least 7 bytes per pixel: see
            `OpenedImage.memory`.
        max_side: width or height, in pixels.
        formats: accepted types, a subset of JPEG, PNG, WEBP and BMP.

    Raises:
        ValueError: a limit below 1, no format, or an unknown format.
    """

    max_bytes: int = 10 * 1024 * 1024
    max_pixels: int = 50_000_000
    max_side: int = 16_384
    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP")

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "max_side"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.formats or not set(self.formats) <= _OPENERS.keys():
            raise ValueError(f"formats must be some of {list(_OPENERS)}, got {list(self.formats)}")


DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Type and dimensions of an image, from its header.

    Attributes:
        format: ``JPEG``, ``PNG``, ``WEBP`` or ``BMP``.
        mime: the media type, e.g. ``image/jpeg``.
        width: in pixels, as stored; EXIF orientation may swap width and height.
        height: in pixels, as stored.
    """

    format: str
    mime: str
    width: int
    height: int


def sha256(data: bytes) -> bytes:
    """Return the SHA-256 of an image's bytes, 32 bytes."""
    return hashlib.sha256(data).digest()


class OpenedImage:
    """An image whose header has been read and is within the limits. `open_image` returns it.

    Reading the header takes a sixth of the time of decoding a small image: keep this object between
    the check and the decoding. Not thread-safe.

    Attributes:
        info: type and dimensions.
        effort: number of pixels that decoding processes; those of a progressive JPEG count once
            for each scan.
    """

    def __init__(
        self, kind: str, image: ImageFile, reader: CountedReader, size: int, scans: int = 1
    ) -> None:
        self.info = ImageInfo(kind, _MIME[kind], image.width, image.height)
        self.effort = image.width * image.height * max(scans, 1)
        self._image: ImageFile | None = image
        self._reader = reader
        self._size = size
        self._bytes_per_pixel = _bytes_per_pixel(kind, image)

    @property
    def memory(self) -> int:
        """Peak memory of decoding in bytes, including the returned pixels."""
        return self.info.width * self.info.height * self._bytes_per_pixel

    def decode(self) -> NDArray[np.uint8]:
        """Decode the image, once, and release Pillow's memory; see `decode_image`.

        Raises:
            ImageError: the data is truncated or corrupt.
            MemoryError: there is not enough memory to decode it.
            RuntimeError: it has already been decoded.
        """
        image, self._image = self._image, None
        if image is None:
            raise RuntimeError("the image has already been decoded: open it again")
        self._reader.reads_left = _HEADER_READS + 3 * (self._size // _BYTES_PER_CHUNK)
        with _as_image_error(self.info.format, self.memory):
            image.load()
            return _upright_rgb(image)


def open_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> OpenedImage:
    """Check an image by its header, and return it for decoding later.

    Raises:
        ImageError: it is empty, exceeds a limit, has an unsupported type or an unreadable header.
    """
    kind = _sniff(data, limits)
    reader = CountedReader(data, _HEADER_READS)
    # libwebp allocates two canvases of 4 bytes per pixel; their size is not known beforehand.
    with _as_image_error(kind, 8 * limits.max_pixels if kind == "WEBP" else len(data)):
        image = _OPENERS[kind](reader)
    _check_dimensions(image, limits)
    scans = _check_work(kind, image, data, limits)
    return OpenedImage(kind, image, reader, len(data), scans)


def inspect_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> ImageInfo:
    """Return type and dimensions of an image after checking the limits, without decoding it.

    Raises:
        ImageError: as `open_image`.
    """
    return open_image(data, limits).info


def decode_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Check an image as `open_image` does, decode it and turn it upright.

    EXIF orientation is applied: rows and columns of the result are the coordinate system of every
    box. Grey, palette and CMYK become RGB, 16-bit samples keep their upper 8 bits, alpha is dropped
    (as OpenCV does), and an animation is represented by its first frame.

    Returns:
        RGB ``[H, W, 3]``, possibly read-only.

    Raises:
        ImageError: `open_image` refuses it, or the data is truncated or corrupt.
    """
    return open_image(data, limits).decode()


def _sniff(data: bytes, limits: ImageLimits) -> str:
    if not data:
        raise ImageError("IMAGE_EMPTY", "the image is empty: 0 bytes")
    if len(data) > limits.max_bytes:
        raise ImageError(
            "IMAGE_TOO_LARGE",
            f"the image has {len(data)} bytes, allowed are at most {limits.max_bytes}",
        )
    kind = _kind_by_signature(data)
    if kind not in limits.formats:
        raise ImageError(
            "IMAGE_TYPE_UNSUPPORTED",
            f"the content is {kind or 'of no known type'}, allowed are {', '.join(limits.formats)}",
        )
    return kind


def _kind_by_signature(data: bytes) -> str | None:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    return "BMP" if data.startswith(b"BM") else None


def _check_dimensions(image: Image.Image, limits: ImageLimits) -> None:
    width, height = image.size
    if max(width, height) > limits.max_side or width * height > limits.max_pixels:
        raise ImageError(
            "IMAGE_DIMENSIONS_TOO_LARGE",
            f"the image is {width} x {height} pixels, "
            f"allowed are at most {limits.max_side} per side and {limits.max_pixels} in total",
        )


def _check_work(kind: str, image: ImageFile, data: bytes, limits: ImageLimits) -> int:
    """Check the decoding work, and return the number of passes over the image."""
    scans = 1
    if kind == "JPEG":
        max_scans = _FULL_SCANS * limits.max_pixels // (image.width * image.height)
        scans = count_jpeg_scans(data, max_scans)
        if scans > max_scans:
            raise ImageError(
                "IMAGE_TOO_COMPLEX", f"the JPEG has more than the allowed {max_scans} scans"
            )
    # Pillow expands run-length coding in Python, pixel by pixel: seconds for a large image.
    if kind == "BMP" and any(tile.codec_name == "bmp_rle" for tile in image.tile):
        raise ImageError(
            "IMAGE_TYPE_UNSUPPORTED", "the BMP is run-length coded: save it uncompressed"
        )
    return scans


def _bytes_per_pixel(kind: str, image: ImageFile) -> int:
    """Return the peak memory of decoding: the codec's buffers, Pillow's pixels and the result.

    libjpeg keeps all coefficients of a progressive image, 2 bytes each; libwebp keeps two frames of
    an animation, and Pillow's plugin a third one as bytes.
    """
    codec = 0
    if kind == "JPEG" and image.info.get("progressive"):
        codec = 2 * len(image.getbands())
    elif kind == "WEBP":
        codec = 12
    if image.width * image.height <= _WHOLE_PIXELS:  # a second copy for the mode, and two results
        return 2 * _PILLOW_BYTES + max(codec, 2 * _RGB_BYTES)
    return _PILLOW_BYTES + max(codec, _RGB_BYTES)


@contextmanager
def _as_image_error(kind: str, size: int) -> Iterator[None]:
    """Translate whatever Pillow raises for bad data into `ImageError`.

    A lack of memory is not an error of the image, although libjpeg and others report it as a broken
    stream. `size` is the memory that the work needs, in bytes.
    """
    try:
        yield
    except MemoryError:
        raise
    except TooManyReadsError:
        raise ImageError(
            "IMAGE_TOO_COMPLEX", f"the {kind} has too many segments or chunks"
        ) from None
    except Image.DecompressionBombError as error:
        raise ImageError("IMAGE_DIMENSIONS_TOO_LARGE", str(error)) from error
    except Exception as error:  # Pillow documents no complete list of its exceptions
        if is_to_blame(error, size):
            raise MemoryError(f"not enough memory to decode a {kind}") from error
        raise ImageError("IMAGE_CORRUPT", f"the {kind} is corrupt or truncated: {error}") from error


def _upright_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Return the upright pixels; process large images in strips, which bounds the memory."""
    orientation = _orientation(image)
    width, height = image.size
    if width * height <= _WHOLE_PIXELS and orientation == 1:
        return np.asarray(_to_rgb(image))
    swapped = orientation in _SWAPPING
    pixels = np.empty((width, height, 3) if swapped else (height, width, 3), dtype=np.uint8)
    stored = _STORED[orientation](pixels)
    rows = max(_STRIP_PIXELS // width, 1)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        stored[top:bottom] = np.asarray(_to_rgb(image.crop((0, top, width, bottom))))
    return pixels


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # as above; a damaged tag does not make the image unusable
        logger.debug("unreadable EXIF: the image is treated as upright", exc_info=True)
        return 1
    return orientation if orientation in _STORED else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip these at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P":  # via RGBA, since Pillow warns about dropped transparency
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")
