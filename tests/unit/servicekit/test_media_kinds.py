"""Images and videos by their first bytes."""

import pytest

from servicekit.media_kinds import image_kind, is_video
from tests.unit.vision.pictures import encode, pattern


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        *((kind, kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF")),
        ("JPEG2000", "JPEG2000"),
        ("JPEG", "MPO"),
        ("BMP", "BMP"),
    ],
)
def test_images_that_pillow_writes(kind: str, form: str) -> None:
    data = encode(pattern(), form)
    assert image_kind(data[:64]) == kind
    assert not is_video(data)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIF"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIF"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "AVIF"),
        (b"\0\0\0\x18ftypavis\0\0\0\0avisavif", "AVIF"),
        (b"MM\0+\0\x08", "TIFF"),
        (b"Pf\n1 1\n-1\n", "PPM"),
        (b"\xff\x4f\xff\x51\0\x2f", "JPEG2000"),
        (b"P5", None),
        (b"P9\n1 1", None),
        (b"", None),
        (b"text", None),
    ],
)
def test_images_by_their_head(head: bytes, kind: str | None) -> None:
    assert image_kind(head) == kind


@pytest.mark.parametrize(
    "head",
    [
        b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41",
        b"\0\0\0\x14ftypqt  \0\0\0\0qt  ",
        b"\0\0\0\x1cftyp3gp4\0\0\x02\0",
        b"\0\0\0\x08wide\0\0\0\0mdat",
        b"\x1a\x45\xdf\xa3\xa3\x42\x86\x81",
        b"FLV\x01\x05\0\0\0\x09",
        b"RIFF\x2e\x1c\0\0AVI LIST",
        b"OggS\0\x02",
        b".RMF\0\0\0\x12",
        b"DHAV\xfd\0\0\0",
        b"YUV4MPEG2 W64 H48",
        b"DKIF\0\0\x20\0VP80",
        b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9",
        b"\0\0\x01\xba\x44",
        b"\0\0\0\x01\x67\x64",
        b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d",
        (b"\x47" + bytes(187)) * 4,
        (bytes(4) + b"\x47" + bytes(187)) * 4,
        (b"\x47" + bytes(203)) * 4,
    ],
)
def test_videos_by_their_head(head: bytes) -> None:
    assert is_video(head)
    assert image_kind(head) is None


@pytest.mark.parametrize(
    "head", [b"", b"text", b"RIFF\x24\x10\0\0WAVEfmt ", b"%PDF-1.7", b"G" + b"x" * 700, bytes(600)]
)
def test_what_is_neither(head: bytes) -> None:
    assert not is_video(head)
    assert image_kind(head) is None
