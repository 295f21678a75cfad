"""Check a picture by its content, then decode it; never the other way round.

What a sender declares about a picture is not asked for. The type comes from the first bytes, the
dimensions from the header, and both are held against `ImageLimits` before a pixel is decoded or
memory for one is taken, so that a decompression bomb costs a header parse. Safe in threads.

Pillow's process-wide limits play no part, since other libraries switch them off; only its
``ImageFile.LOAD_TRUNCATED_IMAGES`` must stay off for truncated pictures to be refused.
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
from servicekit.vision.errors import ImageError
from servicekit.vision.guards import CountedReader, TooManyReadsError, count_jpeg_scans

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
_DECODING = 9  # bytes per pixel that decoding takes at most, of a progressive JPEG
_FULL_SCANS = 20  # scans allowed at the largest permitted size; smaller pictures may have more

# EXIF orientation (TIFF 6.0, tag 274) -> what turns the stored picture upright; 1 is upright.
_ORIENTATION = 0x0112
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What a picture may be at most.

    Attributes:
        max_bytes: size of the encoded picture.
        max_pixels: width times height. Decoding takes 3 bytes per pixel, a progressive JPEG 9.
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
    """What the header of a picture says.

    Attributes:
        format: ``JPEG``, ``PNG``, ``WEBP`` or ``BMP``.
        mime: the same as a media type, e.g. ``image/jpeg``.
        width: in pixels, as stored; the upright picture swaps the two where EXIF turns it.
        height: in pixels, as stored.
    """

    format: str
    mime: str
    width: int
    height: int


def sha256(data: bytes) -> bytes:
    """The SHA-256 of a picture's bytes, 32 bytes."""
    return hashlib.sha256(data).digest()


class OpenedImage:
    """A picture whose header is read and within the limits. `open_image` makes it.

    Reading the header costs a small picture a sixth of its decoding, so who checks first and
    decodes later keeps this. For one thread at a time.
    """

    def __init__(self, kind: str, image: ImageFile, reader: CountedReader, size: int) -> None:
        self._kind = kind
        self._image = image
        self._reader = reader
        self._size = size

    @property
    def info(self) -> ImageInfo:
        """Type and dimensions."""
        return ImageInfo(self._kind, _MIME[self._kind], self._image.width, self._image.height)

    def decode(self) -> NDArray[np.uint8]:
        """As `decode_image`.

        Raises:
            ImageError: the data is truncated or corrupt.
            MemoryError: there is no memory to decode it.
        """
        self._reader.reads_left = _HEADER_READS + 3 * (self._size // _BYTES_PER_CHUNK)
        with _refusing(self._kind, _DECODING * self._image.width * self._image.height):
            self._image.load()
            return np.asarray(_to_rgb(_upright(self._image)))


def open_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> OpenedImage:
    """Check a picture by its header, and leave it to be decoded later.

    Raises:
        ImageError: empty, over a limit, of no accepted type, or with an unreadable header.
    """
    kind = _sniff(data, limits)
    reader = CountedReader(data, _HEADER_READS)
    # libwebp takes two canvases of 4 bytes per pixel at once, whose size is not known before.
    with _refusing(kind, 8 * limits.max_pixels if kind == "WEBP" else len(data)):
        image = _OPENERS[kind](reader)
    _check_dimensions(image, limits)
    _check_work(kind, image, data, limits)
    return OpenedImage(kind, image, reader, len(data))


def inspect_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> ImageInfo:
    """Type and dimensions of a picture, within the limits, without decoding it.

    Raises:
        ImageError: as `open_image`.
    """
    return open_image(data, limits).info


def decode_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Decode a picture that passes `open_image`, and turn it upright.

    EXIF orientation is applied, so rows and columns of the result are the coordinate system of
    every box. Grey, palette and CMYK become RGB, 16-bit samples keep their upper 8 bits, alpha is
    dropped (as OpenCV does), and of an animation the first picture counts.

    Returns:
        RGB ``[H, W, 3]``, possibly read-only.

    Raises:
        ImageError: what `open_image` refuses, and data that is truncated or corrupt.
    """
    return open_image(data, limits).decode()


def _sniff(data: bytes, limits: ImageLimits) -> str:
    if not data:
        raise ImageError("IMAGE_EMPTY", "the picture has no bytes")
    if len(data) > limits.max_bytes:
        raise ImageError(
            "IMAGE_TOO_LARGE", f"the picture has {len(data)} bytes, at most {limits.max_bytes}"
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
            f"the picture is {width} x {height} pixels, "
            f"at most {limits.max_side} a side and {limits.max_pixels} in all",
        )


def _check_work(kind: str, image: ImageFile, data: bytes, limits: ImageLimits) -> None:
    if kind == "JPEG":
        most = _FULL_SCANS * limits.max_pixels // (image.width * image.height)
        if count_jpeg_scans(data, most) > most:
            raise ImageError("IMAGE_TOO_COMPLEX", f"the JPEG has more than {most} scans")
    # Pillow expands these in Python, pixel by pixel: seconds for a large one.
    if kind == "BMP" and any(tile.codec_name == "bmp_rle" for tile in image.tile):
        raise ImageError("IMAGE_TYPE_UNSUPPORTED", "the BMP is run-length coded")


@contextmanager
def _refusing(kind: str, size: int) -> Iterator[None]:
    """Turn whatever Pillow raises over bad data into `ImageError`.

    A lack of memory is no fault of the picture: libjpeg's looks like a broken stream, and so does
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


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _TURN.get(image.getexif().get(_ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:  # as above; a damaged tag must not cost the picture
        logger.debug("unreadable EXIF, taken as upright", exc_info=True)
        return image
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip these at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P":  # by way of RGBA, or Pillow warns of the transparency that is dropped
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")
