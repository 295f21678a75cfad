"""Small images of every accepted format, and ways to damage their bytes."""

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

from tests.unit.vision.pictures import encode, pattern

_SIDES = (0, 1, 2, 255, 256, 4095, 16_383, 16_384, 16_385, 32_767, 65_535, 2**31 - 1, 2**32 - 1)
_PNG_FIRST = 8
_EXIF_BYTES = 80
_ORIENTATION = 0x0112


def pictures() -> list[bytes]:
    """Return one encoded image of each format, from hundreds to thousands of bytes."""
    plain = pattern(48, 32)
    turned = Image.Exif()
    turned[_ORIENTATION] = 6
    deep = Image.fromarray(np.arange(48 * 32, dtype=np.uint16).reshape(32, 48) * 42)
    frames = [pattern(48, 32).rotate(angle) for angle in (90, 180)]
    return [
        encode(plain, "JPEG"),
        encode(plain, "JPEG", progressive=True),
        encode(plain, "JPEG", exif=turned, restart_marker_blocks=2),
        encode(plain.convert("L"), "JPEG"),
        encode(plain.convert("CMYK"), "JPEG"),
        encode(plain, "PNG"),
        encode(plain.convert("P"), "PNG", transparency=0),
        encode(plain.convert("1"), "PNG"),
        encode(plain.convert("RGBA"), "PNG", exif=turned),
        encode(deep, "PNG"),
        encode(plain, "WEBP"),
        encode(plain, "WEBP", lossless=True, exif=turned),
        encode(plain, "WEBP", save_all=True, append_images=frames, duration=40),
        encode(plain, "BMP"),
        encode(plain.convert("P"), "BMP"),
        encode(plain.convert("1"), "BMP"),
    ]


def damaged_pictures(seed: int, count: int) -> Iterator[bytes]:
    """Yield this many damaged images, the same ones for the same seed."""
    chance, originals = random.Random(seed), pictures()
    return (damaged_picture(originals, chance) for _ in range(count))


def damaged_picture(originals: Sequence[bytes], chance: random.Random) -> bytes:
    """Return one of the images, damaged in one to five ways."""
    data = bytearray(chance.choice(originals))
    for _ in range(chance.choice((1, 1, 1, 2, 2, 5))):
        if data:
            chance.choice(_DAMAGES)(data, originals, chance)
    if chance.random() < 0.5:
        _mend_checksums(data)  # otherwise the checksums would reveal most damage to a PNG
    return bytes(data)


_Damage = Callable[[bytearray, Sequence[bytes], random.Random], None]


def _flip_bit(data: bytearray, _others: Sequence[bytes], chance: random.Random) -> None:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _edit_header(data: bytearray, _others: Sequence[bytes], chance: random.Random) -> None:
    data[chance.randrange(min(len(data), 64))] = chance.choice((0, 1, 127, 128, 254, 255))


def _truncate(data: bytearray, _others: Sequence[bytes], chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def _cut_out(data: bytearray, _others: Sequence[bytes], chance: random.Random) -> None:
    at, end = _span(data, chance)
    del data[at:end]


def _insert(data: bytearray, _others: Sequence[bytes], chance: random.Random) -> None:
    at = chance.randrange(len(data) + 1)
    data[at:at] = chance.choice((chance.randbytes, bytes))(chance.randrange(1, 300))


def _repeat(data: bytearray, _others: Sequence[bytes], chance: random.Random) -> None:
    at, end = _span(data, chance)
    data[at:at] = data[at:end] * chance.choice((1, 1, 2, 50))


def _splice(data: bytearray, others: Sequence[bytes], chance: random.Random) -> None:
    other = chance.choice(others)
    at, end = chance.randrange(len(data) + 1), chance.randrange(len(other) + 1)
    data[at:] = other[end:]


def _repeat_segment(data: bytearray, _others: Sequence[bytes], chance: random.Random) -> None:
    """Repeat the data between two markers of a JPEG, or two chunks of another format."""
    starts = [at for at in range(len(data) - 1) if _begins_segment(data, at)]
    if len(starts) < 2:
        return
    begin = chance.randrange(len(starts) - 1)
    at, end = starts[begin], starts[begin + 1]
    data[at:at] = data[at:end] * chance.choice((1, 2, 30))


def _begins_segment(data: bytearray, at: int) -> bool:
    if data[0] == 0xFF:
        return data[at] == 0xFF and data[at + 1] not in (0, 0xFF)
    return bytes(data[at : at + 4]).isalpha()


def _claim_size(data: bytearray, _others: Sequence[bytes], chance: random.Random) -> None:
    """Overwrite the width or height in the header."""
    side = chance.choice((*_SIDES, chance.getrandbits(16)))
    half = chance.randrange(2)
    if data[:4] == b"\x89PNG":
        at, size = 16 + 4 * half, struct.pack(">I", side)
    elif data[:2] == b"BM":
        at, size = 18 + 4 * half, struct.pack("<I", side)
    elif data[:4] == b"RIFF":
        at, size = (24, 26, 21)[chance.randrange(3)] + half, struct.pack("<I", side)[:3]
    else:
        frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        at, size = frame + 5 + 2 * half, struct.pack(">H", side & 0xFFFF)
    data[at : at + len(size)] = size


def _damage_exif(data: bytearray, _others: Sequence[bytes], chance: random.Random) -> None:
    at = max(data.find(b"Exif"), data.find(b"EXIF"), data.find(b"eXIf"))
    if at >= 0:
        for _ in range(chance.choice((1, 2, 8))):
            where = min(at + 4 + chance.randrange(_EXIF_BYTES), len(data) - 1)
            data[where] = chance.choice((0, 0xFF, chance.randrange(256)))


def _write_number(data: bytearray, _others: Sequence[bytes], chance: random.Random) -> None:
    """Overwrite bytes with a boundary number, encoded like a length or count."""
    at = chance.randrange(len(data))
    number = chance.choice((0, 1, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF))
    written = struct.pack(chance.choice("<>") + "I", number)[: chance.choice((2, 4))]
    data[at : at + len(written)] = written


_DAMAGES: tuple[_Damage, ...] = (
    _flip_bit,
    _edit_header,
    _truncate,
    _cut_out,
    _insert,
    _repeat,
    _splice,
    _repeat_segment,
    _claim_size,
    _damage_exif,
    _write_number,
)


def _span(data: bytearray, chance: random.Random) -> tuple[int, int]:
    at = chance.randrange(len(data))
    return at, min(len(data), at + chance.choice((1, 4, 16, 64, 256)))


def _mend_checksums(data: bytearray) -> None:
    """Correct the checksums of a PNG's chunks, as far as its lengths are right."""
    at = _PNG_FIRST
    while data[:4] == b"\x89PNG" and at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if end + 4 > len(data):
            return
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4)
        at = end + 4


def plain(colour: tuple[int, int, int], kind: str = "PNG") -> bytes:
    """Return an image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(buffer, kind)
    return buffer.getvalue()
