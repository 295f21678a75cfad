"""The formats of masks by the names that settings, arguments and model files use for them."""

from typing import Literal

MaskFormat = Literal["polygon", "rle", "off"]
"""Format of masks: polygons, COCO's compressed run lengths, or no masks. Polygons fill holes and
need OpenCV; run lengths are exact to the pixel."""
POLYGON_TOLERANCE = 1.0
"""Default tolerance of polygons in pixels: below the error of a model's mask, whose pixels are
four or more of the image."""
