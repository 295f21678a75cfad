"""Conversion of figures to the messages of the contract."""

from collections import Counter

from sightline.ingest.v1 import ingest_pb2, reads_pb2

from ingest_service.read.drift import chance_index, stability_index
from ingest_service.read.figure_ranges import SeriesSlots
from ingest_service.store.figures import (
    ConfidenceCounts,
    Confidences,
    FrameCounts,
    Hours,
    Series,
    SeriesPart,
    VersionFigures,
    Versions,
)
from ingest_service.translate import latency_quantiles


def series_response(
    series: Series, slots: SeriesSlots, max_bytes: int
) -> reads_pb2.GetSeriesResponse:
    """Return a series, with every bucket of the request.

    Args:
        series: the counts.
        slots: the buckets.
        max_bytes: maximum size; classes are left out, the smallest first, until it is kept.
    """
    totals: Counter[str] = Counter()
    for part in series.parts.values():
        totals.update(part.by_class)
    kept = sorted(totals, key=lambda name: (-totals[name], name))
    while True:
        response = reads_pb2.GetSeriesResponse()
        response.bucket.FromTimedelta(slots.bucket)
        if series.as_of_us is not None:
            response.as_of.FromMicroseconds(series.as_of_us)
        for number in slots.numbers:
            bucket = response.buckets.add()
            bucket.start_time.FromSeconds(number * round(slots.bucket.total_seconds()))
            if number in series.parts:
                _fill(bucket, series.parts[number], set(kept))
        if response.ByteSize() <= max_bytes or not kept:
            return response
        kept = kept[: len(kept) // 2]


def _fill(bucket: reads_pb2.SeriesBucket, part: SeriesPart, classes: set[str]) -> None:
    tally = part.tally
    bucket.predictions, bucket.defects = tally.predictions, tally.defects
    bucket.with_verdict, bucket.detections = tally.with_verdict, tally.detections
    bucket.from_cloud = tally.from_cloud
    bucket.by_cloud_reason.extend(
        ingest_pb2.CountByKey(key=key, count=total, defects=defects, with_verdict=verdicts)
        for key, (total, defects, verdicts) in part.by_cloud_reason.items()
    )
    bucket.by_class.extend(
        ingest_pb2.CountByKey(key=name, count=count)
        for name, count in part.by_class.items()
        if name in classes
    )
    if part.inference_seconds is not None:
        bucket.inference_time.CopyFrom(latency_quantiles(part.inference_seconds))


def frame_response(frame: FrameCounts, columns: int, rows: int) -> reads_pb2.GetFrameResponse:
    """Return the positions on a grid of so many columns and rows."""
    return reads_pb2.GetFrameResponse(
        columns=columns,
        rows=rows,
        grids=[
            reads_pb2.FrameGrid(class_name=name, detections=sum(cells), cells=cells)
            for name, cells in frame.by_class.items()
        ],
        predictions=frame.predictions,
        without_position=frame.without_position,
        sampled=frame.sampled,
        image_width=frame.image_size[0],
        image_height=frame.image_size[1],
    )


def confidence_response(
    found: Confidences, now: Hours, reference: Hours
) -> reads_pb2.GetConfidenceResponse:
    """Return the confidences of the two ranges with their indices."""
    response = reads_pb2.GetConfidenceResponse(
        all=_comparison("", found.everything),
        by_class=[_comparison(name, counts) for name, counts in found.by_class.items()],
    )
    response.start_time.FromDatetime(now.start)
    response.end_time.FromDatetime(now.end)
    response.reference_start_time.FromDatetime(reference.start)
    response.reference_end_time.FromDatetime(reference.end)
    return response


def _comparison(name: str, counts: ConfidenceCounts) -> reads_pb2.ConfidenceComparison:
    return reads_pb2.ConfidenceComparison(
        class_name=name,
        current=counts.current,
        reference=counts.reference,
        stability_index=stability_index(counts.current, counts.reference),
        chance_index=chance_index(counts.current, counts.reference),
    )


def versions_response(versions: Versions) -> reads_pb2.ListModelVersionsResponse:
    """Return the versions of models."""
    return reads_pb2.ListModelVersionsResponse(versions=map(_version, versions))


def _version(version: VersionFigures) -> reads_pb2.ModelVersion:
    tally, seconds = version.tally, version.inference_seconds
    message = reads_pb2.ModelVersion(
        model_name=version.model_name,
        model_version=version.model_version,
        predictions=tally.predictions,
        defects=tally.defects,
        with_verdict=tally.with_verdict,
        from_cloud=tally.from_cloud,
        detections=tally.detections,
        devices=version.devices,
        inference_time=None if seconds is None else latency_quantiles(seconds),
        confidences=version.confidences,
    )
    message.first_captured_at.FromMicroseconds(version.first_captured_us)
    message.last_captured_at.FromMicroseconds(version.last_captured_us)
    return message
