"""SQL that counts predictions and their items by some keys, from rollups and from rows together."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ingest_service.store.duckdb.filters import where
from ingest_service.store.duckdb.quantiles import QUANTILES, between
from ingest_service.store.duckdb.read_plan import BY_ROWS, Plan, in_rows, in_sums
from ingest_service.store.duckdb.rollup_sql import BIN, BUCKET
from ingest_service.store.duckdb.unfiltered_stats import RunQuery
from ingest_service.store.figures import Quantiles
from ingest_service.store.protocol import Filter

_COUNTED = """
    SELECT {of_sums}, sum(predictions) AS predictions,
        coalesce(sum(predictions) FILTER (WHERE defect_detected), 0) AS defects,
        coalesce(sum(predictions) FILTER (WHERE defect_detected IS NOT NULL), 0) AS verdicts,
        sum(detections) AS found,
        coalesce(sum(predictions) FILTER (WHERE source = 'cloud'), 0) AS from_cloud,
        min(first_captured_at) AS first, max(last_captured_at) AS last
    FROM rollups WHERE {sums} GROUP BY ALL
    UNION ALL
    SELECT {of_rows}, count(*), count(*) FILTER (WHERE defect_detected), count(defect_detected),
        sum(len(detections)), count(*) FILTER (WHERE source = 'cloud'),
        min(captured_at), max(captured_at)
    FROM predictions WHERE {rows} GROUP BY ALL
"""
_OF_SUMS = """
    SELECT {names}, {of_item}, sum(i.{count}) AS n
    FROM (SELECT {of_sums}, unnest({column}) AS i FROM rollups WHERE {sums}) GROUP BY ALL
"""
_OF_DETECTIONS = """
    SELECT {names}, {of_detection}, count(*) AS n
    FROM (SELECT {of_rows}, unnest(detections) AS d FROM predictions WHERE {rows}) GROUP BY ALL
"""
_OF_PREDICTIONS = """
    SELECT {of_rows}, {of_prediction}, count(*) AS n
    FROM predictions WHERE {rows} AND {present} GROUP BY ALL
"""
_PLACES = ", ".join(
    f"min(bucket) FILTER (WHERE upto > {rounded}({fraction}::DOUBLE * (total - 1)))"
    for fraction in QUANTILES
    for rounded in ("floor", "ceil")
)
_QUANTILES = f"""
    WITH counted AS ({{times}}), summed AS (
        SELECT {{names}}, bucket, sum(n) AS n FROM counted GROUP BY ALL
    ), placed AS (
        SELECT {{names}}, bucket, sum(n) OVER (PARTITION BY {{names}} ORDER BY bucket) AS upto,
            (sum(n) OVER (PARTITION BY {{names}}))::BIGINT AS total
        FROM summed
    )
    SELECT {{names}}, total, {_PLACES} FROM placed GROUP BY {{names}}, total
"""


class CountedSource(NamedTuple):
    """The rollups and the rows that count the predictions of a filter."""

    sums: str
    """Condition for the rows of `rollups`."""
    rows: str
    """Condition for the rows of `predictions`."""
    values: Mapping[str, Any]
    """Named parameters of both."""


class Keys(NamedTuple):
    """The keys to count by."""

    names: str
    """The names of their columns."""
    of_sums: str
    """Their values in a row of `rollups`, under these names."""
    of_rows: str
    """Their values in a row of `predictions`, under these names."""


def source_of(filter_: Filter, plan: Plan = BY_ROWS) -> CountedSource:
    """Return what to read for the predictions of a filter."""
    rows, values = where(filter_)
    return CountedSource(in_sums(filter_, plan), f"{rows} AND {in_rows(plan)}", values)


def counted(source: CountedSource, keys: Keys) -> str:
    """Return the query for counts by keys; there may be two rows for the same keys."""
    return _COUNTED.format(**source._asdict(), **keys._asdict())


def classes(source: CountedSource, keys: Keys) -> str:
    """Return the query for detections by keys and `class_name`, with `n`."""
    return _detections(source, keys, "classes", "{}.class_name AS class_name", "{}.class_name")


def confidences(source: CountedSource, keys: Keys, *, by_class: bool) -> str:
    """Return the query for detections by keys, `class_name` (if `by_class`) and `bin`, with `n`."""
    name = "{}.class_name AS class_name, " if by_class else ""
    return _detections(source, keys, "confidences", name + "{}.bin AS bin", name + BIN)


def reasons(source: CountedSource, keys: Keys) -> str:
    """Return the query for predictions of the cloud by keys and `cloud_reason`, with `n`."""
    return _predictions(source, keys, "cloud_reasons", "cloud_reason", "cloud_reason")


def read_quantiles(
    run: RunQuery, source: CountedSource, keys: Keys
) -> dict[tuple[Any, ...], Quantiles]:
    """Return the quantiles of the inference times by keys; keys without a time are left out."""
    times = _predictions(source, keys, "times", "bucket", f"{BUCKET} AS bucket")
    found: dict[tuple[Any, ...], Quantiles] = {}
    for row in run(_QUANTILES.format(times=times, names=keys.names), source.values):
        key, total, buckets = row[:-7], row[-7], row[-6:]
        found[key] = _quantiles(total, buckets)
    return found


def _quantiles(total: int, buckets: Sequence[int]) -> Quantiles:
    p50, p95, p99 = (
        between(buckets[2 * at], buckets[2 * at + 1], fraction * (total - 1))
        for at, fraction in enumerate(QUANTILES)
    )
    return p50, p95, p99


def _detections(
    source: CountedSource, keys: Keys, column: str, of_item: str, of_detection: str
) -> str:
    sums = _OF_SUMS.format(
        **source._asdict(),
        **keys._asdict(),
        column=column,
        of_item=of_item.replace("{}", "i"),
        count="detections",
    )
    rows = _OF_DETECTIONS.format(
        **source._asdict(), **keys._asdict(), of_detection=of_detection.replace("{}", "d")
    )
    return f"{sums} UNION ALL {rows}"


def _predictions(
    source: CountedSource, keys: Keys, column: str, name: str, of_prediction: str
) -> str:
    sums = _OF_SUMS.format(
        **source._asdict(),
        **keys._asdict(),
        column=column,
        of_item=f"i.{name} AS {name}",
        count="predictions",
    )
    present = "inference_seconds IS NOT NULL" if name == "bucket" else f"{name} IS NOT NULL"
    rows = _OF_PREDICTIONS.format(
        **source._asdict(), **keys._asdict(), of_prediction=of_prediction, present=present
    )
    return f"{sums} UNION ALL {rows}"
