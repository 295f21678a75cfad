"""What a small file may cost: limits on work that its dimensions do not bound.

Pillow reads segments and chunks in Python, one by one, holding the interpreter lock: 10 MB of
empty JPEG comments keep it for 3 s, 10 MB of PNG colour profiles for 9 s. libjpeg goes over the
whole picture again for every scan of a progressive JPEG, and a scan can be 75 bytes: a picture of
7000 x 7000 pixels with 100 of them, 300 kB in all, takes 6 s (see "Two Issues with the JPEG
Standard", libjpeg-turbo project, 2015). Real files have a few dozen segments and some ten scans.
"""

import io
import re

_START_OF_SCAN, _END_OF_IMAGE, _BARE = 0xDA, 0xD9, 0x01
# Neither stuffing (00), fill (FF) nor restart (D0..D7): ITU-T T.81, table B.1.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


class TooManyReadsError(Exception):
    """A file made of more pieces than any real one."""


class CountedReader(io.BytesIO):
    """Bytes that may be read so many times; after that every read raises `TooManyReadsError`.

    Attributes:
        reads_left: may be raised again between the header and the pixels.
    """

    def __init__(self, data: bytes, reads: int) -> None:
        super().__init__(data)
        self.reads_left = reads

    def read(self, size: int | None = -1, /) -> bytes:
        """As ``io.BytesIO.read``, counted."""
        self.reads_left -= 1
        if self.reads_left < 0:
            raise TooManyReadsError
        return super().read(size)


def count_jpeg_scans(data: bytes, most: int) -> int:
    """Scan of a JPEG, as libjpeg will find them; stops counting beyond `most`.

    Segments are skipped by their length and coded data by search, so that neither the scans of a
    thumbnail nor bytes behind the picture's end (a phone's video) count.
    """
    scans, at = 0, 2
    while scans <= most and (found := _MARKER.search(data, at)) is not None:
        marker, at = data[found.start() + 1], found.end()
        if marker == _END_OF_IMAGE:
            break
        scans += marker == _START_OF_SCAN
        if marker != _BARE:
            at += int.from_bytes(data[at : at + 2])
    return scans
