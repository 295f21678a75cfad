"""An image has the same pixels whether it comes as bytes or was opened with Pillow, in any mode."""

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edge.detect.images import pixels as device_pixels
from servicekit.errors import SightlineError
from tests.unit.vision.pictures import encode, pattern, pixels
from vision import OWN_FORMATS, ImageError, ImageInfo, ImageLimits, decode_image, decode_opened
from vision import inspect_image as inspect

OWN = ImageLimits(formats=OWN_FORMATS)
RGB = pattern()
GREY = np.asarray(RGB.convert("L"))
GREY_RGB = np.stack([GREY] * 3, axis=2)
DEEP = GREY.astype(np.uint16) * 257  # 16 bits whose upper 8 are those of GREY
ALPHA = Image.fromarray(np.tile(np.arange(48, dtype=np.uint8) * 5, (32, 1)))


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(ALPHA)
    return image


def palette(*, transparent: bool) -> Image.Image:
    image = RGB.quantize(64)
    if transparent:
        image.info["transparency"] = bytes(range(64))
    return image


def deep(mode: str) -> Image.Image:
    order = "big" if mode == "I;16B" else "little"
    stored = DEEP.astype(">u2" if order == "big" else "<u2")
    return Image.frombytes(mode, RGB.size, stored.tobytes())


# Mode -> an image of it, its pixels, and by how much they may differ (colour spaces are rounded).
MODES: dict[str, tuple[Image.Image, NDArray[np.uint8], int]] = {
    "1": (RGB.convert("1"), np.asarray(RGB.convert("1").convert("RGB")), 0),
    "L": (RGB.convert("L"), GREY_RGB, 0),
    "LA": (with_alpha(RGB.convert("L")), GREY_RGB, 0),
    "La": (Image.merge("LA", (RGB.convert("L"), Image.new("L", RGB.size, 255))).convert("La"),
           GREY_RGB, 0),
    "P": (palette(transparent=False), np.asarray(palette(transparent=False).convert("RGB")), 0),
    "P with transparency": (
        palette(transparent=True), np.asarray(palette(transparent=False).convert("RGB")), 0),
    "PA": (palette(transparent=False).convert("PA"),
           np.asarray(palette(transparent=False).convert("RGB")), 0),
    "RGB": (RGB, pixels(RGB), 0),
    "RGBA": (with_alpha(RGB), pixels(RGB), 0),
    "RGBa": (Image.merge("RGBA", (*RGB.split(), Image.new("L", RGB.size, 128))).convert("RGBa"),
             pixels(RGB), 2),
    "RGBX": (RGB.convert("RGBX"), pixels(RGB), 0),
    "CMYK": (RGB.convert("CMYK"), pixels(RGB), 1),
    "YCbCr": (RGB.convert("YCbCr"), pixels(RGB), 3),
    "LAB": (Image.frombytes("LAB", RGB.size, bytes([128, 0, 0]) * (48 * 32)),
            np.full((32, 48, 3), 119, np.uint8), 2),
    "HSV": (RGB.convert("HSV"), pixels(RGB), 8),
    "I": (Image.fromarray(DEEP.astype(np.int32)), GREY_RGB, 0),
    "F": (Image.fromarray(GREY.astype(np.float32)), GREY_RGB, 0),
    "I;16": (deep("I;16"), GREY_RGB, 0),
    "I;16L": (deep("I;16L"), GREY_RGB, 0),
    "I;16B": (deep("I;16B"), GREY_RGB, 0),
    "I;16N": (deep("I;16N"), GREY_RGB, 0),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_pillow_has_its_pixels(mode: str) -> None:
    image, expected, tolerance = MODES[mode]
    assert image.mode == mode.partition(" ")[0]
    decoded = decode_opened(image)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - expected).max() <= tolerance
    assert np.array_equal(device_pixels(image), decoded)


def files() -> list[tuple[str, str]]:
    """Return each format with each mode that Pillow writes in it."""
    found = []
    for kind in OWN_FORMATS:
        for mode, (image, _, _) in MODES.items():
            try:
                with warnings.catch_warnings(action="ignore"):
                    encode(image, kind)
            except (OSError, KeyError, ValueError, SystemError):
                continue
            found.append((kind, mode))
    return found


FILES = files()


@pytest.mark.parametrize(("kind", "mode"), FILES)
def test_bytes_path_and_pillow_image_are_one(kind: str, mode: str, tmp_path: Path) -> None:
    data = encode(MODES[mode][0], kind)
    expected = decode_image(data, OWN)
    path = tmp_path / "picture"
    path.write_bytes(data)
    with Image.open(path) as opened, Image.open(io.BytesIO(data)) as loaded:
        loaded.load()
        for image in (data, path, str(path), opened, loaded):
            assert np.array_equal(device_pixels(image), expected)
    # The file holds the image: with its pixels where the format loses nothing.
    _, exact, tolerance = MODES[mode]
    if kind in ("PNG", "BMP", "TIFF", "PPM") and mode != "LAB":
        assert np.abs(expected.astype(int) - exact).max() <= tolerance


