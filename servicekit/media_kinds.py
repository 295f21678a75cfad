"""Recognition of images and videos by their first bytes. No library is needed.

`vision` chooses a decoder by it, and an edge node the source that a path names and the files that
must be converted before the cloud can decode them.
"""

CONTRACT_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""Types that the contract names. The inference service decodes no others, since every decoder is
code that a stranger's bytes can reach."""
OWN_FORMATS = (*CONTRACT_FORMATS, "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
"""Types of files that a device or an operator reads for itself. PPM stands for all of Netpbm."""

MAX_SERVICE_BYTES = 10 * 1024 * 1024
MAX_SERVICE_PIXELS = 50_000_000
MAX_SERVICE_SIDE = 16_384
"""Default limits of the inference service on an image: its bytes, its width times its height, and
its width or height in pixels."""

HEAD_BYTES = 4096
"""Number of first bytes that `image_kind` and `is_video` need at most."""

_IMAGES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),  # BigTIFF
    (b"MM\0+", "TIFF"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
)
_NETPBM = b"123456fF"
# Brands of ISO base media files, the container of MP4 (ISO/IEC 14496-12, section 4.3).
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"), "HEIF"),
}
_VIDEOS = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"FLV\x01",
    b"OggS",
    b".RMF",  # RealMedia
    b"DHAV",  # recorders of Dahua: .dav
    b"YUV4MPEG2",
    b"DKIF",  # IVF
    b"nut/multimedia container",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01",  # MXF
    b"\0\0\x01\xba",  # MPEG program stream, VOB
    b"\0\0\x01\xb3",  # MPEG video
    b"\0\0\0\x01",  # H.264 and H.265 byte streams
)
_TS_PACKETS = ((0, 188), (4, 192), (0, 204))  # offset and size; M2TS has a time in front of each
ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"styp")
"""Types of the boxes with which ISO base media files, such as MP4, begin."""


def image_kind(head: bytes) -> str | None:
    """Return the type of an image by its first bytes; None: they are of no image that is known.

    Args:
        head: at least 32 bytes, if there are as many.

    Returns:
        JPEG, PNG, WEBP, BMP, TIFF, GIF, JPEG2000, PPM (all of Netpbm), AVIF or HEIF.
    """
    for signature, kind in _IMAGES:
        if head.startswith(signature):
            return kind
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _kind_by_brand(head)
    if head[:1] == b"P" and head[1:2] in _NETPBM and head[2:3].isspace():
        return "PPM"
    return None


def is_video(head: bytes) -> bool:
    """Return True if the first bytes of a file are those of a video.

    A stream of JPEGs (`.mjpeg`) begins as an image does, and is not recognized.

    Args:
        head: the first `HEAD_BYTES`, or the whole file if it is shorter.
    """
    if image_kind(head) is not None:
        return False
    return (
        head.startswith(_VIDEOS)
        or head[4:8] in ISO_BOXES
        or (head.startswith(b"RIFF") and head[8:12] == b"AVI ")
        or any(_has_packets(head, begin, size) for begin, size in _TS_PACKETS)
    )


def _kind_by_brand(head: bytes) -> str | None:
    """Return the image type that the major brand names, or else the first compatible one."""
    size = min(int.from_bytes(head[:4]), len(head))
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, size, 4))]
    kinds = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
    if brands[0] in (b"mif1", b"msf1") and "AVIF" in kinds:  # the general brand of both
        return "AVIF"
    return kinds[0] if brands[0] in _BRANDS else None


def _has_packets(head: bytes, begin: int, size: int) -> bool:
    """Return True if the sync byte of MPEG transport streams comes with every packet."""
    starts = range(begin, min(len(head), begin + 5 * size), size)
    return len(starts) >= 3 and all(head[at] == 0x47 for at in starts)
