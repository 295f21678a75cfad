"""Image validation and decoding. An image is always checked before it is decoded.

The sender's declarations are ignored. The type comes from the first bytes, the dimensions from the
header, and both are checked against `ImageLimits` before any pixel is decoded or memory for pixels
is allocated, so that a decompression bomb costs no more than parsing a header. Thread-safe.

Pillow's process-wide limits are not used, since other libraries switch them off. Only its
``ImageFile.LOAD_TRUNCATED_IMAGES`` must stay off, so that truncated images are refused.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from servicekit.media_kinds import (
    CONTRACT_FORMATS,
    HEAD_BYTES,
    MAX_SERVICE_BYTES,
    MAX_SERVICE_PIXELS,
    MAX_SERVICE_SIDE,
    OWN_FORMATS,
    image_kind,
)
from servicekit.memory import is_to_blame
from vision.errors import ImageError
from vision.guards import CountedReader, TooManyReadsError, completed_jpegs, read_jpeg_scans
from vision.openers import MIME, check_first_page, opener
from vision.rgb import WHOLE_PIXELS, upright_rgb

_HEADER_READS = 2_000  # about 500 segments or chunks
_BYTES_PER_CHUNK = 4_096  # PNG chunks usually hold at least 8 KiB; each takes three reads
_FULL_SCANS = 20  # scans allowed at the largest permitted size; more for smaller images

_PILLOW_BYTES, _RGB_BYTES = 4, 3  # per pixel
# Codecs with planes of integers (libopenjp2: 4 bytes a sample) or several copies of the image;
# libtiff decodes a whole strip of up to 8 bytes per pixel.
_CODEC_BYTES = {"WEBP": 12, "TIFF": 8, "JPEG2000": 16, "AVIF": 16}
_MAX_WEBP_CANVAS = 50_000_000  # pixels; for the memory that opening a WebP may have lacked


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits on the size and the type of an image.

    Attributes:
        max_bytes: size of the encoded image.
        max_pixels: width times height. Decoding takes at least 7 bytes per pixel: see
            `OpenedImage.memory`.
        max_side: width or height, in pixels.
        formats: accepted types: `CONTRACT_FORMATS`, or others of `OWN_FORMATS`.

    Raises:
        ValueError: a limit below 1, no format, or an unknown format.
    """

    max_bytes: int = MAX_SERVICE_BYTES
    max_pixels: int = MAX_SERVICE_PIXELS
    max_side: int = MAX_SERVICE_SIDE
    formats: tuple[str, ...] = CONTRACT_FORMATS

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "max_side"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.formats or not set(self.formats) <= set(OWN_FORMATS):
            raise ValueError(
                f"formats must be some of {list(OWN_FORMATS)}, got {list(self.formats)}"
            )


DEFAULT_LIMITS = ImageLimits()
"""Limits on an image of a stranger, as the inference service applies them by default."""
_UNLIMITED = ImageLimits(max_bytes=2**63, max_pixels=2**63, max_side=2**31)


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Type and dimensions of an image, from its header.

    Attributes:
        format: one of `OWN_FORMATS`, such as ``JPEG``.
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
            for each scan, and those of a JPEG without its end marker twice.
    """

    def __init__(
        self, kind: str, image: ImageFile, reader: CountedReader, size: int, work: "_Work"
    ) -> None:
        self.info = ImageInfo(kind, MIME[kind], image.width, image.height)
        self.effort = image.width * image.height * work.passes
        self._ended = work.ended
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
        reads = _HEADER_READS + 3 * (self._size // _BYTES_PER_CHUNK)
        if self.info.format not in CONTRACT_FORMATS:
            reads += self._size  # a GIF has blocks of 255 bytes, and a TIFF may have a strip a row
        self._reader.reads_left = reads
        with _as_image_error(self.info.format, self.memory):
            if self._ended:
                return upright_rgb(image)
            del image  # and its memory
            return _decode_without_end(self._reader.getvalue(), reads)


def open_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> OpenedImage:
    """Check an image by its header, and return it for decoding later.

    Raises:
        ImageError: it is empty, exceeds a limit, has an unsupported type or an unreadable header.
    """
    kind = _sniff(data, limits)
    open_file = opener(kind)
    reader = CountedReader(data, _HEADER_READS)
    # libwebp allocates two canvases of 4 bytes per pixel; their size is not known beforehand.
    canvas = min(limits.max_pixels, _MAX_WEBP_CANVAS)
    with _as_image_error(kind, 8 * canvas if kind == "WEBP" else len(data)):
        image = open_file(reader)
    _check_dimensions(image, limits)
    check_first_page(kind, image)
    work = _check_work(kind, image, data, limits)
    return OpenedImage(kind, image, reader, len(data), work)


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
    (as OpenCV does), and an animation or a file of several pages is represented by its first one.
    A JPEG may lack its end marker, but none of its coded data.

    Returns:
        RGB ``[H, W, 3]``, possibly read-only.

    Raises:
        ImageError: `open_image` refuses it, or the data is truncated or corrupt.
    """
    return open_image(data, limits).decode()


