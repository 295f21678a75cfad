"""Suffixes of the files that a source reads, in lower case."""

IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib"),
        *(".tif", ".tiff", ".gif", ".avif", ".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"),
        *(".pnm", ".ppm", ".pgm", ".pbm", ".pfm"),
    )
)
"""Images: every type in `servicekit.media_kinds.OWN_FORMATS`."""

VIDEO_SUFFIXES = frozenset(
    (
        *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".flv", ".mkv", ".webm"),
        *(".avi", ".divx", ".dv", ".wmv", ".asf", ".rm", ".rmvb", ".ogv", ".ogm", ".ogg", ".mxf"),
        *(".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".vob", ".ts", ".mts", ".m2t", ".m2ts"),
        *(".mjpeg", ".mjpg", ".h264", ".264", ".avc", ".h265", ".265", ".hevc", ".av1", ".obu"),
        *(".ivf", ".nut", ".y4m", ".dav", ".gxf", ".wtv"),
    )
)
"""Videos, among them streams of JPEGs, which begin as a single JPEG does."""
