"""Encoded pictures for the tests, whole and broken."""

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def pattern(width: int = 48, height: int = 32) -> Image.Image:
    """Return a picture that no turn or flip maps to itself, smooth enough for JPEG."""
    across = np.linspace(0, 255, width)[None, :].repeat(height, axis=0)
    down = np.linspace(0, 255, height)[:, None].repeat(width, axis=1)
    corner = np.zeros((height, width))
    corner[: height // 4, : width // 4] = 255
    return Image.fromarray(np.stack([across, down, corner], axis=2).astype(np.uint8))


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes = b"") -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_claiming(width: int, height: int) -> bytes:
    """Return a PNG whose header claims these dimensions, with no pixels that could be decoded."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", b"not deflate") + chunk(b"IEND")
    return b"\x89PNG\r\n\x1a\n" + body


def jpeg_claiming(width: int, height: int) -> bytes:
    """Return a JPEG whose header claims these dimensions, cut off where its first scan begins."""
    data = encode(pattern(16, 16), "JPEG")
    frame = data.index(b"\xff\xc0")
    sized = data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]
    return sized[: sized.index(b"\xff\xda") + 14]


def webp_claiming(width: int, height: int) -> bytes:
    """Return a WebP animation that claims this canvas and holds one small frame."""
    frame = encode(pattern(16, 16), "WEBP")[12:]
    sides = (15).to_bytes(3, "little") * 2
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    animated = riff(b"ANMF", b"\0" * 6 + sides + b"\0" * 4 + frame)
    extended = riff(b"VP8X", b"\x02\0\0\0" + canvas) + riff(b"ANIM", b"\0" * 6) + animated
    return riff(b"RIFF", b"WEBP" + extended)


def riff(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data


def bmp_claiming(width: int, height: int, *, bits: int = 24, compression: int = 0) -> bytes:
    """Return a BMP that claims these dimensions, with a palette if it needs one and no pixels."""
    palette = bytes(range(256)) * 4 if bits == 8 else b""
    start = 54 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", start, 0, 0, start) + header + palette


def many_scans(scans: int, **options: object) -> bytes:
    """Return a progressive JPEG with its last scan repeated until there are so many."""
    data = encode(pattern(), "JPEG", progressive=True, **options)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (scans - data.count(b"\xff\xda")) + data[-2:]
