"""Detections by where they lie on the frame, from the rows of DuckDB."""

from dataclasses import replace

from ingest_service.store.duckdb.filters import where, where_sums
from ingest_service.store.duckdb.read_plan import Plan, in_rows, last_block, needs_rows, within
from ingest_service.store.duckdb.unfiltered_stats import RunQuery
from ingest_service.store.figures import MAX_FRAME_CLASSES, FrameCounts
from ingest_service.store.protocol import Filter

VECTOR = 2048
"""Rows that are sampled together, as by `TABLESAMPLE SYSTEM`, which reads the whole table and not
only the rows of a time."""
_PARTS = 1 << 20

_ABOUT = """
    SELECT (SELECT coalesce(sum(predictions), 0) FROM rollups WHERE {sums})::BIGINT + (
        SELECT count(*) FROM predictions WHERE {rows} AND {newer}
    )
"""
_SIZES = """
    SELECT image_width, image_height, count(*), epoch_us(min(received_at)),
        epoch_us(max(received_at))
    FROM predictions WHERE {rows} GROUP BY image_width, image_height ORDER BY 3 DESC, 1 DESC, 2 DESC
"""
_HAS_ROTATED = """
    SELECT count(*) FROM (
        SELECT 1 FROM prediction_shapes WHERE rotated_boxes IS NOT NULL AND {span} LIMIT 1
    )
"""
_BOXES = """
    SELECT image_width, image_height, unnest(detections) AS d FROM predictions WHERE {rows}
"""
_ROTATED_BOXES = """
    SELECT image_width, image_height, unnest(detections) AS d, unnest(rotated_boxes) AS r
    FROM (
        SELECT image_width, image_height, detections, received_at, device_id, spool_id, sequence
        FROM predictions WHERE {rows}
    ) LEFT JOIN (
        SELECT received_at, device_id, spool_id, sequence, rotated_boxes FROM prediction_shapes
        WHERE rotated_boxes IS NOT NULL AND {span}
    ) USING (received_at, device_id, spool_id, sequence)
"""
_CENTRE = "(d.box.{axis}_min::DOUBLE + d.box.{axis}_max) / 2"
_ROTATED_CENTRE = f"coalesce(r.center_{{axis}}::DOUBLE, {_CENTRE})"
# NULL explicitly: `greatest` and `least` ignore it.
_CELL = """
    CASE WHEN {size} > 0 AND {centre} IS NOT NULL THEN
        least(greatest(floor({centre} * {count} / {size}), 0), {count} - 1)::INTEGER
    END
"""
_CELLS = f"""
    SELECT class_name, cell, n, dense_rank() OVER (ORDER BY total DESC, class_name) AS place
    FROM (
        SELECT class_name, cell, n,
            coalesce(sum(n) FILTER (WHERE cell IS NOT NULL) OVER (PARTITION BY class_name), 0)
                AS total
        FROM (
            SELECT d.class_name AS class_name, {{row}} * {{columns}} + {{column}} AS cell,
                count(*) AS n
            FROM ({{boxes}}) GROUP BY ALL
        )
    )
    QUALIFY place <= {MAX_FRAME_CLASSES} OR cell IS NULL ORDER BY place
"""


def read_frame(
    run: RunQuery, filter_: Filter, columns: int, rows: int, at_most: int
) -> FrameCounts:
    """Return the detections by cell of a grid; all queries must see one snapshot.

    Args:
        run: runs the queries.
        filter_: the predictions to read.
        columns: number of columns of the grid.
        rows: number of rows of the grid.
        at_most: approximate number of predictions above which a sample is read.
    """
    condition, values = where(filter_)
    sums, _ = where_sums(filter_)
    newer = in_rows(Plan((), last_block(run), sums=True))
    ((about,),) = run(_ABOUT.format(sums=sums, rows=condition, newer=newer), values)
    share = 1.0
    if about > at_most:
        share = at_most / about
        # The same rows in both queries, and again when the frame is asked for again.
        chosen = f"hash(rowid // {VECTOR}) % {_PARTS} < {round(share * _PARTS)}"
        if needs_rows(filter_):  # the sample first: the detections of other rows are not read
            of_keys, _ = where(replace(filter_, class_names=(), min_confidence=None))
            condition = f"{of_keys} AND CASE WHEN {chosen} THEN {condition} ELSE false END"
        else:
            condition = f"{condition} AND {chosen}"
    sizes = run(_SIZES.format(rows=condition), values)
    known = [(width, height) for width, height, *_ in sizes if width and height]
    boxes, centre = _BOXES, _CENTRE
    span = "false"
    if sizes:
        oldest, newest = min(row[3] for row in sizes), max(row[4] for row in sizes)
        span = within("received_at", (oldest - 1, newest))
    ((rotated,),) = run(_HAS_ROTATED.format(span=span), {})
    if rotated:
        boxes, centre = _ROTATED_BOXES, _ROTATED_CENTRE
    cells = _CELLS.format(
        boxes=boxes.format(rows=condition, span=span),
        columns=columns,
        row=_CELL.format(centre=centre.format(axis="y"), count=rows, size="image_height"),
        column=_CELL.format(centre=centre.format(axis="x"), count=columns, size="image_width"),
    )
    grids: dict[str, list[int]] = {}
    without = 0
    for name, cell, count, _ in run(cells, values):
        if cell is None:
            without += count
        else:
            grids.setdefault(name, [0] * (columns * rows))[cell] = count
    return FrameCounts(
        {name: tuple(grid) for name, grid in grids.items()},
        sum(row[2] for row in sizes),
        without,
        share,
        known[0] if known else (0, 0),
    )
