"""CPU time of encoding predictions, beside protobuf's own runtime (upb): `python -m bench.encode`.

Both encoders turn the same records into the same bytes, in alternating rounds of one run. For upb
that means filling a message object and serialising it. The suffix of a figure is the number of
detections per record; `arrays` are `DetectionArrays`, `segment` are arrays with a polygon of 40
points for each detection, and `pose` arrays with 17 keypoints. A ratio is the time of
`edge.log.encode` divided by that of upb.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

from google.protobuf.internal import api_implementation
from sightline.types.v1 import prediction_pb2

from bench import _shapes
from edge.log.encode import prediction_body
from sightline import Box, Detection, DetectionArrays, Mask, Prediction

SECONDS, NANOS = 1_800_000_000, 250_000_000
NAMES = ("person", "bus", "car", "bicycle", "truck")
Encoder = Callable[[Prediction], bytes]


def record(
    number: int, detections: int, *, arrays: bool = False, task: _shapes.Task = "detect"
) -> Prediction:
    """Return a record with its own name, boxes and confidences."""
    rows = [
        Detection(
            index % len(NAMES),
            NAMES[index % len(NAMES)],
            0.9 - (number % 100) / 1000,
            Box(float(number % 640), 20.5 + index, 300.0 + number % 640, 40.25 + 2 * index),
        )
        for index in range(detections)
    ]
    return Prediction(
        f"frame-{number:09d}",
        "yolov8n",
        image_width=1920,
        image_height=1080,
        captured_at=SECONDS + NANOS / 1e9,
        detections=as_arrays(rows, number, task) if arrays else rows,
    )


def as_arrays(rows: Sequence[Detection], number: int, task: _shapes.Task) -> DetectionArrays:
    """Return detections as arrays, with what the task gives beside boxes."""
    return DetectionArrays(
        [(row.box.x_min, row.box.y_min, row.box.x_max, row.box.y_max) for row in rows if row.box],
        [row.confidence for row in rows],
        [row.class_id for row in rows],
        class_name=[row.class_name for row in rows],
        masks=[Mask([_shapes.polygon(number)]) for _ in rows] if task == "segment" else None,
        keypoints=[_shapes.keypoints(number) for _ in rows] if task == "pose" else None,
    )


def ours(prediction: Prediction) -> bytes:
    """Encode a record with `edge.log.encode`."""
    return prediction_body(prediction, 0.0)


def upb(prediction: Prediction) -> bytes:
    """Encode a record with upb, field by field: keyword arguments and dictionaries are slower."""
    message = prediction_pb2.Prediction()
    message.image_id = prediction.image_id
    message.image_width = prediction.image_width
    message.image_height = prediction.image_height
    message.model_name = prediction.model_name
    message.source = prediction_pb2.PREDICTION_SOURCE_DEVICE
    captured_at = message.captured_at
    captured_at.seconds, captured_at.nanos = SECONDS, NANOS
    if isinstance(prediction.detections, DetectionArrays):
        add_arrays(message, prediction.detections)
    else:
        add_objects(message, prediction.detections)
    return message.SerializeToString()


def add_objects(message: prediction_pb2.Prediction, rows: Sequence[Detection]) -> None:
    """Add detections to a message."""
    add = message.detections.add
    for row in rows:
        detection, box = add(), row.box
        detection.class_id = row.class_id
        detection.class_name = row.class_name
        detection.confidence = row.confidence
        if box is not None:
            target = detection.box
            target.x_min = box.x_min
            target.y_min = box.y_min
            target.x_max = box.x_max
            target.y_max = box.y_max


def add_arrays(message: prediction_pb2.Prediction, arrays: DetectionArrays) -> None:
    """Add detections to a message without an object for each."""
    add, boxes = message.detections.add, iter(arrays.boxes)
    masks, points = arrays.masks, arrays.keypoints
    labels = (arrays.class_ids, arrays.class_names, arrays.confidences)
    columns = zip(*labels, *[boxes] * 4, strict=True)
    for row, (class_id, name, confidence, x_min, y_min, x_max, y_max) in enumerate(columns):
        detection = add()
        detection.class_id = class_id
        detection.class_name = name
        detection.confidence = confidence
        target = detection.box
        target.x_min = x_min
        target.y_min = y_min
        target.x_max = x_max
        target.y_max = y_max
        if masks is not None and (mask := masks[row]) is not None:
            detection.mask.polygons.add().points.extend(mask.polygons[0])
        if points is not None:
            size = 3 * arrays.keypoint_shape[0]
            numbers = iter(points[row * size : (row + 1) * size])
            for x, y, visible in zip(numbers, numbers, numbers, strict=True):
                point = detection.keypoints.add()
                point.x, point.y, point.confidence = x, y, visible


def cpu_us(encode: Encoder, records: Sequence[Prediction]) -> float:
    """Return the CPU time per record in microseconds."""
    began = time.thread_time_ns()
    for prediction in records:
        encode(prediction)
    return (time.thread_time_ns() - began) / len(records) / 1000


def measure(records: Sequence[Prediction], rounds: int) -> tuple[float, float]:
    """Return the median CPU time per record of `ours` and of `upb`, in microseconds."""
    parse = prediction_pb2.Prediction.FromString
    if parse(ours(records[0])) != parse(upb(records[0])):
        raise SystemExit(f"the encoders disagree about {records[0]}")
    samples: dict[Encoder, list[float]] = {ours: [], upb: []}
    for number in range(rounds):
        for encode in (ours, upb) if number % 2 else (upb, ours):
            samples[encode].append(cpu_us(encode, records))
    return statistics.median(samples[ours]), statistics.median(samples[upb])


CASES: dict[str, Callable[[int], Prediction]] = {
    "0": partial(record, detections=0),
    "3": partial(record, detections=3),
    "30": partial(record, detections=30),
    "30_arrays": partial(record, detections=30, arrays=True),
    "3_segment": partial(record, detections=3, arrays=True, task="segment"),
    "3_pose": partial(record, detections=3, arrays=True, task="pose"),
}


def main() -> None:
    """Print one JSON line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--records", type=int, default=1000)
    arguments.add_argument("--rounds", type=int, default=100)
    options = arguments.parse_args()
    line: dict[str, object] = {"bench": "encode", "runtime": api_implementation.Type()}
    for case, make in CASES.items():
        ours_us, upb_us = measure(list(map(make, range(options.records))), options.rounds)
        line[f"us_{case}"], line[f"upb_us_{case}"] = round(ours_us, 2), round(upb_us, 2)
        line[f"ratio_to_upb_{case}"] = round(ours_us / upb_us, 3)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
