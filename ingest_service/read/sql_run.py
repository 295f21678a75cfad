"""One SQL query in a process of its own, which asks for the rows that it needs.

Everything here blocks, so it runs on a thread.
"""

import contextlib
import json
import signal
import subprocess
import sys
from typing import IO, NamedTuple

import grpc
import pyarrow as pa

from ingest_service.store.duckdb import query_process
from ingest_service.store.duckdb.query_process import DATA, DONE, FAILED, FRAME, READ
from ingest_service.store.protocol import Reader
from servicekit.errors import FieldViolation, SightlineError, invalid

_REASONS = {
    query_process.NOT_ONE_SELECT: "SQL_NOT_ONE_SELECT",
    query_process.NOT_ALLOWED: "SQL_NOT_ALLOWED",
    query_process.INVALID: "SQL_INVALID",
}
_MAX_CONTENT = 2 * query_process.CHUNK


class SqlQuery(NamedTuple):
    """A query and its limits."""

    sql: str
    max_rows: int
    seconds: float
    """Maximum duration, > 0."""
    memory_bytes: int


class SqlSummary(NamedTuple):
    """The end of a query: the rows that were sent, and True if there were more than its limit."""

    rows: int
    truncated: bool


class SqlRun:
    """A running query. Used from one thread, except for `kill`.

    Args:
        query: the query.
        reader: reads the tables from one snapshot; closed with the run.
    """

    def __init__(self, query: SqlQuery, reader: Reader) -> None:
        self._query = query
        self._reader = reader
        self._tables = reader.log_tables()
        # -I: neither the folder, variables nor the user's packages can change what it imports.
        program = [sys.executable, "-I", query_process.__file__]
        self._process = subprocess.Popen(
            program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"ARROW_DEFAULT_MEMORY_POOL": "system"},
            cwd="/",
        )
        with contextlib.suppress(BrokenPipeError):  # `next_part` reports its end
            self._send_head()

    def next_part(self) -> bytes | SqlSummary:
        """Return the next bytes of the rows as a stream of Arrow IPC, or the summary at the end.

        Raises:
            SightlineError: INVALID_ARGUMENT, field `sql`; RESOURCE_EXHAUSTED, `QUERY_MEMORY`;
                DEADLINE_EXCEEDED, `QUERY_TIME`; INTERNAL, `QUERY_CRASHED`; or that of the store.
        """
        while True:
            kind, content = self._frame()
            if kind == DATA:
                return content
            if kind == DONE:
                return SqlSummary(**json.loads(content))
            if kind == FAILED:
                raise self._failure(**json.loads(content))
            if kind != READ:
                raise self._crashed("it sent what no query sends")
            with contextlib.suppress(BrokenPipeError):
                self._send_rows(**json.loads(content))

    def kill(self) -> None:
        """End the process, so that `next_part` returns soon. Safe from any thread."""
        self._process.kill()
        self._reader.interrupt()

    def close(self) -> None:
        """End the process and release the snapshot."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        self._reader.close()

    def _send_head(self) -> None:
        schemas = self._tables.schemas()
        head = {
            **self._query._asdict(),
            "tables": {name: schemas[name].serialize().to_pybytes().hex() for name in schemas},
            "views": list(self._tables.views()),
        }
        content = json.dumps(head).encode()
        self._stdin.write(len(content).to_bytes(4, "little") + content)
        self._stdin.flush()

    def _send_rows(
        self,
        table: str,
        columns: list[str] | None = None,
        part: int = 0,
        times: bool = False,
    ) -> None:
        if columns is None:
            rows = self._tables.parts(table, times=times).to_reader()
        else:
            rows = self._tables.read(table, columns, part)
        with pa.ipc.new_stream(pa.PythonFile(self._stdin, "w"), rows.schema) as stream:
            for batch in rows:
                stream.write_batch(batch)
        self._stdin.flush()

    def _frame(self) -> tuple[bytes, bytes]:
        kind, size = FRAME.unpack(self._exactly(FRAME.size))
        if size > _MAX_CONTENT:
            raise self._crashed("it sent what no query sends")
        return kind, self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        assert self._process.stdout is not None  # noqa: S101 # Popen was asked for a pipe
        content = self._process.stdout.read(size)
        if len(content) < size:
            raise self._ended()
        return content

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None  # noqa: S101 # Popen was asked for a pipe
        return self._process.stdin

    def _failure(self, kind: str, message: str) -> SightlineError:
        if kind == query_process.MEMORY:
            return self._out_of_memory()
        return invalid("sql", message, reason=_REASONS[kind])

    def _ended(self) -> SightlineError:
        """Return the error for a process that has ended by itself."""
        number = -self._process.wait()
        if number == signal.SIGXCPU:
            return out_of_time(self._query.seconds)
        if number in (signal.SIGKILL, signal.SIGABRT):  # by the kernel; by an allocation
            return self._out_of_memory()
        return self._crashed(f"it ended with {-number}")

    def _out_of_memory(self) -> SightlineError:
        mebibytes = self._query.memory_bytes >> 20
        return SightlineError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "QUERY_MEMORY",
            f"the query needs more than its limit of {mebibytes} MiB of memory: let it read fewer"
            " rows or columns, or raise sql_memory_bytes of the service",
            do_not_retry=True,
        )

    def _crashed(self, how: str) -> SightlineError:
        return SightlineError(
            grpc.StatusCode.INTERNAL,
            "QUERY_CRASHED",
            f"the process of the query crashed ({how}); nothing else is affected. Change the query",
            violations=[FieldViolation("sql", "crashes DuckDB")],
            do_not_retry=True,
        )


def out_of_time(seconds: float) -> SightlineError:
    """Return the error for a query that has run for too long."""
    return SightlineError(
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "QUERY_TIME",
        f"the query did not end within {seconds:g} s: bound it by received_at or captured_at, give"
        " the call a longer deadline, or raise sql_seconds of the service",
    )
