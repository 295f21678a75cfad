"""Blocks of commits and the rollups of each block, which are merged as they become many.

A block is a closed run of commits: its rows never change, except that retention deletes whole
blocks. Queries read predictions that are newer than the last block row by row.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from ingest_service.store.duckdb import spool_sums, totals
from ingest_service.store.duckdb.rollup_sums import ROWS, merge, sum_up

BLOCK = 25_000
"""Approximate number of predictions in a new block."""
BLOCK_US = 3600 * 10**6
"""Maximum duration of a block, us. A block also ends at each full hour."""
MERGED_BLOCK = 1_000_000
"""Maximum number of predictions in a merged block."""
MERGED_AT_ONCE = 8
"""Minimum number of the newest blocks that are merged into one."""

_PORTION = 50_000
"""Maximum number of rows that are summed up at once: a block may have a million."""

_ENDS = f"""
    SELECT epoch_us(min(received_at)), epoch_us(max(received_at)), sum(predictions)::BIGINT
    FROM (
        SELECT received_at, count(*) AS predictions,
            sum(count(*)) OVER (ORDER BY received_at) AS upto
        FROM predictions
        WHERE received_at > (SELECT coalesce(max(through), '-infinity') FROM blocks)
        GROUP BY received_at
    )
    GROUP BY (upto - 1) // {BLOCK}, epoch_us(received_at) // {BLOCK_US} ORDER BY 1
"""
_LAST = "SELECT epoch_us(max(through)) FROM blocks"
# Literals and not parameters: with parameters, DuckDB would read `received_at` of every row.
_ROWS = ROWS.format(
    where="received_at > make_timestamptz({after}) AND received_at <= make_timestamptz({through})"
)
_ROLLUPS = """
    SELECT * FROM rollups
    WHERE through > make_timestamptz($after) AND through <= make_timestamptz($through)
"""
_ADD_ROLLUPS = """
    INSERT INTO rollups BY NAME SELECT make_timestamptz($through) AS through, * FROM sums
"""
_ADD_BLOCK = """
    INSERT INTO blocks
    VALUES (make_timestamptz($after), make_timestamptz($through), $predictions, $has_confidences)
"""
_ADD_TIMES = "INSERT INTO block_times VALUES (make_timestamptz($through), $first, $last)"
_BLOCKS = """
    SELECT epoch_us(after), epoch_us(through), predictions, has_confidences IS TRUE
    FROM blocks ORDER BY through
"""
_WITHOUT_CONFIDENCES = """
    SELECT epoch_us(after), epoch_us(through), predictions, false
    FROM blocks WHERE has_confidences IS NOT TRUE ORDER BY through DESC LIMIT 1
"""
_DELETE = """
    DELETE FROM {table}
    WHERE through > make_timestamptz($after) AND through <= make_timestamptz($through)
