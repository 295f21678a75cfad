"""SQL over the log from Python: `sightline.connect(...).sql("SELECT ...")`."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, Self

import grpc

from edge.channel import Endpoint
from edge.endpoints import ingest_endpoint
from edge.settings import EdgeSettings
from servicekit.distribution import install_hint
from servicekit.errors import SightlineError, from_rpc_error
from servicekit.settings import load
from servicekit.standard_streams import open_closed
from sightline.ingest.v1 import ingest_service_pb2_grpc, reads_pb2

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

DEFAULT_TIMEOUT = 60.0
"""Default timeout of a query, s."""
DEFAULT_ROWS = 1_000_000


class QueryResult(NamedTuple):
    """The rows of a query, and whether there were more than asked for.

    Example:
        >>> from sightline import QueryResult
        >>> QueryResult(table=None, truncated=True).truncated
        True
    """

    table: "pa.Table"
    """The rows."""
    truncated: bool
    """True if there were more rows than `max_rows`."""


class LogClient:
    """A client that runs SQL over the log of an ingest service. Thread-safe.

    A query sees the log as of one moment, while devices keep logging. It needs pyarrow (extra
    `ingest`).

    Args:
        endpoint: the service, or its target without TLS, such as `127.0.0.1:50051`. None: that of
            the settings of a node (`SIGHTLINE_EDGE_INGEST_TARGET`, `SIGHTLINE_EDGE_API_KEY`, ...).
        timeout: default timeout of a query, s, above 0.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.

    Example:
        >>> from sightline import LogClient, SightlineError
        >>> with LogClient("127.0.0.1:1", timeout=5.0) as log:
        ...     try:
        ...         table = log.sql("SELECT count(*) FROM predictions")
        ...     except SightlineError as error:  # no service listens on this port
        ...         print(error.category, error.retryable)
        network True
    """

    def __init__(
        self, endpoint: Endpoint | str | None = None, *, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        open_closed()
        try:
            import pyarrow  # noqa: F401 # fail here, and not at the first query
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{error}: {install_hint('ingest')}") from error
        if endpoint is None:
            endpoint = ingest_endpoint(load(EdgeSettings, [], prog="sightline"))
        self._endpoint = Endpoint(endpoint) if isinstance(endpoint, str) else endpoint
        self._timeout = timeout
        self._channel = self._endpoint.channel()
        self._stub = ingest_service_pb2_grpc.IngestServiceStub(self._channel)

    def sql(
        self, text: str, *, max_rows: int = DEFAULT_ROWS, timeout: float | None = None
    ) -> "pa.Table":
        """Return the rows of one SELECT as a pyarrow table.

        Args:
            text: SQL of DuckDB over the tables of the log, at most 64 KiB.
            max_rows: maximum number of rows, 1 to 1 000 000.
            timeout: seconds; None: that of the client.

        Raises:
            SightlineError: INVALID_ARGUMENT: it is not one SELECT, or DuckDB refuses it;
                RESOURCE_EXHAUSTED, `QUERY_MEMORY`: it needs too much memory; OUT_OF_RANGE,
                `RESULT_TRUNCATED`: there are more rows; or that of the call.
        """
        result = self.query(text, max_rows=max_rows, timeout=timeout)
        if result.truncated:
            raise SightlineError(
                grpc.StatusCode.OUT_OF_RANGE,
                "RESULT_TRUNCATED",
                f"the result has more than max_rows, {max_rows} rows: raise it (to at most"
                " 1 000 000), bound the query by time, or call query(), which cuts off",
            )
        return result.table

    def relation(
        self, text: str, *, max_rows: int = DEFAULT_ROWS, timeout: float | None = None
    ) -> "duckdb.DuckDBPyRelation":
        """Return the rows of one SELECT as a relation of DuckDB, to go on with SQL here.

        Args and errors are those of `sql`.
        """
        import duckdb

        return duckdb.from_arrow(self.sql(text, max_rows=max_rows, timeout=timeout))

    def query(
        self, text: str, *, max_rows: int = DEFAULT_ROWS, timeout: float | None = None
    ) -> QueryResult:
        """Return the first rows of one SELECT, and whether there are more.

        Args and errors are those of `sql`, but for `RESULT_TRUNCATED`.
        """
        import pyarrow as pa

        request = reads_pb2.QueryRequest(sql=text, max_rows=max_rows)
        limit = self._timeout if timeout is None else timeout
        try:
            call = self._stub.Query(request, timeout=limit, metadata=self._endpoint.metadata)
            received = _Received(call)
            with pa.ipc.open_stream(pa.PythonFile(received, "r")) as stream:
                table = stream.read_all()
            return QueryResult(table, received.summary().truncated)
        except grpc.RpcError as error:
            raise self._endpoint.explain(from_rpc_error(error), "ingest", "--ingest") from error

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()


def connect(
    endpoint: Endpoint | str | None = None, *, timeout: float = DEFAULT_TIMEOUT
) -> LogClient:
    """Return a `LogClient`, whose arguments these are.

    Example:
        >>> import sightline
        >>> log = sightline.connect("127.0.0.1:50051")
        >>> log.close()
    """
    return LogClient(endpoint, timeout=timeout)


class _Received:
    """A file-like object of the bytes of a result."""

    closed = False

    def __init__(self, answers: Iterable[reads_pb2.QueryResponse]) -> None:
        self._answers = iter(answers)
        self._held = b""
        self._summary: reads_pb2.QuerySummary | None = None

    def read(self, size: int = -1) -> bytes:
        """Return this many bytes, or fewer at the end."""
        parts, missing = [self._held], size - len(self._held)
        while missing > 0 or size < 0:
            answer = next(self._answers, None)
            if answer is None:
                break
            if answer.HasField("summary"):
                self._summary = answer.summary
                break
            parts.append(answer.data)
            missing -= len(answer.data)
        whole = b"".join(parts)
        end = len(whole) if size < 0 else size
        self._held = whole[end:]
        return whole[:end]

    def summary(self) -> reads_pb2.QuerySummary:
        """Return the summary, which comes after all bytes.

        Raises:
            SightlineError: DATA_LOSS; the answer ended without one.
        """
        self.read()
        if self._summary is None:
            raise SightlineError(
                grpc.StatusCode.DATA_LOSS, "RESULT_INCOMPLETE", "the result arrived incomplete"
            )
        return self._summary
