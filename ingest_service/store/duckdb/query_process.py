"""The process that runs one SQL query for a caller: the program that `read/sql_run.py` starts.

It has a DuckDB of its own, in memory, and reaches the log only by asking the server for rows over
its standard streams. Before it reads the query it gives up every right that it does not need: it
can open no file and no socket, its memory and CPU time are limited, and it runs at the lowest
priority. So a query that exhausts memory, never ends or crashes DuckDB ends this process alone.

It imports nothing of Sightline, because it runs isolated from paths and variables.
"""

import contextlib
import ctypes
import datetime
import json
import os
import re
import resource
import signal
import struct
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

FRAME = struct.Struct("<cI")
"""Head of a frame to the server: its kind and the length of its content, bytes."""
READ, DATA, DONE, FAILED = b"R", b"D", b"E", b"F"
"""Kinds of frames: a request for rows (JSON), bytes of the result, its summary, an error (JSON)."""
CHUNK = 512 * 1024
"""Size from which bytes of the result are sent, bytes; a frame has at most twice as many."""
NOT_ONE_SELECT, NOT_ALLOWED, INVALID, MEMORY = "NOT_ONE_SELECT", "NOT_ALLOWED", "INVALID", "MEMORY"
"""Kinds of failures."""

_BATCH = 2048
_LENGTH = struct.Struct("<I")
_MAX_MESSAGE = 2000
_CPU_SLACK_SECONDS = 5
_OUT_OF_MEMORY = ("Out of Memory", "bad_alloc", "MemoryError", "malloc of size")
"""Texts of such errors where one library passes on that of another."""
_NOT_PASSED_ON = ("Arrow", "pytz")
"""Texts of errors where a condition cannot be expressed for a scan of Arrow's."""
_SET_SIGNAL_OF_PARENTS_DEATH = 1
"""PR_SET_PDEATHSIG of prctl(2)."""
_NO_FILES = "can reach no file, extension, setting or network"


class _RefusalError(Exception):
    """A query that is not run."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class _Parent:
    """The other end of the standard streams."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self._source = source
        self._sink = sink

    def head(self) -> dict[str, Any]:
        """Return the head of the query, which the server sends first."""
        content: dict[str, Any] = json.loads(self._exactly(*_LENGTH.unpack(self._exactly(4))))
        return content

    def send(self, kind: bytes, content: bytes) -> None:
        """Send a frame."""
        self._sink.write(FRAME.pack(kind, len(content)) + content)
        self._sink.flush()

    def rows(self, **request: object) -> pa.Table:
        """Ask for rows, and return them."""
        self.send(READ, json.dumps(request).encode())
        with pa.ipc.open_stream(self._source) as stream:
            return stream.read_all()

    def _exactly(self, size: int) -> bytes:
        content = self._source.read(size)
        if len(content) < size:
            raise EOFError
        return content


class _RemoteTable(ds.Dataset):  # type: ignore[misc] # DuckDB accepts a subclass of this, as Lance's
    """A table of the log. DuckDB passes it the columns and conditions of each scan."""

    def __init__(self, server: _Parent, name: str, schema: pa.Schema) -> None:
        # Not the initializer of the base class, which forbids instances.
        self._server = server
        self._name = name
        self._columns = schema

    @property
    def schema(self) -> pa.Schema:
        """The schema of the table."""
        return self._columns

    def scanner(
        self,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,  # noqa: A002 # DuckDB passes it by name
        **_: object,
    ) -> "_RemoteScan":
        """Return a scan of the rows, which are read from the server while DuckDB takes them."""
        names = list(columns or self._columns.names[:1])
        parts = self._server.rows(table=self._name, times=filter is not None)
        wanted: Sequence[int] = range(parts.num_rows)
        if filter is not None:
            wanted = _matching(parts, self._columns, filter)
        schema = pa.schema([self._columns.field(name) for name in names])
        return _RemoteScan(schema, self._batches(schema, wanted, filter))

    def _batches(
        self, schema: pa.Schema, parts: Sequence[int], condition: pc.Expression | None
    ) -> Iterator[pa.RecordBatch]:
        for part in parts:
            rows = self._server.rows(table=self._name, columns=schema.names, part=part)
            if condition is not None:  # DuckDB does not check it again
                rows = rows.filter(condition)
            yield from rows.cast(schema).to_batches()


