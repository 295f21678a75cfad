"""Models of ultralytics, and how they are exported, for the tests of all tasks."""

from dataclasses import dataclass, field
from typing import Any

SIZE = (96, 128)  # height and width of the input
CONFIDENCE = 0.5


@dataclass(frozen=True)
class Export:
    """A model and how it is exported.

    Attributes:
        model: name of ultralytics' description of the architecture.
        options: of the export.
        changes: of the description.
    """

    model: str
    options: dict[str, bool] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)


FAST = {
    "v8-segment": Export("yolov8n-seg"),
    "v8-pose-nms": Export("yolov8n-pose", {"nms": True}),
    "v8-obb": Export("yolov8n-obb"),
    "26-segment": Export("yolo26n-seg", {"nms": False}),
    "26-pose-xy": Export("yolo26n-pose", {"nms": False}, {"kpt_shape": [5, 2], "nc": 3}),
    "26-obb": Export("yolo26n-obb", {"nms": False}),
    "rtdetr": Export("yolov8-rtdetr"),
}
SLOW = {
    "v5u-detect": Export("yolov5n"),
    "v8-detect-nms-dynamic": Export("yolov8n", {"nms": True, "dynamic": True}),
    "v8-detect-one": Export("yolov8n", {}, {"nc": 1}),
    "v8-segment-half": Export("yolov8n-seg", {"half": True}),
    "v8-segment-nms-dynamic": Export("yolov8n-seg", {"nms": True, "dynamic": True}),
    "v8-segment-dynamic": Export("yolov8n-seg", {"dynamic": True}),
    "v8-obb-dynamic": Export("yolov8n-obb", {"dynamic": True}),
    "v8-pose-dynamic": Export("yolov8n-pose", {"dynamic": True}),
    "v8-obb-nms": Export("yolov8n-obb", {"nms": True}),
    "v8-classify": Export("yolov8n-cls"),
    "v9-detect": Export("yolov9t"),
    "v10-detect": Export("yolov10n", {"nms": False}),
    "11-pose-nms": Export("yolo11n-pose", {"nms": True}),
    "12-segment": Export("yolo12n-seg"),
    "26-detect": Export("yolo26n", {"nms": False}),
    "26-detect-many": Export("yolo26n"),
    "26-pose-many": Export("yolo26n-pose"),
    "26-obb-many": Export("yolo26n-obb"),
    "26-classify": Export("yolo26n-cls"),
    "rtdetr-half": Export("yolov8-rtdetr", {"half": True}),
    "rtdetr-dynamic": Export("yolov8-rtdetr", {"dynamic": True}),
}
# Each family, task and option has been seen above; here they are together in other ways.
MORE = {
    "v8-detect": Export("yolov8n"),
    "v8-detect-half": Export("yolov8n", {"half": True}),
    "v8-segment-nms": Export("yolov8n-seg", {"nms": True}),
    "v8-pose": Export("yolov8n-pose"),
    "v8-pose-half": Export("yolov8n-pose", {"half": True}),
    "v8-obb-half": Export("yolov8n-obb", {"half": True}),
    "v8-classify-half": Export("yolov8n-cls", {"half": True}),
    "v10-detect-many": Export("yolov10n"),
    "11-detect": Export("yolo11n"),
    "11-segment": Export("yolo11n-seg"),
    "11-segment-nms": Export("yolo11n-seg", {"nms": True}),
    "11-pose": Export("yolo11n-pose"),
    "11-obb": Export("yolo11n-obb"),
    "11-obb-nms": Export("yolo11n-obb", {"nms": True}),
    "11-classify": Export("yolo11n-cls"),
    "12-detect": Export("yolo12n"),
    "26-detect-half": Export("yolo26n", {"nms": False, "half": True}),
    "26-detect-dynamic": Export("yolo26n", {"nms": False, "dynamic": True}),
    "26-segment-many": Export("yolo26n-seg"),
    "26-segment-nms": Export("yolo26n-seg", {"nms": True}),
    "26-pose": Export("yolo26n-pose", {"nms": False}),
    "rtdetr-l": Export("rtdetr-l"),
}
EXPORTS = {**FAST, **SLOW, **MORE}
