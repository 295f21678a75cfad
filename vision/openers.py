"""Pillow's readers by image type: those of the contract, and those of a device's own files."""

from collections.abc import Callable
from importlib import import_module
from typing import cast

from PIL import features
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from vision.errors import ImageError
from vision.guards import CountedReader

MIME = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "GIF": "image/gif",
    "PPM": "image/x-portable-anymap",
    "JPEG2000": "image/jp2",
    "AVIF": "image/avif",
}

_OPENERS: dict[str, Callable[[CountedReader], ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "BMP": BmpImageFile,
}
# Loaded when they are needed: a server never needs them.
_OTHERS = {
    "TIFF": ("PIL.TiffImagePlugin", "TiffImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
    "PPM": ("PIL.PpmImagePlugin", "PpmImageFile"),
    "JPEG2000": ("PIL.Jpeg2KImagePlugin", "Jpeg2KImageFile"),
    "AVIF": ("PIL.AvifImagePlugin", "AvifImageFile"),
}
_CODECS = {"JPEG2000": "jpg_2000", "AVIF": "avif"}
"""Parts that Pillow may be built without."""

_SUBFILE_TYPE, _REDUCED = 254, 1  # TIFF 6.0: bit 0 marks a smaller version of another image


def opener(kind: str) -> Callable[[CountedReader], ImageFile]:
    """Return Pillow's reader of an image type.

    Args:
        kind: one of `OWN_FORMATS`.

    Raises:
        ImageError: ``IMAGE_TYPE_UNSUPPORTED``: Pillow was built without it.
    """
    if kind in _OPENERS:
        return _OPENERS[kind]
    if kind in _CODECS and not features.check(_CODECS[kind]):
        raise ImageError(
            "IMAGE_TYPE_UNSUPPORTED",
            f"the content is {kind}, which the installed Pillow was built without",
        )
    module, name = _OTHERS[kind]
    return cast("Callable[[CountedReader], ImageFile]", getattr(import_module(module), name))


def check_first_page(kind: str, image: ImageFile) -> None:
    """Check that the first page of a TIFF is an image of its own.

    The raw files of cameras (DNG, NEF, ...) are TIFFs whose first page is a small preview.

    Raises:
        ImageError: ``IMAGE_TYPE_UNSUPPORTED``: it is a preview of another page.
    """
    if kind != "TIFF":
        return
    subfile = getattr(image, "tag_v2", {}).get(_SUBFILE_TYPE, 0)
    if isinstance(subfile, int) and subfile & _REDUCED:
        raise ImageError(
            "IMAGE_TYPE_UNSUPPORTED",
            "the first page of the TIFF is a preview of another, as in the raw file of a camera:"
            " convert it to a JPEG or PNG",
        )
