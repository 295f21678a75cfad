"""Conversion between the messages of the contract and the types of the store."""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from sightline.ingest.v1 import ingest_pb2, ingest_service_pb2
from sightline.types.v1 import prediction_pb2

from ingest_service.backup import BackupSummary, CopyProgress
from ingest_service.receive.checks import CLOUD_REASONS, SOURCES
from ingest_service.receive.group_commit import Totals
from ingest_service.receive.headers import parse_time
from ingest_service.store.protocol import (
    Count,
    Filter,
    JudgedCount,
    Stats,
    StoredPrediction,
    Watermark,
)
from servicekit.errors import invalid

MAX_FILTER_VALUES = 1000


def filter_from_proto(message: ingest_pb2.PredictionFilter) -> Filter:
    """Return the filter of a request.

    Raises:
        SightlineError: INVALID_ARGUMENT; a field is out of its bounds.
    """
    start, end = _time(message, "start_time"), _time(message, "end_time")
    if start and end and end < start:
        raise invalid("filter.end_time", "must not be before start_time")
    return Filter(
        values_of(message.device_ids, "filter.device_ids"),
        values_of(message.model_names, "filter.model_names"),
        values_of(message.class_names, "filter.class_names"),
        message.defect_detected if message.HasField("defect_detected") else None,
        _source(message.source),
        _confidence(message),
        start,
        end,
    )


def values_of(values: Sequence[str], field: str) -> tuple[str, ...]:
    """Return the values of a field of a request.

    Raises:
        SightlineError: INVALID_ARGUMENT; there are too many.
    """
    if len(values) > MAX_FILTER_VALUES:
        raise invalid(field, f"must have at most {MAX_FILTER_VALUES} values, got {len(values)}")
    return tuple(values)


def _source(number: int) -> str | None:
    if not 0 <= number < len(SOURCES):
        raise invalid("filter.source", "must be a PredictionSource of this contract")
    return SOURCES[number]


def _confidence(message: ingest_pb2.PredictionFilter) -> float | None:
    if not message.HasField("min_confidence"):
        return None
    if math.isnan(message.min_confidence) or not 0 <= message.min_confidence <= 1:
        raise invalid("filter.min_confidence", "must be in [0, 1]")
    return message.min_confidence


def _time(message: ingest_pb2.PredictionFilter, field: str) -> datetime | None:
    time: Timestamp = getattr(message, field)
    # HasField is typed to accept the names of the contract only, which these are.
    return parse_time(time, f"filter.{field}") if message.HasField(field) else None  # type: ignore[arg-type]


def log_response(totals: Totals, generation: str) -> ingest_service_pb2.PredictionLogResponse:
    """Return the response to a stream of predictions of one generation."""
    return ingest_service_pb2.PredictionLogResponse(
        committed_through=totals.committed_through,
        accepted=totals.accepted,
        duplicates=totals.duplicates,
        rejected=totals.rejected,
        gap_sequences=totals.gap_sequences,
        rejections=[ingest_pb2.Rejection(**r._asdict()) for r in totals.rejections],
        generation=generation,
    )


def watermark_response(watermark: Watermark) -> ingest_service_pb2.GetWatermarkResponse:
    """Return a watermark as a response."""
    return ingest_service_pb2.GetWatermarkResponse(
        committed_through=watermark.through,
        generations=[
            ingest_pb2.Generation(id=run.id, after_sequence=run.after)
            for run in watermark.generations
        ],
    )


def stats_response(stats: Stats) -> ingest_service_pb2.GetStatsResponse:
    """Return statistics as a response."""
    details = stats.details
    verdicts = details.verdicts if details else {}
    response = ingest_service_pb2.GetStatsResponse(
        total_predictions=stats.total_predictions,
        defects_detected=stats.defects_detected,
        total_detections=stats.total_detections,
        by_device=_counts(stats.by_device, verdicts.get("device_id")),
        by_model=_counts(stats.by_model, verdicts.get("model_name")),
        by_source=_counts(stats.by_source, verdicts.get("source")),
        by_class=_counts(stats.by_class),
        rejected=stats.rejected,
        gap_sequences=stats.gap_sequences,
        with_verdict=details.with_verdict if details else None,
        by_cloud_reason=_judged(details.by_cloud_reason) if details else (),
        by_source_label=_judged(details.by_source_label) if details else (),
    )
    if stats.inference_seconds is not None:
        response.inference_time.CopyFrom(latency_quantiles(stats.inference_seconds))
    if stats.first_captured_us is not None and stats.last_captured_us is not None:
        response.first_captured_at.FromMicroseconds(stats.first_captured_us)
        response.last_captured_at.FromMicroseconds(stats.last_captured_us)
    return response