def decode_opened(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels of an image that was opened with Pillow, as `decode_image` does.

    Limits do not apply: the caller has opened it.

    Returns:
        RGB ``[H, W, 3]``, possibly read-only.

    Raises:
        ImageError: the data is truncated or corrupt, or the samples have no known range; see
            `vision.rgb.upright_rgb`.
        MemoryError: there is not enough memory to decode it.
    """
    with _as_image_error(image.format or f"image of mode {image.mode}", 0):
        try:
            return upright_rgb(image)
        except OSError:
            # Pillow has no other way to read a JPEG without its end marker.
            file = getattr(image, "fp", None)
            if not isinstance(image, JpegImageFile) or file is None or not file.seekable():
                raise
            file.seek(0)
            return open_image(file.read(), _UNLIMITED).decode()


def _decode_without_end(data: bytes, reads: int) -> NDArray[np.uint8]:
    """Decode a JPEG without its end marker.

    Raises:
        ImageError: coded data are missing as well.
    """
    first, second = (JpegImageFile(CountedReader(one, reads)) for one in completed_jpegs(data))
    digest = hashlib.sha256(upright_rgb(first).data).digest()  # without keeping the pixels
    del first
    pixels = upright_rgb(second)
    if hashlib.sha256(pixels.data).digest() != digest:
        raise ImageError("IMAGE_CORRUPT", "the JPEG is truncated: pixels at its end are missing")
    return pixels


def _sniff(data: bytes, limits: ImageLimits) -> str:
    if not data:
        raise ImageError("IMAGE_EMPTY", "the image is empty: 0 bytes")
    if len(data) > limits.max_bytes:
        raise ImageError(
            "IMAGE_TOO_LARGE",
            f"the image has {len(data)} bytes, allowed are at most {limits.max_bytes}",
        )
    kind = image_kind(data[:HEAD_BYTES])
    if kind not in limits.formats:
        raise ImageError(
            "IMAGE_TYPE_UNSUPPORTED",
            f"the content is {kind or 'of no known type'}, allowed are {', '.join(limits.formats)}",
        )
    return kind


def _check_dimensions(image: Image.Image, limits: ImageLimits) -> None:
    width, height = image.size
    if max(width, height) > limits.max_side or width * height > limits.max_pixels:
        raise ImageError(
            "IMAGE_DIMENSIONS_TOO_LARGE",
            f"the image is {width} x {height} pixels, "
            f"allowed are at most {limits.max_side} per side and {limits.max_pixels} in total",
        )


@dataclass(frozen=True, slots=True)
class _Work:
    """The decoding work: passes over the image, and whether a JPEG has its end marker."""

    passes: int = 1
    ended: bool = True


def _check_work(kind: str, image: ImageFile, data: bytes, limits: ImageLimits) -> _Work:
    """Check the decoding work, and return it."""
    if kind == "JPEG":
        max_scans = _FULL_SCANS * limits.max_pixels // (image.width * image.height)
        scans = read_jpeg_scans(data, max_scans)
        if scans.count > max_scans:
            raise ImageError(
                "IMAGE_TOO_COMPLEX", f"the JPEG has more than the allowed {max_scans} scans"
            )
        if not scans.ended and not scans.refined:
            raise ImageError("IMAGE_CORRUPT", "the JPEG is truncated: its last scans are missing")
        return _Work(max(scans.count, 1) * (1 if scans.ended else 2), scans.ended)
    # Pillow expands run-length coding in Python, pixel by pixel: seconds for a large image.
    if kind == "BMP" and any(tile.codec_name == "bmp_rle" for tile in image.tile):
        raise ImageError(
            "IMAGE_TYPE_UNSUPPORTED", "the BMP is run-length coded: save it uncompressed"
        )
    return _Work()


def _bytes_per_pixel(kind: str, image: ImageFile) -> int:
    """Return the peak memory of decoding: the codec's buffers, Pillow's pixels and the result.

    libjpeg keeps all coefficients of a progressive image, 2 bytes each; libwebp keeps two frames of
    an animation, and Pillow's plugin a third one as bytes.
    """
    codec = _CODEC_BYTES.get(kind, 0)
    if kind == "JPEG" and image.info.get("progressive"):
        codec = 2 * len(image.getbands())
    if image.width * image.height <= WHOLE_PIXELS:  # a second copy for the mode, and two results
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
    except (MemoryError, ImageError):
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
