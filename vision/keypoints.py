"""Number and names of the keypoints of a pose model."""

from collections.abc import Sequence

from vision.errors import ModelError
from vision.metadata import ModelMetadata

COCO_KEYPOINTS = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear"),
    *("left_shoulder", "right_shoulder", "left_elbow", "right_elbow"),
    *("left_wrist", "right_wrist", "left_hip", "right_hip"),
    *("left_knee", "right_knee", "left_ankle", "right_ankle"),
)
"""The 17 keypoints of a person in COCO, in their order."""


def choose_keypoint_shape(
    configured: tuple[int, int] | None, metadata: ModelMetadata
) -> tuple[int, int]:
    """Return the number of keypoints of an object and of values of each, 2 or 3.

    The number of columns does not determine it: 12 are six keypoints, or four with a confidence.

    Raises:
        ModelError: ``MODEL_METADATA_INVALID``: neither the caller nor the metadata says it.
    """
    shape = configured or metadata.keypoint_shape
    if shape is None:
        raise ModelError(
            "MODEL_METADATA_INVALID",
            f"{metadata.missing('kpt_shape')}: set keypoint_shape to the number of keypoints and 2 "
            "(x, y) or 3 (x, y, confidence), or export the model again",
        )
    if shape[0] < 1 or shape[1] not in (2, 3):
        raise ModelError(
            "MODEL_METADATA_INVALID",
            f"keypoint_shape must be (keypoints, 2 or 3), got {list(shape)}",
        )
    return shape


def choose_keypoint_names(
    configured: Sequence[str] | None, metadata: ModelMetadata, count: int, labels: Sequence[str]
) -> tuple[str, ...]:
    """Return a name for each keypoint.

    The configured ones, or else those of the metadata (ultralytics writes them since 8.4); COCO's
    for a model whose only label is ``person`` and which has 17 keypoints; otherwise their numbers
    from 0, as ultralytics does.

    Raises:
        ModelError: ``MODEL_METADATA_INVALID``: the configured names are not as many.
    """
    if configured is not None:
        if len(configured) != count:
            raise ModelError(
                "MODEL_METADATA_INVALID",
                f"keypoint_names must be {count} names, got {len(configured)}",
            )
        return tuple(configured)
    if metadata.keypoint_names is not None and len(metadata.keypoint_names) == count:
        return metadata.keypoint_names
    if count == len(COCO_KEYPOINTS) and list(labels) == ["person"]:
        return COCO_KEYPOINTS
    return tuple(map(str, range(count)))
