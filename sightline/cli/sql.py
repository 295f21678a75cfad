"""`sightline sql`: one SELECT over the log of a running service, as a table or a file."""

import base64
import csv
import io
import json
import sys
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge.commands.options import IngestTarget, settings_with
from edge.endpoints import ingest_endpoint
from servicekit.durable import take_name
from servicekit.help import CONNECTION, OUTPUT
from servicekit.names import printable
from servicekit.terminal import CommandError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

_NULL = "-"


class Format(StrEnum):
    """A format of the rows."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


def sql(
    query: Annotated[str, typer.Argument(help="One SELECT in DuckDB's SQL.")],
    output: Annotated[
        Format,
        typer.Option(
            "--format", help="Format of the rows; json: a line for each.", rich_help_panel=OUTPUT
        ),
    ] = Format.TABLE,
    to: Annotated[
        Path | None,
        typer.Option(
            help="File to write; must not exist. Not given: stdout.", rich_help_panel=OUTPUT
        ),
    ] = None,
    max_rows: Annotated[
        int, typer.Option(help="Maximum number of rows.", min=1, max=1_000_000)
    ] = 10_000,
    target: IngestTarget = None,
    timeout: Annotated[
        float,
        typer.Option(
            help="Seconds that the query may take.", min=0.001, rich_help_panel=CONNECTION
        ),
    ] = 60.0,
) -> None:
    """Run one SELECT over the log of a running ingest service.

    Example: sightline sql "SELECT device_id, count(*) FROM predictions GROUP BY ALL"

    The rows are of one moment, and devices go on logging meanwhile. The caller needs the scope
    `read` for every device.
    """
    if output is Format.PARQUET and to is None and sys.stdout.isatty():
        raise UsageError("--format parquet: name a file with --to, or redirect stdout to one")
    if to is not None and to.exists():
        raise CommandError(f"--to: {to} exists already: name another file")
    try:
        from sightline.log_client import LogClient

        client = LogClient(ingest_endpoint(settings_with(ingest_target=target)), timeout=timeout)
    except ModuleNotFoundError as error:
        raise CommandError(str(error)) from error
    with client:
        result = client.query(query, max_rows=max_rows)
    try:
        content = _encoded(result.table, output)
    except (OverflowError, ValueError, NotImplementedError) as error:
        raise CommandError(
            f"--format {output}: cannot hold a value of the result ({error}): cast its column in"
            " the query (value::VARCHAR), or choose another format"
        ) from error
    _put(content, to)
    if result.truncated:
        typer.echo(f"there are more than {max_rows:,} rows: raise --max-rows", err=True)


def _encoded(table: "pa.Table", output: Format) -> bytes:
    match output:
        case Format.CSV:
            return _as_csv(table).encode()
        case Format.JSON:
            lines = (json.dumps(row, default=_plain, ensure_ascii=False) for row in _rows(table))
            return "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
        case Format.PARQUET:
            import pyarrow.parquet as pq

            sink = io.BytesIO()
            pq.write_table(table, sink, compression="zstd")
            return sink.getvalue()
        case Format.TABLE:
            return b"" if not table.num_columns else _as_table(table).encode()


def _rows(table: "pa.Table") -> Iterator[dict[str, object]]:
    for batch in table.to_batches():
        yield from batch.to_pylist(maps_as_pydicts="lossy")


def _as_csv(table: "pa.Table") -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    writer.writerows([_cell(value, "") for value in row.values()] for row in _rows(table))
    return text.getvalue()


def _as_table(table: "pa.Table") -> str:
    shown = Table()
    for field in table.schema:
        numeric = str(field.type).startswith(("int", "uint", "float", "double", "decimal"))
        shown.add_column(
            escape(printable(field.name)), justify="right" if numeric else "left", overflow="fold"
        )
    for row in _rows(table):
        shown.add_row(*(escape(printable(_cell(value, _NULL))) for value in row.values()))
    text = io.StringIO()
    Console(file=text, width=Console().width).print(shown)
    return text.getvalue()


def _cell(value: object, null: str) -> str:
    if value is None:
        return null
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, dict)):
        return json.dumps(value, default=_plain, ensure_ascii=False)
    return str(value if isinstance(value, (int, float, str)) else _plain(value))


def _plain(value: object) -> object:
    """Return a value of DuckDB as JSON can hold it."""
    match value:
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case date():
            return value.isoformat()
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case timedelta():
            return value.total_seconds()
        case bytes():
            return base64.b64encode(value).decode()
        case _:
            return str(value)


def _put(content: bytes, to: Path | None) -> None:
    if to is None:
        typer.echo(content, nl=False)
        return
    try:
        partial = to.with_name(f".{to.name}.partial")
        partial.write_bytes(content)
        take_name(partial, to)
    except FileExistsError as error:
        raise CommandError(f"--to: {to} exists already: name another file") from error
    except OSError as error:
        raise CommandError(f"--to: {to} cannot be written: {error}") from error
