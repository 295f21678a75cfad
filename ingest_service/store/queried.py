"""The tables of a store as SQL queries of callers read them: schemas, views and parts of rows."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import pyarrow as pa


class LogTables(Protocol):
    """The tables of one snapshot. Not thread-safe, except for `interrupt`.

    Rows are read in parts, so that a query holds few of them at a time. Every method raises
    SightlineError and no other exception.
    """

    def schemas(self) -> Mapping[str, pa.Schema]:
        """Return the schema of each table by its name."""
        ...

    def views(self) -> Sequence[str]:
        """Return the statements in DuckDB's SQL that create the views over the tables."""
        ...

    def parts(self, table: str, *, times: bool) -> pa.Table:
        """Return one row for each part of a table.

        Args:
            table: a name in `schemas`.
            times: True: with the least and the greatest value of some columns of times, such as
                `received_at_min` and `received_at_max`, so that parts need not be read.
        """
        ...

    def read(self, table: str, columns: Sequence[str], part: int) -> pa.RecordBatchReader:
        """Return the rows of a part in small batches; read them before the next call.

        Args:
            table: a name in `schemas`.
            columns: names in its schema, at least one.
            part: index of a row in `parts`.
        """
        ...
