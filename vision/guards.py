"""Limits on decoding work that an image's dimensions do not bound.

Pillow reads segments and chunks in Python, one by one, holding the interpreter lock: 10 MB of
empty JPEG comments keep it for 3 s, 10 MB of PNG colour profiles for 9 s. libjpeg processes the
whole image again for every scan of a progressive JPEG, and a scan can be 75 bytes: an image of
7000 x 7000 pixels with 100 scans, 300 kB in all, takes 6 s (see "Two Issues with the JPEG
Standard", libjpeg-turbo project, 2015). Real files have a few dozen segments and about ten scans.
"""

import io
import re
from dataclasses import dataclass

_START_OF_SCAN, _END_OF_IMAGE, _BARE = 0xDA, 0xD9, 0x01
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALL_COEFFICIENTS = (1 << 64) - 1
_SCAN_BYTES = 2 + 4 + 2 * 255  # of a scan header with the most components
_PADDING_BYTES = 8  # zeros at the end of a file whose system lost power
_FILL_BYTES = 64
# Excludes stuffing (00), fill (FF) and restart (D0..D7): ITU-T T.81, table B.1.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


class TooManyReadsError(Exception):
    """The file consists of more segments than a real image has."""


class CountedReader(io.BytesIO):
    """A reader that raises `TooManyReadsError` after a given number of reads.

    Attributes:
        reads_left: number of reads that are still allowed; may be set again before decoding.
    """

    def __init__(self, data: bytes, reads: int) -> None:
        super().__init__(data)
        self.reads_left = reads

    def read(self, size: int | None = -1, /) -> bytes:
        """Count the read and return the bytes, like ``io.BytesIO.read``."""
        self.reads_left -= 1
        if self.reads_left < 0:
            raise TooManyReadsError
        return super().read(size)


@dataclass(frozen=True, slots=True)
class JpegScans:
    """The scans of a JPEG, by its markers.

    Attributes:
        count: number of scans that libjpeg would decode.
        ended: True if the marker of the end was found.
        refined: True if the scans, if all of them are complete, give every coefficient in full: a
            progressive JPEG that lacks its last scans is coarse.
    """

    count: int
    ended: bool
    refined: bool


def read_jpeg_scans(data: bytes, limit: int) -> JpegScans:
    """Find the scans of a JPEG; stop after `limit` is exceeded.

    Segments are skipped by their length and coded data by search, so that neither the scans of a
    thumbnail nor bytes after the end of the image (a phone's video) count.
    """
    count, at, ended = 0, 2, False
    progressive = False
    missing: dict[int, int] = {}  # component -> bits of the coefficients that are not given in full
    while count <= limit and (match := _MARKER.search(data, at)) is not None:
        marker, at = data[match.start() + 1], match.end()
        if marker == _END_OF_IMAGE:
            ended = True
            break
        if marker == _BARE:
            continue
        size = int.from_bytes(data[at : at + 2])
        if marker in _FRAMES:
            progressive = marker in _PROGRESSIVE
            missing = dict.fromkeys(data[at + 8 : at + size : 3], _ALL_COEFFICIENTS)
        elif marker == _START_OF_SCAN:
            count += 1
            for component, coefficients in _given_in_full(
                data[at + 2 : at + min(size, _SCAN_BYTES)], progressive=progressive
            ):
                missing[component] = missing.get(component, 0) & ~coefficients
        at += size
    return JpegScans(count, ended, bool(missing) and not any(missing.values()))


def completed_jpegs(data: bytes) -> tuple[bytes, bytes]:
    """Return two versions of a JPEG without its end marker, which differ after its data only.

    They have the same pixels if no coded data are missing, and else different ones: a decoder reads
    what follows in the place of missing data, within a restart interval and after it.
    """
    padded = data.rstrip(b"\xff")  # the start of a marker
    core = padded.rstrip(b"\0")
    if len(padded) - len(core) < _PADDING_BYTES:
        core = padded  # coded data may end in a zero
    elif core.endswith(b"\xff"):
        core += b"\0"  # stuffing
    restart = b"\xff" + bytes([_next_restart(core)])
    first, second = (
        b"".join((core, fill, restart, fill, b"\xff\xd9"))
        for fill in (b"\x5a" * _FILL_BYTES, b"\xa5" * _FILL_BYTES)
    )
    return first, second


def _next_restart(data: bytes) -> int:
    """Return the restart marker that a decoder expects after the data, if the JPEG has any."""
    begin = max(data.rfind(b"\xff\xda"), 0)
    last = max(range(0xD0, 0xD8), key=lambda marker: data.rfind(bytes((0xFF, marker)), begin))
    found = data.rfind(bytes((0xFF, last)), begin) >= 0
    return 0xD0 + (last - 0xD0 + 1) % 8 if found else 0xD0


def _given_in_full(segment: bytes, *, progressive: bool) -> list[tuple[int, int]]:
    """Return the components of a scan header, and bits of the coefficients given in full."""
    count = segment[0] if segment else 0
    parameters = segment[1 + 2 * count : 4 + 2 * count]
    if len(parameters) < 3:
        return []
    first, last, approximation = parameters
    coefficients = _ALL_COEFFICIENTS
    if progressive:
        coefficients = ((1 << (last + 1)) - 1) & ~((1 << first) - 1)
        if approximation & 0x0F:  # the lowest bits follow in later scans
            coefficients = 0
    return [(component, coefficients) for component in segment[1 : 1 + 2 * count : 2]]
