"""All forms of an image convert to the same pixels; invalid ones are errors that name the field."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from edge.detect.images import encoded, pixels, size_of
from edge.detect.limits import DeviceImageLimits
from servicekit.errors import SightlineError
from vision import decode_image

RED_LEFT = np.zeros((4, 6, 3), np.uint8)
RED_LEFT[:, :3] = (255, 0, 0)
ROTATED = PIL.Image.Exif()
ROTATED[0x0112] = 6  # stored lying on its left side


def png(array: NDArray[np.uint8] = RED_LEFT, **options: Any) -> bytes:
    out = io.BytesIO()
    PIL.Image.fromarray(array).save(out, "PNG", **options)
    return out.getvalue()


def test_all_forms_have_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    with PIL.Image.open(path) as opened:
        for image in (RED_LEFT, png(), path, str(path), opened):
            assert np.array_equal(pixels(image), RED_LEFT)


def test_a_rotated_image_is_turned_upright_in_every_form(tmp_path: Path) -> None:
    data = png(exif=ROTATED)
    upright = np.rot90(RED_LEFT, -1)
    assert np.array_equal(pixels(data), upright)
    with PIL.Image.open(io.BytesIO(data)) as opened:
        assert np.array_equal(pixels(opened), upright)
        sent = encoded(opened, array_format="png")
    assert np.array_equal(pixels(sent), upright)


def test_grey_and_transparent_images_of_pillow_become_rgb() -> None:
    grey = PIL.Image.new("L", (2, 2), 7)
    assert pixels(grey).tolist() == [[[7, 7, 7]] * 2] * 2
    assert pixels(PIL.Image.new("RGBA", (2, 2), (1, 2, 3, 0))).shape == (2, 2, 3)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "IMAGE_EMPTY"),
        (b"no picture at all", "IMAGE_TYPE_UNSUPPORTED"),
        (png()[:40], "IMAGE_CORRUPT"),
        ("no/such/file.png", "IMAGE_FILE_UNREADABLE"),
        (Path("no/such/file.png"), "IMAGE_FILE_UNREADABLE"),
        ("with\0nul", "IMAGE_FILE_UNREADABLE"),
        (RED_LEFT[..., 0], "INVALID_FIELD"),
        (RED_LEFT.astype(np.float32), "INVALID_FIELD"),
        (RED_LEFT[:0], "INVALID_FIELD"),
        (np.zeros((4, 6, 4), np.uint8), "INVALID_FIELD"),
        (None, "INVALID_FIELD"),
        (bytearray(b"mutable"), "INVALID_FIELD"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, reason: str) -> None:
    with pytest.raises(SightlineError) as caught:
        pixels(image, "images[2]")
    assert caught.value.reason == reason
    assert caught.value.category == "validation"
    assert [violation.field for violation in caught.value.violations] == ["images[2]"]


@pytest.mark.parametrize(
    ("array", "advice"),
    [
        (RED_LEFT[..., 0], "repeat a grey image in three channels"),
        (np.zeros((4, 6, 4), np.uint8), "drop alpha"),
        (RED_LEFT.astype(np.float32), "scale its levels to 0 to 255"),
        (RED_LEFT.astype(np.uint16), "scale its levels to 0 to 255"),
        (RED_LEFT.astype(bool), "scale its levels to 0 to 255"),
    ],
)
def test_an_array_that_is_nearly_an_image_is_refused_with_advice(
    array: NDArray[Any], advice: str
) -> None:
    with pytest.raises(SightlineError, match=advice) as caught:
        pixels(array)
    assert f"got {array.dtype} {array.shape}: " in caught.value.message


def test_a_device_reads_more_than_a_server_takes(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    wide = np.zeros((2, 20_000, 3), np.uint8)
    path.write_bytes(png(wide))
    assert pixels(path).shape == wide.shape
    heavy = np.zeros((1900, 2000, 3), np.uint8)
    data = png(heavy, compress_level=0)
    assert len(data) > 10 << 20
    assert np.array_equal(pixels(data), heavy)
    out = io.BytesIO()
    PIL.Image.new("1", (7200, 7200)).save(out, "PNG")  # 51.8 million pixels
    assert size_of(out.getvalue()) == (7200, 7200)
    with pytest.raises(SightlineError, match="IMAGE_DIMENSIONS_TOO_LARGE"):
        size_of(out.getvalue(), limits=DeviceImageLimits(max_pixels=7200 * 7200 - 1))


def test_the_limits_of_the_device_hold_for_paths_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    few_bytes = DeviceImageLimits(max_bytes=len(png()) - 1)
    few_pixels = DeviceImageLimits(max_pixels=23)
    for image in (path, png()):
        for limits, reason in (
            (few_bytes, "IMAGE_TOO_LARGE"),
            (few_pixels, "IMAGE_DIMENSIONS_TOO_LARGE"),
        ):
            with pytest.raises(SightlineError) as caught:
                pixels(image, limits=limits)
            assert caught.value.reason == reason
        with pytest.raises(SightlineError, match="max_image_bytes"):
            encoded(image, limits=few_bytes)
    assert pixels(path, limits=DeviceImageLimits(len(png()), 24)).shape == RED_LEFT.shape


def test_a_file_that_never_ends_is_read_up_to_the_limit() -> None:
    with pytest.raises(SightlineError, match="IMAGE_TOO_LARGE"):
        pixels("/dev/zero", limits=DeviceImageLimits(max_bytes=1 << 16))


@pytest.mark.parametrize("field", ["max_bytes", "max_pixels"])
def test_limits_below_1_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        DeviceImageLimits(**{field: 0})


def test_the_size_is_known_without_decoding(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    path = tmp_path / "cut.png"
    path.write_bytes(png(noise)[:3000])
    for image in (path, path.read_bytes(), noise, PIL.Image.fromarray(noise)):
        assert size_of(image) == (60, 40)


def test_damage_that_shows_only_when_pillow_reads_the_pixels_is_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    cut = PIL.Image.open(io.BytesIO(png(noise)[:3000]))
    with cut, pytest.raises(SightlineError, match="IMAGE_CORRUPT"):
        pixels(cut)


def test_pixels_are_sent_as_jpeg_or_exactly_as_png() -> None:
    smooth = np.linspace(0, 255, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    jpeg, exact = encoded(smooth), encoded(smooth, array_format="png")
    assert (jpeg[:3], exact[1:4]) == (b"\xff\xd8\xff", b"PNG")
    assert np.array_equal(pixels(exact), smooth)
    assert np.abs(pixels(jpeg).astype(int) - smooth).max() < 24


def test_encoded_images_are_sent_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"the service checks what it is")
    assert encoded(path) == encoded(str(path)) == path.read_bytes()
    assert encoded(b"bytes") == b"bytes"


OTHERS = ["TIFF", "GIF", "PPM", "JPEG2000", "AVIF"]


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("array_format", ["jpeg", "png"])
def test_files_that_the_service_does_not_decode_are_encoded(
    kind: str, array_format: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    PIL.Image.fromarray(RED_LEFT).save(path, kind)
    for image in (path, path.read_bytes()):
        sent = encoded(image, array_format=array_format)
        decoded = decode_image(sent)  # with the service's limits
        assert decoded.shape == RED_LEFT.shape
        if array_format == "png":
            assert np.array_equal(decoded, pixels(path))


def test_damage_of_such_a_file_is_found_before_it_is_sent(tmp_path: Path) -> None:
    out = io.BytesIO()
    PIL.Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(out, "TIFF")
    with pytest.raises(SightlineError, match=r"images\[3\] is refused") as caught:
        encoded(out.getvalue()[:2000], field="images[3]")
    assert caught.value.reason == "IMAGE_CORRUPT"


def test_a_type_that_nobody_decodes_is_left_to_the_service() -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    assert encoded(heic) == heic
    with pytest.raises(SightlineError, match="the content is HEIF, allowed are"):
        pixels(heic)


def test_a_refusal_says_what_was_found() -> None:
    for image, message in (
        (b"", "image is refused: the image is empty: 0 bytes"),
        (
            "no/such.png",
            "image must be a file that can be read, got 'no/such.png': No such file or directory",
        ),
    ):
        with pytest.raises(SightlineError) as caught:
            pixels(image)
        assert caught.value.message == message


def test_nothing_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    for image in (b"", tmp_path / "empty.jpg"):
        with pytest.raises(SightlineError, match="IMAGE_EMPTY"):
            encoded(image)