"""


class Block(NamedTuple):
    """A run of commits: after < received_at <= through, us since 1970."""

    after: int
    through: int
    predictions: int
    has_confidences: bool = True
    """False: an older version made the rollups; see `sum_up_again`."""


def open_blocks(
    cursor: duckdb.DuckDBPyConnection, age: Callable[[int], int], *, everything: bool = False
) -> list[Block]:
    """Return the blocks that can be closed: full blocks, and the last one if it is old enough.

    Args:
        cursor: the connection.
        age: returns the age of a commit in us, given its time in us since 1970.
        everything: True: close the last block in any case.
    """
    ends = cursor.execute(_ENDS).fetchall()
    if not ends:
        return []
    # The newest block stays open for later commits, unless it is old.
    first, _, predictions = ends[-1]
    if predictions < BLOCK and age(first) < BLOCK_US and not everything:
        ends.pop()
    (after,) = cursor.execute(_LAST).fetchall()[0]
    blocks = []
    for first, through, predictions in ends:
        blocks.append(Block(first - 1 if after is None else after, through, predictions))
        after = through
    return blocks


def close_block(cursor: duckdb.DuckDBPyConnection, block: Block) -> None:
    """Add a block and its rollups, in the open transaction."""
    sums = _sum_up_rows(cursor, block)
    _add_rollups(cursor, block, sums)
    totals.add_block(cursor, sums)
    spool_sums.add_block(cursor, block.after, block.through)


def merge_blocks(cursor: duckdb.DuckDBPyConnection, blocks: Sequence[Block]) -> None:
    """Merge neighbouring blocks into one, in the open transaction."""
    block = Block(
        blocks[0].after,
        blocks[-1].through,
        sum(block.predictions for block in blocks),
        all(block.has_confidences for block in blocks),
    )
    merged = merge(cursor.execute(_ROLLUPS, _span(block)).to_arrow_table())
    delete_sums(cursor, block.after, block.through)
    _add_rollups(cursor, block, merged)


def sum_up_again(cursor: duckdb.DuckDBPyConnection) -> bool:
    """Make the rollups of the newest block without confidences again, in the open transaction.

    Returns:
        False: every block has confidences, and nothing was done.
    """
    blocks = cursor.execute(_WITHOUT_CONFIDENCES).fetchall()
    if not blocks:
        return False
    block = Block(*blocks[0])._replace(has_confidences=True)
    sums = _sum_up_rows(cursor, block)
    delete_sums(cursor, block.after, block.through)
    _add_rollups(cursor, block, sums)
    return True


def _sum_up_rows(cursor: duckdb.DuckDBPyConnection, block: Block) -> pa.Table:
    """Return the rollups of a block, from its rows, which are read in portions."""
    reader = cursor.execute(_ROWS.format(**_span(block))).to_arrow_reader(_PORTION)
    sums = [sum_up(pa.Table.from_batches([rows])) for rows in reader]
    sums = sums or [sum_up(reader.schema.empty_table())]
    return sums[0] if len(sums) == 1 else merge(pa.concat_tables(sums))


def _add_rollups(cursor: duckdb.DuckDBPyConnection, block: Block, sums: pa.Table) -> None:
    """Add a block with its rollups."""
    cursor.register("sums", sums)
    cursor.execute(_ADD_ROLLUPS, {"through": block.through})
    cursor.unregister("sums")
    cursor.execute(_ADD_BLOCK, block._asdict())
    if sums.num_rows:
        first, last = pc.min(sums["first_captured_at"]), pc.max(sums["last_captured_at"])
        times = {"first": first.as_py(), "last": last.as_py()}
        cursor.execute(_ADD_TIMES, {"through": block.through, **times})


def delete_sums(cursor: duckdb.DuckDBPyConnection, after: int, through: int) -> None:
    """Delete these blocks and their rollups, in the open transaction."""
    for table in ("rollups", "blocks", "block_times"):
        cursor.execute(_DELETE.format(table=table), {"after": after, "through": through})


def expire_sums(cursor: duckdb.DuckDBPyConnection, after: int, through: int) -> None:
    """Delete expired blocks, and subtract them from the totals, in the open transaction."""
    totals.subtract_blocks(cursor, after, through)
    delete_sums(cursor, after, through)


def _span(block: Block) -> dict[str, int]:
    return {"after": block.after, "through": block.through}


def all_blocks(cursor: duckdb.DuckDBPyConnection) -> list[Block]:
    """Return every block, oldest first."""
    return [Block(*row) for row in cursor.execute(_BLOCKS).fetchall()]


def mergeable(blocks: Sequence[Block]) -> Sequence[Block]:
    """Return the oldest neighbouring blocks that are worth merging; () if there are none."""
    runs = list(_runs(blocks))
    for run in runs[:-1]:
        if len(run) > 1:
            return run
    # The last run still grows: merging it with every new block would be wasted work.
    return runs[-1] if runs and len(runs[-1]) >= MERGED_AT_ONCE else ()


def _runs(blocks: Sequence[Block]) -> Iterator[Sequence[Block]]:
    """Split the blocks into runs that each fit into one merged block."""
    start = 0
    for end in range(1, len(blocks) + 1):
        if end == len(blocks) or not _fits(blocks[start : end + 1]):
            yield blocks[start:end]
            start = end


def _fits(run: Sequence[Block]) -> bool:
    long = run[-1].through - run[0].after > BLOCK_US
    return not long and sum(block.predictions for block in run) <= MERGED_BLOCK
