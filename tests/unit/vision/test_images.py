"""Pictures by their content: every kind that cameras write, and everything that is none."""

import gc
import hashlib
import io
import random
import struct
import weakref
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.unit.vision.pictures import (
    bmp_claiming,
    chunk,
    encode,
    jpeg_claiming,
    many_scans,
    pattern,
    pixels,
    png_claiming,
    webp_claiming,
)
from vision import (
    ImageError,
    ImageInfo,
    ImageLimits,
    decode_image,
    inspect_image,
    open_image,
    rgb,
    sha256,
)

KINDS = ["JPEG", "PNG", "WEBP", "BMP"]
CLAIMING = {
    "JPEG": jpeg_claiming,
    "PNG": png_claiming,
    "WEBP": webp_claiming,
    "BMP": bmp_claiming,
}
REASONS = {
    "IMAGE_CORRUPT",
    "IMAGE_DIMENSIONS_TOO_LARGE",
    "IMAGE_TOO_COMPLEX",
    "IMAGE_TYPE_UNSUPPORTED",
}
LOSSLESS: dict[str, dict[str, object]] = {"PNG": {}, "BMP": {}, "WEBP": {"lossless": True}}


def refusal(data: bytes, limits: ImageLimits | None = None) -> ImageError:
    """Return the error of `decode_image`; `inspect_image` must refuse what a header shows."""
    with pytest.raises(ImageError) as caught:
        decode_image(data, limits or ImageLimits())
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
def test_type_and_dimensions_come_from_the_content(kind: str) -> None:
    info = inspect_image(encode(pattern(48, 32), kind))
    assert info == ImageInfo(kind, f"image/{kind.lower()}", 48, 32)


@pytest.mark.parametrize(("kind", "options"), LOSSLESS.items())
def test_lossless_images_decode_to_the_same_pixels(kind: str, options: dict[str, object]) -> None:
    decoded = decode_image(encode(pattern(), kind, **options))
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, pixels(pattern()))


def test_jpeg_decodes_as_opencv_does() -> None:
    cv2 = pytest.importorskip("cv2")
    data = encode(pattern(301, 211), "JPEG")
    theirs = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.array_equal(decode_image(data), theirs)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA"])
def test_every_png_mode_becomes_rgb(mode: str) -> None:
    image = pattern().convert("P" if mode == "PA" else mode)
    options: dict[str, object] = {"transparency": bytes([7] * 256)} if mode == "PA" else {}
    decoded = decode_image(encode(image, "PNG", **options))
    assert np.array_equal(decoded, pixels(image.convert("RGB")))


def test_alpha_is_dropped_and_colour_kept() -> None:
    image = pattern()
    image.putalpha(0)
    assert np.array_equal(decode_image(encode(image, "PNG")), pixels(pattern()))


@pytest.mark.parametrize("level", [0, 255, 256, 40_000, 65_535])
def test_16_bit_grey_keeps_its_upper_8_bits(level: int) -> None:
    data = encode(Image.fromarray(np.full((4, 5), level, dtype=np.uint16)), "PNG")
    assert np.array_equal(decode_image(data), np.full((4, 5, 3), level >> 8))


def test_16_bit_colour_keeps_its_upper_8_bits() -> None:
    line = b"\0" + struct.pack(">HHH", 0x12FF, 0x3400, 0xFFFF)
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(line)) + chunk(b"IEND")
    assert decode_image(b"\x89PNG\r\n\x1a\n" + parts).tolist() == [[[0x12, 0x34, 0xFF]]]


