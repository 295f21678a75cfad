"""A JPEG may lack its end marker, and nothing else."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.vision.pictures import encode, pattern, pixels
from vision import ImageError, decode_image, decode_opened, open_image

_CORNER_BYTES = 24
"""Bytes at the end that hold less than the last block, in which an 8 x 8 corner may be wrong."""
END = b"\xff\xd9"
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (72, 104, 3), np.uint8))
KINDS = {
    "baseline": encode(pattern(104, 72), "JPEG"),
    "noise": encode(NOISE, "JPEG", quality=95),
    "grey": encode(pattern(104, 72).convert("L"), "JPEG"),
    "cmyk": encode(pattern(104, 72).convert("CMYK"), "JPEG"),
    "4:4:4": encode(pattern(104, 72), "JPEG", subsampling=0),
    "restarts": encode(pattern(104, 72), "JPEG", restart_marker_blocks=1),
    "progressive": encode(pattern(104, 72), "JPEG", progressive=True),
    "progressive noise": encode(NOISE, "JPEG", progressive=True),
}


def refusal(data: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", [b"", b"\xff", b"\0" * 3000, b"\xff\xff", b"\0"])
def test_a_jpeg_without_its_end_marker_is_whole(kind: str, tail: bytes) -> None:
    whole = KINDS[kind]
    assert whole.endswith(END)
    data = whole[:-2] + tail
    assert np.array_equal(decode_image(data), decode_image(whole))
    opened = Image.open(io.BytesIO(data))
    with opened:
        assert np.array_equal(decode_opened(opened), decode_image(whole))


def test_opencv_reads_the_same_pixels(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "a.jpg"
    path.write_bytes(KINDS["noise"][:-2])
    assert np.array_equal(decode_image(path.read_bytes()), cv2.imread(str(path))[..., ::-1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_that_lacks_more_is_refused_wherever_it_was_cut(kind: str) -> None:
    whole = KINDS[kind]
    begin = whole.index(b"\xff\xda") + 16
    step = max((len(whole) - begin) // 40, 1)
    # Cuts between the scans of a progressive JPEG leave a coarse image of all rows.
    scans = [
        at for at in range(begin, len(whole)) if whole[at : at + 2] in (b"\xff\xda", b"\xff\xc4")
    ]
    for cut in {*range(begin, len(whole) - _CORNER_BYTES, step), *scans, *(at + 1 for at in scans)}:
        for tail in (b"", b"\0" * 5000):
            error = refusal(whole[:cut] + tail)
            assert error.reason == "IMAGE_CORRUPT", cut
    with Image.open(io.BytesIO(whole[: begin + 40])) as opened, pytest.raises(ImageError):
        decode_opened(opened)


def test_rows_that_are_missing_are_named() -> None:
    assert refusal(KINDS["noise"][:3000]).message == (
        "the JPEG is truncated: pixels at its end are missing"
    )
    assert "its last scans are missing" in refusal(KINDS["progressive"][:700]).message


def test_twice_the_work_is_counted_as_such() -> None:
    for kind in ("baseline", "progressive"):
        whole = KINDS[kind]
        assert open_image(whole[:-2]).effort == 2 * open_image(whole).effort
    assert open_image(KINDS["baseline"]).effort == pattern(104, 72).width * 72


def test_the_first_image_of_an_mpo_ends_before_the_second() -> None:
    stereo = encode(pattern(), "MPO", save_all=True, append_images=[NOISE])
    cut = stereo[: len(stereo) // 2 + 200]
    assert np.array_equal(decode_image(cut), decode_image(encode(pattern(), "JPEG")))
    with Image.open(io.BytesIO(stereo)) as opened:
        assert opened.format == "MPO"
        assert np.array_equal(decode_opened(opened), decode_image(stereo))
    assert pixels(pattern()).shape == decode_image(stereo).shape