class _RemoteScan(NamedTuple):
    """A scan. Arrow's own scanners read ahead, on threads that would mix up the stream."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]

    def to_reader(self) -> pa.RecordBatchReader:
        """Return a reader of the rows, as DuckDB asks for it."""
        return pa.RecordBatchReader.from_batches(self.schema, self.batches)


def _matching(parts: pa.Table, schema: pa.Schema, condition: pc.Expression) -> list[int]:
    """Return the parts whose ranges of time do not rule out every row, by Arrow's own judgement."""
    names = [name.removesuffix("_min") for name in parts.column_names if name.endswith("_min")]
    if not names:
        return list(range(parts.num_rows))
    ranges = []
    for row in range(parts.num_rows):
        bounds = [pc.scalar(True)]
        for name in names:
            least, most = (parts.column(f"{name}_{end}")[row] for end in ("min", "max"))
            if least.is_valid:
                bounds += [pc.field(name) >= least, pc.field(name) <= most]
        ranges.append(bounds)
    fragments = ds.FileSystemDataset.from_paths(
        [str(row) for row in range(parts.num_rows)],
        schema=schema,
        format=ds.IpcFileFormat(),  # never read: only the ranges are compared
        filesystem=pa.fs.LocalFileSystem(),
        partitions=[_all_of(bounds) for bounds in ranges],
    )
    return sorted(int(fragment.path) for fragment in fragments.get_fragments(filter=condition))


def _all_of(conditions: Sequence[pc.Expression]) -> pc.Expression:
    whole = conditions[0]
    for condition in conditions[1:]:
        whole &= condition
    return whole


class _Frames:
    """A file-like sink of Arrow's bytes, which are sent in frames."""

    closed = False

    def __init__(self, server: _Parent) -> None:
        self.begun = False
        self._server = server
        self._held = bytearray()

    def write(self, content: bytes) -> int:
        view = memoryview(content)
        for start in range(0, len(view), CHUNK):
            self._held += view[start : start + CHUNK]
            if len(self._held) >= CHUNK:
                self.flush()
        return len(view)

    def flush(self) -> None:
        if self._held:
            self.begun = True
            self._server.send(DATA, bytes(self._held))
            self._held.clear()


class _Utc(datetime.tzinfo):
    """UTC as the package pytz has it."""

    zone = "UTC"

    def utcoffset(self, _: datetime.datetime | None) -> datetime.timedelta:
        return datetime.timedelta(0)

    def dst(self, _: datetime.datetime | None) -> datetime.timedelta:
        return datetime.timedelta(0)

    def tzname(self, _: datetime.datetime | None) -> str:
        return "UTC"

    def localize(self, moment: datetime.datetime) -> datetime.datetime:
        return moment.replace(tzinfo=self)


def _stand_in_for_pytz() -> None:
    """Let DuckDB pass lists of times to a scan, for which it needs pytz, which no extra installs.

    Such lists come from `IN`, and from joins with few rows. UTC is the only time zone here. Arrow
    compares with the two classes.
    """
    pytz = types.ModuleType("pytz")
    fixed = type("_FixedOffset", (), {})
    pytz.__dict__.update(timezone=lambda _: _Utc(), BaseTzInfo=_Utc, _FixedOffset=fixed)
    sys.modules["pytz"] = pytz


def _open_box(memory_bytes: int) -> duckdb.DuckDBPyConnection:
    box = duckdb.connect(
        config={
            "threads": "1",
            "memory_limit": f"{memory_bytes // 1024}KiB",
            "temp_directory": "",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "python_enable_replacements": "false",
        }
    )
    box.execute("SET TimeZone = 'UTC'")
    box.execute("SET enable_external_access = false")  # it cannot be set back
    return box


def _warm_up(box: duckdb.DuckDBPyConnection) -> None:
    """Let the libraries load what they load late, while files can be opened."""
    table = pa.table({"number": [1], "moment": pa.array([0], pa.timestamp("us", "UTC"))})
    box.register("warm", ds.dataset(table))
    sql = "SELECT moment::VARCHAR FROM warm WHERE number > 0 AND moment > '1960-01-01'::TIMESTAMPTZ"
    box.execute(f"{sql} AND number IN (1, 2, 3)").to_arrow_reader(_BATCH).read_all()
    box.unregister("warm")
    table.filter(pc.field("number") > 0)


def _end_with_parent() -> None:
    """Let the kernel end this process with the server, even while it computes or sleeps.

    That is with the server's thread that started it, which lives as long as the server.
    """
    with contextlib.suppress(OSError, AttributeError):  # where it is not Linux
        ctypes.CDLL(None).prctl(_SET_SIGNAL_OF_PARENTS_DEATH, signal.SIGKILL, 0, 0, 0)


def _give_up_rights(memory_bytes: int, seconds: float) -> None:
    """Limit this process to computing, within its memory and CPU time."""
    os.nice(19)
    with contextlib.suppress(OSError):  # where it is not Linux
        Path("/proc/self/oom_score_adj").write_text("1000")
    # The libraries have data of their own.
    _limit(resource.RLIMIT_DATA, _data_bytes() + memory_bytes)
    # The server ends it sooner, unless the server is gone.
    _limit(resource.RLIMIT_CPU, int(seconds) + _CPU_SLACK_SECONDS)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    # The three standard streams are all that may ever be open: neither files nor sockets.
    _limit(resource.RLIMIT_NOFILE, 3)


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def _data_bytes() -> int:
    """Return the bytes that count against the limit of data so far; 0: not known."""
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text()
        found = re.search(r"^VmData:\s+(\d+) kB", status, re.MULTILINE)
        return int(found[1]) * 1024 if found else 0
    return 0


