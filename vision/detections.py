"""The objects that a detector finds in one image."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vision.masks import PolygonMask, RleMask


@dataclass(frozen=True, slots=True)
class Detections:
    """Objects detected in one image, most confident first.

    Attributes:
        xyxy: float32 ``[N, 4]``, corners in pixels of the upright image; every box lies inside the
            image and has a positive area. For a rotated box: the part of its axis-aligned hull that
            lies inside the image.
        confidence: float32 ``[N]``, above the threshold and at most 1.
        class_id: int64 ``[N]``.
        rotated: float32 ``[N, 5]``, rotated boxes: centre x and y, width and height in pixels of
            the upright image, which may reach beyond it, and the clockwise angle of the width in
            radians, in [0, pi / 2). None if the task is not ``obb``.
        keypoints: float32 ``[N, K, 3]`` or ``[N, K, 2]``: x and y in pixels of the upright image,
            inside it, and the confidence in 0..1 if the model gives one. None if the task is not
            ``pose``.
        masks: a mask for each object, in the format that was asked for. None if the task is not
            ``segment``, or no masks were asked for.
    """

    xyxy: NDArray[np.float32]
    confidence: NDArray[np.float32]
    class_id: NDArray[np.int64]
    rotated: NDArray[np.float32] | None = None
    keypoints: NDArray[np.float32] | None = None
    masks: tuple[RleMask | PolygonMask, ...] | None = None

    def __len__(self) -> int:
        return len(self.confidence)
