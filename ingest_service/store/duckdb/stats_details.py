"""Counts that no rollup has: verdicts, cloud reasons and the label `source`, from the rows.

They read every row that matches, and so are counted only where a request wants them.
"""

from ingest_service.store.duckdb.filters import where
from ingest_service.store.duckdb.unfiltered_stats import MAX_KEYS, RunQuery
from ingest_service.store.protocol import Filter, JudgedCount, StatsDetails

_KEYS = {
    "device_id": "device_id",
    "model_name": "model_name",
    "source": "source",
    "cloud_reason": "cloud_reason",
    "source_label": "labels['source']",
}
_COUNTED = """
    SELECT '{kind}' AS kind, {key} AS name, count(*) AS total,
        count(*) FILTER (WHERE defect_detected) AS defects, count(defect_detected) AS verdicts
    FROM predictions WHERE {where} GROUP BY name HAVING name IS NOT NULL
"""


def read_details(run: RunQuery, filter_: Filter) -> StatsDetails:
    """Return the detailed counts of what matches; all queries must see one moment."""
    condition, values = where(filter_)
    counts: dict[str, list[JudgedCount]] = {kind: [] for kind in _KEYS}
    for kind, key in _KEYS.items():
        query = _COUNTED.format(kind=kind, key=key, where=condition)
        for _, name, total, defects, verdicts in run(query, values):
            counts[kind].append(JudgedCount(name, total, defects, verdicts))
    for kind, found in counts.items():
        counts[kind] = sorted(found, key=lambda count: (-count.total, count.key))
    verdicts = {
        kind: {count.key: count.with_verdict for count in counts[kind]}
        for kind in ("device_id", "model_name", "source")
    }
    return StatsDetails(
        with_verdict=sum(verdicts["source"].values()),
        verdicts=verdicts,
        by_cloud_reason=counts["cloud_reason"][:MAX_KEYS],
        by_source_label=counts["source_label"][:MAX_KEYS],
    )
