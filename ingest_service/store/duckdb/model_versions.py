"""Counts of predictions by version of the model, from DuckDB."""

from ingest_service.store.duckdb.figures_sql import (
    Keys,
    confidences,
    counted,
    read_quantiles,
    source_of,
)
from ingest_service.store.duckdb.read_plan import make_plan
from ingest_service.store.duckdb.unfiltered_stats import RunQuery
from ingest_service.store.figures import (
    CONFIDENCE_BINS,
    MAX_VERSIONS,
    PredictionTally,
    VersionFigures,
    Versions,
)
from ingest_service.store.protocol import Filter

_NAMES = "model_name, model_version"
_VERSIONS = Keys(_NAMES, _NAMES, _NAMES)
_OF_DEVICES = Keys(*(f"{_NAMES}, device_id" for _ in range(3)))
_SUMMED = f"""
    SELECT {_NAMES}, sum(predictions)::BIGINT, sum(defects)::BIGINT, sum(verdicts)::BIGINT,
        sum(found)::BIGINT, sum(from_cloud)::BIGINT, count(DISTINCT device_id),
        epoch_us(min(first)), epoch_us(max(last))
    FROM ({{counted}}) GROUP BY {_NAMES} ORDER BY max(last) DESC, {_NAMES} LIMIT {MAX_VERSIONS}
"""
_BINS = f"SELECT {_NAMES}, bin, sum(n)::BIGINT FROM ({{confidences}}) GROUP BY ALL"


def read_model_versions(run: RunQuery, filter_: Filter) -> Versions:
    """Return the versions of models, newest capture first; all queries must see one snapshot."""
    source = source_of(filter_, make_plan(run, filter_, confidences=True))
    rows = run(_SUMMED.format(counted=counted(source, _OF_DEVICES)), source.values)
    quantiles = read_quantiles(run, source, _VERSIONS)
    bins = {(name, version): [0] * CONFIDENCE_BINS for name, version, *_ in rows}
    query = _BINS.format(confidences=confidences(source, _VERSIONS, by_class=False))
    for name, version, number, count in run(query, source.values):
        if (name, version) in bins:
            bins[name, version][number] = count
    return [
        VersionFigures(
            name,
            version,
            PredictionTally(*counts),
            devices,
            quantiles.get((name, version)),
            tuple(bins[name, version]),
            first,
            last,
        )
        for name, version, *counts, devices, first, last in rows
    ]
