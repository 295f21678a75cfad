"""Rollups as Arrow tables: summed up from rows of predictions, and merged from other rollups.

They are computed here and not by SQL, which takes twice as long for a block of 25 000 predictions.
Pure.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ingest_service.store.duckdb.rollup_sql import BINS_PER_UNIT, BUCKET
from ingest_service.store.figures import CONFIDENCE_BINS

KEYS = ("captured_hour", "device_id", "model_name", "model_version", "source", "defect_detected")
"""Columns of `rollups` besides the block; their values together are unique in a block."""
ROWS = f"""
    SELECT epoch_us(captured_at) AS captured_us, device_id, model_name, model_version, source,
        defect_detected, cloud_reason, {BUCKET} AS bucket, detections
    FROM predictions WHERE {{where}}
"""
"""Query of the rows for `sum_up`. The whole detections: to take fields out of them costs more."""
HOUR_US = 3600 * 10**6
_LISTS = {
    "classes": (("class_name",), "detections"),
    "times": (("bucket",), "predictions"),
    "cloud_reasons": (("cloud_reason",), "predictions"),
    "confidences": (("class_name", "bin"), "detections"),
}
"""Columns of `rollups` that are lists: the keys of their items, and the counted number."""
_TIME = pa.timestamp("us", "UTC")
_MAX_CODE = 1 << 62
_DENSE = 4
"""Largest number of possible codes for each row at which a table of them is faster than hashing."""
_Ints: TypeAlias = NDArray[np.int64]


class _Items(NamedTuple):
    """The items of a list column of every group."""

    groups: _Ints
    """Number of the group of each item."""
    keys: Mapping[str, "pa.Array | _Ints"]
    counts: "_Ints | None"
    """None: each counts 1."""


def sum_up(rows: pa.Table) -> pa.Table:
    """Return the rollups of predictions, with the columns of `rollups` except `through`.

    Args:
        rows: the result of the query `ROWS`.
    """
    captured = rows.column("captured_us").to_numpy()
    keys = {key: rows.column(key).combine_chunks() for key in KEYS[1:]}
    hours = captured // HOUR_US
    groups, members = _grouped([hours, *keys.values()])
    lists = rows.column("detections").combine_chunks()
    detections = lists.flatten()
    by_bin = {
        "class_name": pc.struct_field(detections, "class_name"),
        "bin": bins_of(pc.struct_field(detections, "confidence").to_numpy()),
    }
    confidences = _reduced(_Items(groups[lists.value_parent_indices().to_numpy()], by_bin, None))
    by_class = {"class_name": confidences.keys["class_name"]}
    return _table(
        {
            "captured_hour": pa.array(hours[members] * HOUR_US).cast(_TIME),
            **{key: values.take(pa.array(members)) for key, values in keys.items()},
        },
        {
            "predictions": _summed(groups, len(members), None),
            "detections": _summed(groups, len(members), lists.value_lengths().to_numpy()),
        },
        _bounds(groups, members, captured, captured),
        {
            "classes": _reduced(confidences._replace(keys=by_class)),
            "times": _reduced(_present(groups, rows, "bucket")),
            "cloud_reasons": _reduced(_present(groups, rows, "cloud_reason")),
            "confidences": confidences,
        },
    )


def merge(rollups: pa.Table) -> pa.Table:
    """Return rollups merged to one row for each combination of the keys.

    Args:
        rollups: rows with the columns of `rollups`.
    """
    keys = {key: rollups.column(key).combine_chunks() for key in KEYS}
    groups, members = _grouped(keys.values())
    return _table(
        {key: values.take(pa.array(members)) for key, values in keys.items()},
        {
            name: _summed(groups, len(members), rollups.column(name).to_numpy())
            for name in ("predictions", "detections")
        },
        _bounds(
            groups,
            members,
            *(_us(rollups.column(name)) for name in ("first_captured_at", "last_captured_at")),
        ),
        {name: _reduced(_listed(groups, rollups, name)) for name in _LISTS},
    )


def bins_of(confidences: "NDArray[np.float32]") -> "NDArray[np.uint8]":
    """Return the bin of each confidence in [0, 1], as the SQL `BIN` does."""
    scaled: NDArray[np.float64] = confidences.astype(np.float64) * BINS_PER_UNIT
    return np.minimum(scaled, CONFIDENCE_BINS - 1).astype(np.uint8)


def _present(groups: _Ints, rows: pa.Table, key: str) -> _Items:
    """Return the values of a column that are not null, as items that each count 1."""
    column = rows.column(key).combine_chunks()
    values = column.drop_null()
    keys = {key: values.to_numpy() if pa.types.is_integer(values.type) else values}
    return _Items(groups[column.is_valid().to_numpy(False)], keys, None)


def _listed(groups: _Ints, rollups: pa.Table, name: str) -> _Items:
    """Return the items of a list column of rollups."""
    keys, count = _LISTS[name]
    lists = rollups.column(name).combine_chunks()
    items = lists.flatten()
    return _Items(
        groups[lists.value_parent_indices().to_numpy()],
        {key: pc.struct_field(items, key) for key in keys},
        pc.struct_field(items, count).to_numpy(),
    )


def _reduced(items: _Items) -> _Items:
    """Return one item for each group and combination of keys, with the sum of the counts."""
    codes, members = _grouped([items.groups, *items.keys.values()])
    keys = {key: values.take(members) for key, values in items.keys.items()}
    return _Items(items.groups[members], keys, _summed(codes, len(members), items.counts))


def _table(
    keys: Mapping[str, pa.Array],
    counts: Mapping[str, _Ints],
    bounds: tuple[pa.Array, pa.Array],
    items: Mapping[str, _Items],
) -> pa.Table:
    columns: dict[str, Any] = {**keys, **counts}
    columns["first_captured_at"], columns["last_captured_at"] = bounds
    size = len(counts["predictions"])
    return pa.table(columns | {name: _lists(size, of, name) for name, of in items.items()})


def _bounds(groups: _Ints, members: _Ints, first: _Ints, last: _Ints) -> tuple[pa.Array, pa.Array]:
    """Return the first and the last capture time of each group."""
    earliest, latest = first[members], last[members]
    np.minimum.at(earliest, groups, first)
    np.maximum.at(latest, groups, last)
    return pa.array(earliest).cast(_TIME), pa.array(latest).cast(_TIME)


def _lists(size: int, items: _Items, name: str) -> pa.Array:
    """Return the items of each group as a list."""
    order = np.argsort(items.groups, kind="stable")
    ends = np.cumsum(np.bincount(items.groups, minlength=size))
    fields = {key: values.take(order) for key, values in items.keys.items()}
    fields[_LISTS[name][1]] = _summed(np.arange(len(order)), len(order), items.counts)[order]
    structs = pa.StructArray.from_arrays(list(map(pa.array, fields.values())), list(fields))
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]), pa.int32()), structs)


def _summed(groups: _Ints, size: int, values: "_Ints | None") -> _Ints:
    """Return the sum of the values (None: of ones) of each group; exact below 2^53."""
    return np.bincount(groups, weights=values, minlength=size).astype(np.int64)


def _grouped(columns: Iterable[pa.Array | _Ints]) -> tuple[_Ints, _Ints]:
    """Number the combinations of values; return each row's number, and a row of each number."""
    codes, span = np.zeros(1, np.int64), 1
    for column in columns:
        values, size = _coded(column)
        if span * size > _MAX_CODE:
            codes, members = _numbered(codes, span)
            span = len(members)
        codes = codes * size + values
        span *= size
    return _numbered(codes, span)


def _coded(column: "pa.Array | _Ints") -> tuple[_Ints, int]:
    """Return a code for each value, and a bound above every code."""
    if isinstance(column, np.ndarray):
        codes = column.astype(np.int64) - (column.min() if len(column) else 0)
        return codes, int(codes.max(initial=0)) + 1
    values = column.dictionary_encode(null_encoding="encode")
    return values.indices.to_numpy(), max(len(values.dictionary), 1)


def _numbered(codes: _Ints, span: int) -> tuple[_Ints, _Ints]:
    """Replace codes below `span` by numbers from 0 on; return also a position of each number."""
    if span <= _DENSE * len(codes):
        used = np.flatnonzero(np.bincount(codes, minlength=span))
        numbers = np.empty(span, np.int64)
        numbers[used] = np.arange(len(used))
        codes = numbers[codes]
    else:
        codes = pa.array(codes).dictionary_encode().indices.to_numpy().astype(np.int64)
    members = np.empty(codes.max(initial=-1) + 1, np.int64)
    members[codes] = np.arange(len(codes))
    return codes, members


def _us(times: pa.ChunkedArray) -> _Ints:
    return times.cast(_TIME).cast(pa.int64()).to_numpy()  # type: ignore[no-any-return]
