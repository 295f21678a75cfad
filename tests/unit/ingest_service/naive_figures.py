"""Figures of predictions in plain Python, to compare with those of a store."""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, timedelta
from typing import Any

import numpy as np
from google.protobuf.duration_pb2 import Duration
from sightline.types.v1.prediction_pb2 import BoundingBox, Detection, Prediction, RotatedBox

from ingest_service.store.figures import (
    ConfidenceCounts,
    FrameCounts,
    PredictionTally,
    VersionFigures,
)
from tests.unit.ingest_service.samples import NOW, detection, prediction, timestamp

Logged = Sequence[tuple[str, Prediction]]
"""Predictions with their devices."""
REASONS = (None, "requested", "device_failed", "device_timeout", "device_unsure")
HOURS = 5
"""Hours before `NOW` in which `scattered_figures` are captured."""


def scattered_figures(chance: random.Random, first: int, count: int) -> list[Prediction]:
    """Return predictions that differ in everything that figures count."""
    sent = []
    for sequence in range(first, first + count):
        source = chance.choice((1, 1, 2))
        width, height = chance.choice(((640, 480), (640, 480), (100, 50), (0, 0)))
        back = chance.choice((chance.randrange(HOURS * 3600), 3600 * chance.randrange(1, HOURS)))
        sent.append(
            prediction(
                sequence,
                model_name=chance.choice(("plates", "parts")),
                model_version=chance.choice(("", "1", "2")),
                source=source,
                cloud_reason=chance.randrange(len(REASONS)) if source == 2 else 0,
                captured_at=timestamp(NOW - timedelta(seconds=back)),
                inference_time=chance.choice(
                    (None, Duration(), Duration(nanos=chance.randrange(10**9)))
                ),
                defect_detected=chance.choice((None, True, False)),
                image_width=width,
                image_height=height,
                detections=[_detection(chance) for _ in range(chance.randrange(4))],
            )
        )
    return sent


def _detection(chance: random.Random) -> Detection:
    confidence = chance.choice((chance.random(), chance.randrange(21) / 20))
    x, y = chance.uniform(-20, 700), chance.uniform(-20, 500)
    box = BoundingBox(x_min=max(x, 0), y_min=max(y, 0), x_max=x + 90, y_max=y + 60)
    rotated = RotatedBox(center_x=x / 2, center_y=y / 2, width=9, height=9, angle=0.5)
    return detection(
        class_name=chance.choice(("pit", "scratch", "")),
        confidence=confidence,
        box=chance.choice((box, box, box, None)),
        rotated_box=chance.choice((None, None, rotated)),
    )


def captured_us(p: Prediction) -> int:
    return int(p.captured_at.ToMicroseconds())


def tally_of(chosen: Iterable[Prediction]) -> PredictionTally:
    alone = list(chosen)
    return PredictionTally(
        len(alone),
        sum(p.defect_detected for p in alone),
        sum(p.HasField("defect_detected") for p in alone),
        sum(len(p.detections) for p in alone),
        sum(p.source == 2 for p in alone),
    )


def quantiles_of(chosen: Iterable[Prediction]) -> tuple[float, ...] | None:
    times = [p.inference_time.ToNanoseconds() / 1e9 for p in chosen if p.HasField("inference_time")]
    return tuple(np.quantile(times, [0.5, 0.95, 0.99])) if times else None


def bin_of(found: Detection) -> int:
    return sum(found.confidence >= float(np.float32(edge / 20)) for edge in range(1, 20))


def bins_of(detections: Iterable[Detection]) -> tuple[int, ...]:
    counts = Counter(map(bin_of, detections))
    return tuple(counts[number] for number in range(20))


def series_of(chosen: Iterable[Prediction], bucket_us: int) -> dict[int, list[Prediction]]:
    """Return the predictions by the number of their bucket."""
    slots: defaultdict[int, list[Prediction]] = defaultdict(list)
    for p in chosen:
        slots[captured_us(p) // bucket_us].append(p)
    return dict(slots)


def reasons_of(chosen: Iterable[Prediction]) -> dict[str, tuple[int, int, int]]:
    """Return the predictions by reason for the cloud: all, with a defect, with a verdict."""
    of: defaultdict[str, list[Prediction]] = defaultdict(list)
    for p in chosen:
        if reason := REASONS[p.cloud_reason]:
            of[reason].append(p)
    tallies = {reason: tally_of(alone) for reason, alone in of.items()}
    return {r: (t.predictions, t.defects, t.with_verdict) for r, t in tallies.items()}


def classes_of(chosen: Iterable[Prediction]) -> Counter[str]:
    return Counter(d.class_name for p in chosen for d in p.detections)


def frame_of(chosen: Iterable[Prediction], columns: int, rows: int) -> FrameCounts:
    alone, without = list(chosen), 0
    grids: defaultdict[str, list[int]] = defaultdict(lambda: [0] * (columns * rows))
    for p in alone:
        for d in p.detections:
            x, y = (d.box.x_min + d.box.x_max) / 2, (d.box.y_min + d.box.y_max) / 2
            if d.HasField("rotated_box"):
                x, y = d.rotated_box.center_x, d.rotated_box.center_y
            placed = d.HasField("rotated_box") or d.HasField("box")
            if not placed or not p.image_width or not p.image_height:
                without += 1
                continue
            column, row = _cell(x, columns, p.image_width), _cell(y, rows, p.image_height)
            grids[d.class_name][row * columns + column] += 1
    sizes = Counter((p.image_width, p.image_height) for p in alone if p.image_width)
    largest = sorted(grids.items(), key=lambda grid: (-sum(grid[1]), grid[0]))
    return FrameCounts(
        {name: tuple(grid) for name, grid in largest},
        len(alone),
        without,
        1.0,
        max(sizes, key=lambda size: (sizes[size], size), default=(0, 0)),
    )


def _cell(centre: float, count: int, size: int) -> int:
    return min(max(math.floor(centre * count / size), 0), count - 1)


def confidences_of(
    now: Iterable[Prediction], before: Iterable[Prediction]
) -> tuple[ConfidenceCounts, list[tuple[str, ConfidenceCounts]]]:
    """Return the counts of all classes together, and by class, most of now first."""
    sides = [[d for p in side for d in p.detections] for side in (now, before)]
    names = {d.class_name for side in sides for d in side}
    by_class = [
        (name, ConfidenceCounts(*(bins_of(d for d in s if d.class_name == name) for s in sides)))
        for name in names
    ]
    by_class.sort(key=lambda e: (-sum(e[1].current), -sum(e[1].reference), e[0]))
    return ConfidenceCounts(*map(bins_of, sides)), by_class


def versions_of(chosen: Logged) -> list[tuple[VersionFigures, Any]]:
    """Return the versions, newest first, without quantiles, which are beside them."""
    found = []
    for name, version in {(p.model_name, p.model_version) for _, p in chosen}:
        of = [(d, p) for d, p in chosen if (p.model_name, p.model_version) == (name, version)]
        alone = [p for _, p in of]
        times = list(map(captured_us, alone))
        figures = VersionFigures(
            name,
            version,
            tally_of(alone),
            len({device for device, _ in of}),
            None,
            bins_of(d for p in alone for d in p.detections),
            min(times),
            max(times),
        )
        found.append((figures, quantiles_of(alone)))
    return sorted(
        found, key=lambda f: (-f[0].last_captured_us, f[0].model_name, f[0].model_version)
    )


def utc_us(p: Prediction) -> int:
    return round(p.captured_at.ToDatetime(tzinfo=UTC).timestamp() * 1e6)
