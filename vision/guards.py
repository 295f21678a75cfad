"""Limits on decoding work that an image's dimensions do not bound.

Pillow reads segments and chunks in Python, one by one, holding the interpreter lock: 10 MB of
empty JPEG comments keep it for 3 s, 10 MB of PNG colour profiles for 9 s. libjpeg processes the
whole image again for every scan of a progressive JPEG, and a scan can be 75 bytes: an image of
7000 x 7000 pixels with 100 scans, 300 kB in all, takes 6 s (see "Two Issues with the JPEG
Standard", libjpeg-turbo project, 2015). Real files have a few dozen segments and about ten scans.
"""

import io
import re

_START_OF_SCAN, _END_OF_IMAGE, _BARE = 0xDA, 0xD9, 0x01
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


def count_jpeg_scans(data: bytes, limit: int) -> int:
    """Count the scans of a JPEG that libjpeg would decode; stop after `limit` is exceeded.

    Segments are skipped by their length and coded data by search, so that neither the scans of a
    thumbnail nor bytes after the end of the image (a phone's video) count.
    """
    scans, at = 0, 2
    while scans <= limit and (match := _MARKER.search(data, at)) is not None:
        marker, at = data[match.start() + 1], match.end()
        if marker == _END_OF_IMAGE:
            break
        scans += marker == _START_OF_SCAN
        if marker != _BARE:
            at += int.from_bytes(data[at : at + 2])
    return scans
