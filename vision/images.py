"""Check an image by its content, then decode it; never the other way round.

What a sender declares about an image is not asked for. The type comes from the first bytes, the
dimensions from the header, and both are held against `ImageLimits` before a pixel is decoded or
memory for one is taken, so that a decompression bomb costs a header parse. Safe in threads.

Pillow's process-wide limits play no part, since other libraries switch them off; only its
``ImageFile.LOAD_TRUNCATED_IMAGES`` must stay off for truncated images to be refused.
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
_BYTES_PER_CHUNK = 4_096  # PNG writers put 8 KiB and more into a chunk, and each is three reads
_FULL_SCANS = 20  # scans allowed at the largest permitted size; smaller images may have more

# EXIF orientation (TIFF 6.0, tag 274) -> what turns the stored image upright; 1 is upright.
_ORIENTATION = 0x0112
_SWAPPING = frozenset({5, 6, 7, 8})
# Upright pixels -> a view of them that has the rows and columns of the stored image.
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
    """What an image may be at most.

    Attributes:
        max_bytes: size of the encoded image.
        max_pixels: width times height. Decoding takes 7 bytes per pixel or more: see
            `OpenedImage.memory`.
        max_side: width or height, in pixels.
        formats: accepted types, out of JPEG, PNG, WEBP and BMP.

    Raises:
        ValueError: a bound below 1, no format, or one that is not of the four.
    """

    max_bytes: int = 10 * 1024 * 1024
    max_pixels: int = 50_000_000
    max_side: int = 16_384
    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP")

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "max_side"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, is {getattr(self, name)}")
        if not self.formats or not set(self.formats) <= _OPENERS.keys():
            raise ValueError(f"formats must be some of {list(_OPENERS)}, are {list(self.formats)}")


DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What the header of an image says.

    Attributes:
        format: ``JPEG``, ``PNG``, ``WEBP`` or ``BMP``.
        mime: the same as a media type, e.g. ``image/jpeg``.
        width: in pixels, as stored; the upright image swaps the two where EXIF turns it.
        height: in pixels, as stored.
    """

    format: str
    mime: str
    width: int
    height: int


def sha256(data: bytes) -> bytes:
    """The SHA-256 of an image's bytes, 32 bytes."""
    return hashlib.sha256(data).digest()


class OpenedImage:
    """An image whose header is read and within the limits. `open_image` makes it.

    Reading the header costs a small image a sixth of its decoding, so who checks first and
    decodes later keeps this. For one thread at a time.

    Attributes:
        info: type and dimensions.
        effort: pixels that decoding goes over: a progressive JPEG's once for each scan.
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
        """Bytes that decoding takes at its peak, with the pixels that it returns."""
        return self.info.width * self.info.height * self._bytes_per_pixel

    def decode(self) -> NDArray[np.uint8]:
        """As `decode_image`. Once: what Pillow holds of the image is then let go.

        Raises:
            ImageError: the data is truncated or corrupt.
            MemoryError: there is no memory to decode it.
            RuntimeError: it has been decoded before.
        """
        image, self._image = self._image, None
        if image is None:
            raise RuntimeError("an image is decoded once")
        self._reader.reads_left = _HEADER_READS + 3 * (self._size // _BYTES_PER_CHUNK)
        with _refusing(self.info.format, self.memory):
            image.load()
            return _upright_rgb(image)


def open_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> OpenedImage:
    """Check an image by its header, and leave it to be decoded later.

    Raises:
        ImageError: empty, over a limit, of no accepted type, or with an unreadable header.
    """
    kind = _sniff(data, limits)
    reader = CountedReader(data, _HEADER_READS)
    # libwebp takes two canvases of 4 bytes per pixel at once, whose size is not known before.
    with _refusing(kind, 8 * limits.max_pixels if kind == "WEBP" else len(data)):
        image = _OPENERS[kind](reader)
    _check_dimensions(image, limits)
    scans = _check_work(kind, image, data, limits)
    return OpenedImage(kind, image, reader, len(data), scans)


def inspect_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> ImageInfo:
    """Type and dimensions of an image, within the limits, without decoding it.

    Raises:
        ImageError: as `open_image`.
    """
    return open_image(data, limits).info


def decode_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Decode an image that passes `open_image`, and turn it upright.

    EXIF orientation is applied, so rows and columns of the result are the coordinate system of
    every box. Grey, palette and CMYK become RGB, 16-bit samples keep their upper 8 bits, alpha is
    dropped (as OpenCV does), and of an animation the first image counts.

    Returns:
        RGB ``[H, W, 3]``, possibly read-only.

    Raises:
        ImageError: what `open_image` refuses, and data that is truncated or corrupt.
    """
    return open_image(data, limits).decode()


