"""Counts over time, from DuckDB."""

from ingest_service.store.duckdb.figures_sql import (
    Keys,
    classes,
    counted,
    read_quantiles,
    reasons,
    source_of,
)
from ingest_service.store.duckdb.filters import where
from ingest_service.store.duckdb.read_plan import BY_ROWS, make_plan
from ingest_service.store.duckdb.rollup_sums import HOUR_US
from ingest_service.store.duckdb.unfiltered_stats import RunQuery
from ingest_service.store.figures import MAX_SERIES_CLASSES, PredictionTally, Series, SeriesPart
from ingest_service.store.protocol import Filter

_SUMMED = """
    SELECT slot, sum(predictions)::BIGINT, sum(defects)::BIGINT, sum(verdicts)::BIGINT,
        sum(found)::BIGINT, sum(from_cloud)::BIGINT
    FROM ({counted}) GROUP BY slot
"""
_REASONS = """
    SELECT slot, cloud_reason, sum(n)::BIGINT,
        coalesce(sum(n) FILTER (WHERE defect_detected), 0)::BIGINT,
        coalesce(sum(n) FILTER (WHERE defect_detected IS NOT NULL), 0)::BIGINT
    FROM ({reasons}) GROUP BY ALL ORDER BY 3 DESC, 2
"""
_CLASSES = f"""
    WITH counted AS MATERIALIZED (
        SELECT slot, class_name, sum(n)::BIGINT AS n FROM ({{classes}}) GROUP BY ALL
    ), largest AS (
        SELECT class_name FROM counted GROUP BY class_name
        ORDER BY sum(n) DESC, class_name LIMIT {MAX_SERIES_CLASSES}
    )
    SELECT slot, class_name, n FROM counted SEMI JOIN largest USING (class_name)
    ORDER BY n DESC, class_name
"""
_AS_OF = "SELECT epoch_us(max(updated_at)) FROM watermarks WHERE committed_through > 0 AND {where}"


def read_series(run: RunQuery, filter_: Filter, bucket_us: int) -> Series:
    """Return counts by buckets of time; all queries must see one snapshot.

    Args:
        run: runs the queries.
        filter_: the predictions to count.
        bucket_us: length of a bucket, us. Whole hours are counted from rollups.
    """
    plan = BY_ROWS if bucket_us % HOUR_US else make_plan(run, filter_, confidences=True)
    source = source_of(filter_, plan)
    slots = Keys(
        "slot",
        f"epoch_us(captured_hour) // {bucket_us} AS slot",
        f"epoch_us(captured_at) // {bucket_us} AS slot",
    )
    rows = run(_SUMMED.format(counted=counted(source, slots)), source.values)
    parts = {slot: SeriesPart(PredictionTally(*counts)) for slot, *counts in rows}
    judged = Keys(*(f"{key}, defect_detected" for key in slots))
    query = _REASONS.format(reasons=reasons(source, judged))
    for slot, reason, *counts in run(query, source.values):
        parts[slot].by_cloud_reason[reason] = tuple(counts)
    for slot, name, count in run(_CLASSES.format(classes=classes(source, slots)), source.values):
        parts[slot].by_class[name] = count
    for (slot,), quantiles in read_quantiles(run, source, slots).items():
        parts[slot].inference_seconds = quantiles
    devices, values = where(Filter(device_ids=filter_.device_ids))
    ((as_of,),) = run(_AS_OF.format(where=devices), values)
    return Series(parts, as_of)
