"""SQL for sums over rows of predictions, with the columns of rollups."""

from ingest_service.store.figures import CONFIDENCE_BINS

BUCKET_RATIO = 1.02
"""Ratio of the two limits of a time bucket: its middle is within 1 % of every time in it."""
ZERO_BUCKET = -32768
"""The bucket of times that are 0."""

BINS_PER_UNIT = 20.0000008
"""Factor from a confidence to its bin. It exceeds 20 by less than a step of a 32-bit number: such a
number for 0.35 is a little less than 0.35, and belongs in the bin that begins there."""
BIN = f"""
    least(floor(d.confidence::DOUBLE * {BINS_PER_UNIT}::DOUBLE), {CONFIDENCE_BINS - 1})::UTINYINT
"""
"""The bin of the confidence of a detection `d`."""
BUCKET = f"""
    CASE WHEN inference_seconds > 0 THEN floor(ln(inference_seconds) / ln({BUCKET_RATIO}))
        ELSE inference_seconds + ({ZERO_BUCKET}) END::SMALLINT
"""
"""The bucket of a prediction's inference time; NULL: it was not measured."""
_KEYS = "captured_hour, device_id, model_name, source, defect_detected"

SUMMARY = f"""
    WITH chosen AS (
        SELECT make_timestamptz(epoch_us(captured_at) // 3600000000 * 3600000000) AS captured_hour,
            device_id, model_name, source, defect_detected, captured_at,
            len(detections) AS detections,
            list_transform(detections, lambda d: d.class_name) AS names,
            {BUCKET} AS bucket
        FROM predictions WHERE {{where}}
    ), timed AS (
        SELECT {_KEYS}, bucket, count(*) AS predictions, sum(detections) AS detections,
            min(captured_at) AS first_captured_at, max(captured_at) AS last_captured_at
        FROM chosen GROUP BY ALL
    ), named AS (
        SELECT {_KEYS}, class_name, sum(times) AS detections
        FROM (
            SELECT {_KEYS}, unnest(names) AS class_name, times
            FROM (SELECT {_KEYS}, names, count(*) AS times FROM chosen GROUP BY ALL)
        )
        GROUP BY ALL
    ), parts AS (
        SELECT {_KEYS}, predictions, detections, first_captured_at, last_captured_at,
            NULL AS class, {{{{'bucket': bucket, 'predictions': predictions}}}} AS time
        FROM timed
        UNION ALL
        SELECT {_KEYS}, 0, 0, NULL, NULL,
            {{{{'class_name': class_name, 'detections': detections}}}}, NULL
        FROM named
    )
    SELECT {_KEYS}, sum(predictions)::BIGINT AS predictions, sum(detections)::BIGINT AS detections,
        min(first_captured_at) AS first_captured_at, max(last_captured_at) AS last_captured_at,
        coalesce(list(class) FILTER (class.class_name IS NOT NULL), []) AS classes,
        coalesce(list(time) FILTER (time.bucket IS NOT NULL), []) AS times
    FROM parts GROUP BY {_KEYS}
"""
"""Sums over the rows of `predictions` that match {where}, with the columns of `rollups`."""