def _counts(
    counts: Iterable[Count], verdicts: Mapping[str, int] | None = None
) -> list[ingest_pb2.CountByKey]:
    return [
        ingest_pb2.CountByKey(
            key=count.key,
            count=count.total,
            defects=count.defects,
            with_verdict=None if verdicts is None else verdicts.get(count.key, 0),
        )
        for count in counts
    ]


def _judged(counts: Iterable[JudgedCount]) -> list[ingest_pb2.CountByKey]:
    return [
        ingest_pb2.CountByKey(
            key=count.key,
            count=count.total,
            defects=count.defects,
            with_verdict=count.with_verdict,
        )
        for count in counts
    ]


def latency_quantiles(seconds: tuple[float, float, float]) -> ingest_pb2.LatencyQuantiles:
    """Return p50, p95 and p99, s, as a message."""
    p50, p95, p99 = map(_duration, seconds)
    return ingest_pb2.LatencyQuantiles(p50=p50, p95=p95, p99=p99)


def stored_to_proto(stored: StoredPrediction) -> ingest_pb2.StoredPrediction:
    """Return a stored prediction as a message of the contract."""
    message = ingest_pb2.StoredPrediction(
        device_id=stored.position.device_id,
        spool_id=stored.position.spool_id,
        prediction=_prediction(stored),
    )
    message.received_at.FromMicroseconds(stored.position.received_us)
    if stored.clock_offset_seconds is not None:
        message.clock_offset.FromMicroseconds(round(stored.clock_offset_seconds * 1e6))
    return message


def _prediction(stored: StoredPrediction) -> prediction_pb2.Prediction:
    message = prediction_pb2.Prediction(
        sequence=stored.position.sequence,
        image_id=stored.image_id,
        image_width=stored.image_width,
        image_height=stored.image_height,
        model_name=stored.model_name,
        model_version=stored.model_version,
        # The indices are the numbers of the contract, which the stubs type as enum values.
        source=SOURCES.index(stored.source),  # type: ignore[arg-type]
        cloud_reason=CLOUD_REASONS.index(stored.cloud_reason),  # type: ignore[arg-type]
        detections=_detections(stored),
        defect_detected=stored.defect_detected,
        labels=stored.labels,
        trace_id=stored.trace_id,
    )
    message.captured_at.FromMicroseconds(stored.captured_us)
    if stored.inference_seconds is not None:
        message.inference_time.CopyFrom(_duration(stored.inference_seconds))
    return message


def _detections(stored: StoredPrediction) -> list[prediction_pb2.Detection]:
    messages = list(map(_detection, stored.detections))
    for message, rotated in zip(messages, stored.rotated_boxes or (), strict=False):
        if rotated is not None:
            message.rotated_box.CopyFrom(prediction_pb2.RotatedBox(**rotated))
    for message, points in zip(messages, stored.keypoints or (), strict=False):
        message.keypoints.extend(prediction_pb2.Keypoint(**point) for point in points)
    for message, mask in zip(messages, stored.masks or (), strict=False):
        if mask is not None:
            message.mask.CopyFrom(_mask(mask))
    return messages


def _detection(stored: Mapping[str, Any]) -> prediction_pb2.Detection:
    box = stored["box"]
    return prediction_pb2.Detection(
        class_id=stored["class_id"],
        class_name=stored["class_name"],
        confidence=stored["confidence"],
        box=None if box is None else prediction_pb2.BoundingBox(**box),
        track_id=stored["track_id"],
    )


def _mask(stored: Mapping[str, Any]) -> prediction_pb2.Mask:
    return prediction_pb2.Mask(
        width=stored["width"],
        height=stored["height"],
        rle=stored["rle"],
        polygons=[prediction_pb2.Polygon(points=points) for points in stored["polygons"]],
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def backup_response(
    part: CopyProgress | bytes | BackupSummary,
) -> ingest_service_pb2.BackupResponse:
    """Return a part of a backup as a message of the response stream."""
    if isinstance(part, bytes):
        return ingest_service_pb2.BackupResponse(data=part)
    if isinstance(part, CopyProgress):
        progress = ingest_service_pb2.BackupProgress(rows=part.rows, total_rows=part.total)
        return ingest_service_pb2.BackupResponse(progress=progress)
    return ingest_service_pb2.BackupResponse(
        summary=ingest_service_pb2.BackupSummary(
            size_bytes=part.size,
            sha256=part.sha256,
            predictions=part.contents.predictions,
            rejected=part.contents.rejected,
            spools=part.contents.spools,
        )
    )
