"""All forms of an image convert to the same pixels; invalid ones are errors that name the field."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from edge.detect.images import encoded, pixels
from servicekit.errors import SightlineError

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