def _check(box: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Raise _RefusalError unless the text is one SELECT, by DuckDB's own parser."""
    kinds = [statement.type.name for statement in box.extract_statements(sql)]
    if kinds != ["SELECT"]:
        found = " and ".join(kinds) if kinds else "none"
        raise _RefusalError(NOT_ONE_SELECT, f"must be one SELECT, got {found}")


def _run(server: _Parent, box: duckdb.DuckDBPyConnection, head: Mapping[str, Any]) -> None:
    _check(box, head["sql"])
    tables = {
        name: _RemoteTable(server, name, pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(encoded))))
        for name, encoded in head["tables"].items()
    }
    for name, table in tables.items():
        box.register(name, table)
    for view in head["views"]:
        box.execute(view)
    box.execute("SET lock_configuration = true")
    frames = _Frames(server)
    try:
        summary = _send_rows(box, frames, head["sql"], head["max_rows"])
    except duckdb.Error as error:
        if frames.begun or not any(sign in str(error) for sign in _NOT_PASSED_ON):
            raise
        _pass_no_conditions(box, tables)
        frames = _Frames(server)
        summary = _send_rows(box, frames, head["sql"], head["max_rows"])
    frames.flush()
    server.send(DONE, json.dumps(summary).encode())


def _pass_no_conditions(box: duckdb.DuckDBPyConnection, tables: Mapping[str, _RemoteTable]) -> None:
    """Let DuckDB itself check all conditions: a limit keeps them from the scans below it."""
    for name, table in tables.items():
        box.unregister(name)
        box.register(f"{name} of the log", table)
        box.execute(f'CREATE VIEW "{name}" AS FROM "{name} of the log" LIMIT {2**62}')


def _send_rows(
    box: duckdb.DuckDBPyConnection, frames: _Frames, sql: str, max_rows: int
) -> dict[str, Any]:
    """Send the rows of a query, and return the summary."""
    reader = box.execute(sql).to_arrow_reader(_BATCH)
    left, truncated, rows = max_rows, False, 0
    schema = _with_unique_names(reader.schema)
    with pa.ipc.new_stream(pa.PythonFile(frames, "w"), schema) as writer:
        for batch in reader:
            kept = pa.RecordBatch.from_arrays(batch.columns, schema=schema).slice(0, left)
            if kept.num_rows:
                writer.write_batch(kept)
            rows, left = rows + kept.num_rows, left - kept.num_rows
            if kept.num_rows < batch.num_rows:
                truncated = True
                break
    return {"rows": rows, "truncated": truncated}


def _with_unique_names(schema: pa.Schema) -> pa.Schema:
    """Return the schema with a number at a repeated name, as DuckDB names those of a subquery.

    Most programs keep one column of each name, so that the others would be lost.
    """
    names = set(schema.names)
    seen: set[str] = set()
    fields = []
    for field in schema:
        name, number = field.name, 0
        while name in seen or (number and name in names):
            number += 1
            name = f"{field.name}_{number}"
        seen.add(name)
        fields.append(field.with_name(name))
    return pa.schema(fields, schema.metadata)


def _failure(error: Exception) -> tuple[str, str]:
    """Return the kind and the message of a failure."""
    text = str(error).strip()
    match error:
        case _RefusalError():
            return error.kind, text
        case MemoryError() | duckdb.OutOfMemoryException() | pa.ArrowMemoryError():
            return MEMORY, text
        case duckdb.PermissionException():
            return NOT_ALLOWED, f"{_NO_FILES}: {text}"
    if any(sign in text for sign in _OUT_OF_MEMORY):
        return MEMORY, text
    if isinstance(error, OSError) or "Too many open files" in text:
        return NOT_ALLOWED, f"{_NO_FILES}: {text}"
    return INVALID, text


def main() -> None:
    """Run the query that the server sends, and send its rows."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # of a terminal; the server ends this process
    sink = os.fdopen(1, "wb")
    server = _Parent(os.fdopen(0, "rb"), sink)
    try:
        _end_with_parent()
        head = server.head()  # ends this process if the server has ended before
        _stand_in_for_pytz()
        box = _open_box(head["memory_bytes"] * 3 // 4)
        _warm_up(box)
        _give_up_rights(head["memory_bytes"], head["seconds"])
        try:
            _run(server, box, head)
        except (EOFError, BrokenPipeError):
            raise
        except Exception as error:  # noqa: BLE001 # whatever it is, the caller is told
            kind, message = _failure(error)
            failure = {"kind": kind, "message": message[:_MAX_MESSAGE]}
            server.send(FAILED, json.dumps(failure).encode())
    except (EOFError, BrokenPipeError):  # the server has no use for the result
        pass
    # Not through the interpreter's own end, which frees what a query has allocated piece by piece.
    with contextlib.suppress(OSError):
        sink.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