def test_cmyk_and_grey_jpegs_become_rgb() -> None:
    flat = Image.new("RGB", (16, 16), (200, 60, 20))
    cmyk = decode_image(encode(flat.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(cmyk.astype(int) - [200, 60, 20]).max() <= 3
    grey = decode_image(encode(flat.convert("L"), "JPEG"))
    assert grey.shape == (16, 16, 3)
    assert np.ptp(grey, axis=2).max() == 0


def test_the_first_image_of_an_animation_counts() -> None:
    second = Image.new("RGB", (48, 32))
    animation = encode(pattern(), "WEBP", lossless=True, save_all=True, append_images=[second])
    assert np.array_equal(decode_image(animation), pixels(pattern()))
    stereo = encode(pattern(), "MPO", save_all=True, append_images=[second])
    assert inspect_image(stereo).format == "JPEG"
    assert np.array_equal(decode_image(stereo), decode_image(encode(pattern(), "JPEG")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation: int) -> None:
    cv2 = pytest.importorskip("cv2")
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(pattern(48, 32), "JPEG", exif=exif)
    decoded = decode_image(data)
    assert decoded.shape == ((32, 48, 3) if orientation < 5 else (48, 32, 3))
    theirs = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.array_equal(decoded, theirs)
    assert (inspect_image(data).width, inspect_image(data).height) == (48, 32)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_exif_orientation_is_honoured_beyond_jpeg(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the stored picture has to be turned clockwise by 90 degrees
    data = encode(pattern(), kind, exif=exif, **LOSSLESS[kind])
    assert np.array_equal(decode_image(data), np.rot90(pixels(pattern()), k=-1))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_does_not_cost_the_image(kind: str, exif: bytes) -> None:
    data = encode(pattern(), kind, exif=exif)
    assert np.array_equal(decode_image(data), decode_image(encode(pattern(), kind)))


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_orientation_that_does_not_exist_means_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert decode_image(encode(pattern(48, 32), "JPEG", exif=exif)).shape == (32, 48, 3)


def test_no_bytes_are_empty() -> None:
    assert refusal(b"").reason == "IMAGE_EMPTY"


def test_too_many_bytes_are_refused_whatever_they_are() -> None:
    data = encode(pattern(), "PNG")
    assert inspect_image(data, ImageLimits(max_bytes=len(data)))
    error = refusal(data, ImageLimits(max_bytes=len(data) - 1))
    assert error.reason == "IMAGE_TOO_LARGE"
    assert str(len(data) - 1) in error.message


@pytest.mark.parametrize(
    "data",
    [
        b"just text",
        b"\xff",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"RIFF\x10\0\0\0WAVEfmt ",
        b"\0" * 100,
        encode(pattern(), "GIF"),
        encode(pattern(), "TIFF"),
    ],
)
def test_other_content_is_no_image(data: bytes) -> None:
    error = refusal(data)
    assert error.reason == "IMAGE_TYPE_UNSUPPORTED"
    assert "JPEG, PNG, WEBP, BMP" in error.message


def test_a_type_that_is_not_accepted_is_refused() -> None:
    data = encode(pattern(), "BMP")
    error = refusal(data, ImageLimits(formats=("JPEG", "PNG")))
    assert error.reason == "IMAGE_TYPE_UNSUPPORTED"
    assert "BMP" in error.message


@pytest.mark.parametrize("kind", KINDS)
def test_dimensions_are_refused_before_pixels_are_looked_at(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The pixels are broken: had anyone looked, the answer would be IMAGE_CORRUPT.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    limits = ImageLimits(max_side=100, max_pixels=5_000)
    for width, height in ((101, 16), (16, 101), (100, 51)):
        error = refusal(CLAIMING[kind](width, height), limits)
        assert error.reason == "IMAGE_DIMENSIONS_TOO_LARGE"
        assert f"{width} x {height}" in error.message
    assert inspect_image(CLAIMING[kind](100, 50), limits).width == 100


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_decompression_bombs_are_refused_by_default(kind: str) -> None:
    assert refusal(CLAIMING[kind](60_000, 60_000)).reason == "IMAGE_DIMENSIONS_TOO_LARGE"


def test_a_webp_canvas_beyond_pillows_own_limit_is_refused() -> None:
    assert refusal(webp_claiming(16_384, 16_384)).reason == "IMAGE_DIMENSIONS_TOO_LARGE"


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_images_without_pixels_are_corrupt(kind: str) -> None:
    with pytest.raises(ImageError) as caught:
        inspect_image(CLAIMING[kind](0, 5))
    assert caught.value.reason == "IMAGE_CORRUPT"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_truncated_images_are_corrupt(kind: str, share: float) -> None:
    data = encode(pattern(200, 150), kind)
    error = refusal(data[: max(int(len(data) * share), 16)])
    assert error.reason == "IMAGE_CORRUPT"
    assert kind in error.message


def test_a_png_that_fails_its_checksum_is_corrupt() -> None:
    data = bytearray(encode(pattern(), "PNG"))
    data[data.index(b"IHDR") + 20] ^= 1
    assert refusal(bytes(data)).reason == "IMAGE_CORRUPT"


def test_a_jpeg_of_comments_is_refused_unread() -> None:
    data = encode(pattern(), "JPEG")
    assert inspect_image(data[:2] + b"\xff\xfe\0\2" * 100 + data[2:])
    error = refusal(data[:2] + b"\xff\xfe\0\2" * 100_000 + data[2:])
    assert error.reason == "IMAGE_TOO_COMPLEX"


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_a_png_of_empty_chunks_is_refused_unread(before: bytes) -> None:
    data = encode(pattern(), "PNG")
    at = data.index(before) - 4
    assert decode_image(data[:at] + chunk(b"teSt") * 100 + data[at:]).shape == (32, 48, 3)
    error = refusal(data[:at] + chunk(b"teSt") * 100_000 + data[at:])
    assert error.reason == "IMAGE_TOO_COMPLEX"


def test_a_large_png_in_small_chunks_is_no_attack() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    lines = np.concatenate([np.zeros((1000, 1), np.uint8), noise.reshape(1000, 3000)], axis=1)
    stream = zlib.compress(lines.tobytes(), 0)
    parts = b"".join(chunk(b"IDAT", stream[at : at + 4096]) for at in range(0, len(stream), 4096))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1000, 1000, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + parts + chunk(b"IEND")
    assert np.array_equal(decode_image(data), noise)


def test_a_jpeg_with_hundreds_of_scans_is_refused() -> None:
    small = ImageLimits(max_pixels=48 * 32)  # allows 20 scans of a picture of this size
    assert decode_image(many_scans(20), small).shape == (32, 48, 3)
    error = refusal(many_scans(21), small)
    assert error.reason == "IMAGE_TOO_COMPLEX"
    assert decode_image(many_scans(100)).shape == (32, 48, 3)


def test_scans_of_thumbnails_and_behind_the_end_do_not_count() -> None:
    data = encode(pattern(), "JPEG")
    thumbnail = b"\xff\xda\0\2" * 100
    segment = b"\xff\xe5" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    padded = data[:2] + segment + data[2:] + b"\0\2" + thumbnail
    assert np.array_equal(decode_image(padded, ImageLimits(max_pixels=48 * 32)), decode_image(data))


@pytest.mark.parametrize("before", [b"\xff\x01", b"\xff\xfe\0\2", b"\xff\xff\xff", b"junk"])
def test_scans_cannot_hide_behind_what_libjpeg_skips(before: bytes) -> None:
    first, *others = many_scans(30).split(b"\xff\xda")
    data = b"\xff\xda".join([first, (before + b"\xff\xda").join(others)])
    assert decode_image(data).shape == (32, 48, 3)
    with pytest.raises(ImageError, match="more than the allowed 20 scans"):
        decode_image(data, ImageLimits(max_pixels=48 * 32))


def test_scans_cannot_hide_behind_restart_markers() -> None:
    data = many_scans(60, restart_marker_blocks=1)
    assert b"\xff\xd0" in data
    with pytest.raises(ImageError, match="more than the allowed 20 scans"):
        decode_image(data, ImageLimits(max_pixels=48 * 32))


@pytest.mark.parametrize("compression", [1, 2])
def test_run_length_coded_bmps_are_refused(compression: int) -> None:
    data = bmp_claiming(16, 16, bits=8 if compression == 1 else 4, compression=compression)
    error = refusal(data)
    assert error.reason == "IMAGE_TYPE_UNSUPPORTED"
    assert "run-length" in error.message


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_images_decode_or_are_refused_for_a_reason(kind: str) -> None:
    source, rng = encode(pattern(40, 24), kind), random.Random(7)
    limits, reasons = ImageLimits(max_pixels=100_000), set()
    for _ in range(400):
        data = bytearray(source)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(12, len(data))] = rng.randrange(256)
        try:
            decoded = decode_image(bytes(data), limits)
        except ImageError as error:
            reasons.add(error.reason)
        else:
            assert decoded.shape[2] == 3
            assert decoded.dtype == np.uint8
    assert "IMAGE_CORRUPT" in reasons
    assert reasons <= REASONS


def test_threads_decode_the_same() -> None:
    sources = [encode(pattern(200 + n, 150), kind) for n, kind in enumerate(KINDS * 8)]
    alone = [decode_image(data) for data in sources]
    with ThreadPoolExecutor(8) as pool:
        for sequential, parallel in zip(alone, pool.map(decode_image, sources), strict=True):
            assert np.array_equal(sequential, parallel)


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_bytes", 0), ("max_pixels", -1), ("max_side", 0), ("formats", ()), ("formats", ("SVG",))],
)
def test_limits_that_make_no_sense_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        ImageLimits(**{field: value})  # type: ignore[arg-type]


def test_memory_that_runs_out_is_no_fault_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", no_memory)
    with pytest.raises(MemoryError):
        decode_image(encode(pattern(), "PNG"))


def test_sha256_is_the_digest_of_the_bytes() -> None:
    assert sha256(b"abc") == hashlib.sha256(b"abc").digest()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_large_images_are_turned_strip_by_strip(
    monkeypatch: pytest.MonkeyPatch, orientation: int
) -> None:
    """Item 3: with the same pixels as at once."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(pattern(50, 34), "PNG", exif=exif)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    monkeypatch.setattr(rgb, "WHOLE_PIXELS", 0)
    monkeypatch.setattr(rgb, "_STRIP_PIXELS", 50 * 7)
    assert np.array_equal(decode_image(data), wanted)


def test_what_pillow_holds_is_let_go_once_an_image_is_decoded() -> None:
    """Item 3: a request keeps its opened pictures until it ends."""
    opened = open_image(encode(pattern(48, 32), "PNG"))
    assert opened.memory >= 3 * 48 * 32
    assert opened.effort == 48 * 32
    held = weakref.ref(opened._image)
    opened.decode()
    gc.collect()
    assert held() is None
    with pytest.raises(RuntimeError):
        opened.decode()


def test_a_progressive_jpeg_is_gone_over_once_for_each_scan() -> None:
    """Item 5: what a picture costs is known by more than its size."""
    once = open_image(encode(pattern(64, 64), "JPEG"))
    often = open_image(encode(pattern(64, 64), "JPEG", progressive=True))
    assert often.effort > 3 * once.effort