def test_the_table_has_every_format_and_most_modes() -> None:
    assert {kind for kind, _ in FILES} == set(OWN_FORMATS)
    assert len({mode for _, mode in FILES}) >= 15


TURNS = {3: 2, 6: -1, 8: 1}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_orientation_is_one(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(RGB, kind, exif=exif)
    expected = decode_image(data, OWN)
    assert expected.shape[:2] == ((48, 32) if orientation > 4 else (32, 48))
    stored = pixels(RGB).astype(int)
    upright = stored[:, ::-1] if orientation == 2 else np.rot90(stored, TURNS[orientation])
    assert np.abs(expected - upright).mean() < 8
    with Image.open(io.BytesIO(data)) as opened, Image.open(io.BytesIO(data)) as loaded:
        loaded.load()
        assert np.array_equal(decode_opened(opened), expected)
        assert np.array_equal(decode_opened(loaded), expected)


@pytest.mark.parametrize(
    ("samples", "mode"),
    [
        (np.full((2, 2), 65_536, np.int32), "I"),
        (np.full((2, 2), -1, np.int32), "I"),
        (np.full((2, 2), 256.0, np.float32), "F"),
        (np.full((2, 2), np.nan, np.float32), "F"),
        (np.array([[0, 0.5], [0.75, 1]], np.float32), "F"),  # as of OpenCV: it would be black
    ],
)
def test_samples_without_a_known_white_are_refused_by_both_doors(
    samples: NDArray[np.generic], mode: str
) -> None:
    image = Image.fromarray(samples)
    assert image.mode == mode
    with pytest.raises(ImageError, match=f"mode {mode} must be 0 to") as opened:
        decode_opened(image)
    with pytest.raises(ImageError, match=f"mode {mode} must be 0 to") as read:
        decode_image(encode(image, "TIFF"), OWN)
    assert opened.value.reason == read.value.reason == "IMAGE_TYPE_UNSUPPORTED"
    with pytest.raises(SightlineError, match="IMAGE_TYPE_UNSUPPORTED"):
        device_pixels(image)


def tiff(bits: int, data: bytes, *, subfile: int = 0) -> bytes:
    """Return a grey TIFF of one row of two pixels."""
    tags = [(254, 4, subfile), (256, 3, 2), (257, 3, 1), (258, 3, bits), (259, 3, 1), (262, 3, 1)]
    tags += [(273, 4, 150), (277, 3, 1), (278, 3, 1), (279, 4, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    header = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    return header.ljust(150, b"\0") + data


def test_a_tiff_of_12_bits_is_not_dark() -> None:
    data = tiff(12, bytes([0xFF, 0xF8, 0x00]))  # 4095 and 2048
    assert decode_image(data, OWN)[0, :, 0].tolist() == [255, 128]
    with Image.open(io.BytesIO(data)) as opened:
        assert decode_opened(opened)[0, :, 0].tolist() == [255, 128]


def test_a_preview_is_not_taken_for_the_image() -> None:
    assert decode_image(tiff(8, b"\x07\x09"), OWN)[0, :, 0].tolist() == [7, 9]
    with pytest.raises(ImageError, match="is a preview of another") as caught:
        decode_image(tiff(8, b"\x07\x09", subfile=1), OWN)
    assert caught.value.reason == "IMAGE_TYPE_UNSUPPORTED"


def test_the_first_of_several_images_counts() -> None:
    black = Image.new("RGB", RGB.size)
    many = {"save_all": True, "append_images": [black]}
    for kind in ("TIFF", "PNG"):
        assert np.array_equal(decode_image(encode(RGB, kind, **many), OWN), pixels(RGB))
    first = palette(transparent=False)
    gif = decode_image(encode(first, "GIF", **many), OWN)
    assert np.array_equal(gif, np.asarray(first.convert("RGB")))


@pytest.mark.parametrize("kind", OWN_FORMATS)
def test_strangers_get_no_decoder_beyond_the_contract(kind: str) -> None:
    data = encode(RGB, kind)
    if kind in ImageLimits().formats:
        assert inspect(data).format == kind
        return
    with pytest.raises(ImageError, match=f"the content is {kind}, allowed are JPEG, PNG") as caught:
        decode_image(data)
    assert caught.value.reason == "IMAGE_TYPE_UNSUPPORTED"
    info = inspect(data, OWN)
    assert (info.format, info.width, info.height) == (kind, 48, 32)
    assert isinstance(info, ImageInfo)


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PPM", "JPEG2000", "AVIF"])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_truncated_files_of_other_formats_are_corrupt(kind: str, share: float) -> None:
    data = encode(pattern(200, 150), kind)
    with pytest.raises(ImageError) as caught:
        decode_image(data[: int(len(data) * share)], OWN)
    assert caught.value.reason == "IMAGE_CORRUPT"


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PPM", "JPEG2000", "AVIF"])
def test_the_limits_hold_for_other_formats(kind: str) -> None:
    data = encode(RGB, kind)
    with pytest.raises(ImageError) as caught:
        decode_image(data, ImageLimits(max_pixels=48 * 32 - 1, formats=OWN_FORMATS))
    assert caught.value.reason == "IMAGE_DIMENSIONS_TOO_LARGE"