def _sniff(data: bytes, limits: ImageLimits) -> str:
    if not data:
        raise ImageError("IMAGE_EMPTY", "the image has no bytes")
    if len(data) > limits.max_bytes:
        raise ImageError(
            "IMAGE_TOO_LARGE", f"the image has {len(data)} bytes, at most {limits.max_bytes}"
        )
    kind = _kind_by_signature(data)
    if kind not in limits.formats:
        raise ImageError(
            "IMAGE_TYPE_UNSUPPORTED",
            f"the content is {kind or 'no known type'}, accepted are {', '.join(limits.formats)}",
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
            f"at most {limits.max_side} a side and {limits.max_pixels} in all",
        )


def _check_work(kind: str, image: ImageFile, data: bytes, limits: ImageLimits) -> int:
    """Return how often decoding goes over the image."""
    scans = 1
    if kind == "JPEG":
        most = _FULL_SCANS * limits.max_pixels // (image.width * image.height)
        scans = count_jpeg_scans(data, most)
        if scans > most:
            raise ImageError("IMAGE_TOO_COMPLEX", f"the JPEG has more than {most} scans")
    # Pillow expands these in Python, pixel by pixel: seconds for a large one.
    if kind == "BMP" and any(tile.codec_name == "bmp_rle" for tile in image.tile):
        raise ImageError("IMAGE_TYPE_UNSUPPORTED", "the BMP is run-length coded")
    return scans


def _bytes_per_pixel(kind: str, image: ImageFile) -> int:
    """Return what decoding holds at its peak: Pillow's pixels, the result, and what comes before.

    libjpeg holds the coefficients of all of a progressive image, 2 bytes each; libwebp two
    images of an animation, and Pillow's plugin a third as bytes.
    """
    before = 0
    if kind == "JPEG" and image.info.get("progressive"):
        before = 2 * len(image.getbands())
    elif kind == "WEBP":
        before = 12
    if image.width * image.height <= _WHOLE_PIXELS:  # one more for its mode, and two results
        return 2 * _PILLOW_BYTES + max(before, 2 * _RGB_BYTES)
    return _PILLOW_BYTES + max(before, _RGB_BYTES)


@contextmanager
def _refusing(kind: str, size: int) -> Iterator[None]:
    """Turn whatever Pillow raises over bad data into `ImageError`.

    A lack of memory is no fault of the image: libjpeg's looks like a broken stream, and so does
    that of others. `size` is what the work takes, bytes.
    """
    try:
        yield
    except MemoryError:
        raise
    except TooManyReadsError:
        raise ImageError("IMAGE_TOO_COMPLEX", f"the {kind} has too many segments") from None
    except Image.DecompressionBombError as error:
        raise ImageError("IMAGE_DIMENSIONS_TOO_LARGE", str(error)) from error
    except Exception as error:  # Pillow's parsers document no closed set
        if is_to_blame(error, size):
            raise MemoryError(f"no memory to decode a {kind}") from error
        raise ImageError("IMAGE_CORRUPT", f"the {kind} cannot be read: {error}") from error


def _upright_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels; large ones strip by strip, since each step at once takes as much again."""
    turn = _orientation(image)
    width, height = image.size
    if width * height <= _WHOLE_PIXELS and turn == 1:
        return np.asarray(_to_rgb(image))
    swapped = turn in _SWAPPING
    pixels = np.empty((width, height, 3) if swapped else (height, width, 3), dtype=np.uint8)
    stored = _STORED[turn](pixels)
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
    except Exception:  # as above; a damaged tag must not cost the image
        logger.debug("unreadable EXIF, taken as upright", exc_info=True)
        return 1
    return orientation if orientation in _STORED else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip these at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P":  # by way of RGBA, or Pillow warns of the transparency that is dropped
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")
