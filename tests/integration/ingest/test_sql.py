"""Query over real sockets: what it answers, what it refuses, and what it cannot harm."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pytest
from sightline.ingest.v1 import reads_pb2

from servicekit.errors import SightlineError
from tests.integration.ingest.conftest import Start
from tests.integration.ingest.process import PATIENCE, IngestProcess, refused
from tests.unit.edge.samples import eventually
from tests.unit.ingest_service.samples import (
    detection,
    gap,
    header,
    prediction,
    predictions,
    request,
    spool,
)

MEMORY = 64 << 20
GROWING = """
    WITH RECURSIVE t AS (
        SELECT 'x' AS s, 0 AS n UNION ALL SELECT s || s, n + 1 FROM t WHERE n < 40
    ) SELECT length(s) FROM t
"""


@pytest.fixture(scope="module")
def full_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IngestProcess]:
    """A server with a few rows in every table that people ask for."""
    folder = tmp_path_factory.mktemp("full")
    server = IngestProcess(folder, "--sql-memory-bytes", str(MEMORY), "--sql-queries", "3")
    server.start()
    wrong = prediction(3, detections=[detection(confidence=2)])
    server.log_messages(request(*predictions(1, 2), wrong, gap(4, 9), head=header()))
    marked = [prediction(n, defect_detected=n % 2 == 0) for n in range(1, 11)]
    server.log_messages(request(*marked, head=header(spool(2))))
    yield server
    server.kill()


def run(
    server: IngestProcess, sql: str, max_rows: int = 0, timeout: float = PATIENCE
) -> tuple[pa.Table, reads_pb2.QuerySummary]:
    data, summary = b"", None
    for part in server.stub.Query(
        reads_pb2.QueryRequest(sql=sql, max_rows=max_rows), timeout=timeout
    ):
        assert summary is None, "the summary is last"
        assert len(part.data) <= 1 << 20
        data += part.data
        summary = part.summary if part.HasField("summary") else None
    assert summary is not None
    return pa.ipc.open_stream(data).read_all(), summary


def rows(server: IngestProcess, sql: str, **limits: Any) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in run(server, sql, **limits)[0].to_pylist()]


def is_answered(server: IngestProcess) -> bool:
    """Return True if a query has a place."""
    try:
        return rows(server, "SELECT 1") == [(1,)]
    except grpc.RpcError:
        return False


def refusal(server: IngestProcess, sql: str, timeout: float = PATIENCE) -> SightlineError:
    with refused() as errors:
        run(server, sql, timeout=timeout)
    return errors[0]


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT 42, 'a'", [(42, "a")]),
        ("FROM predictions SELECT device_id, count(*) GROUP BY 1 ORDER BY 1;",
         [("gate-1", 2), ("gate-2", 10)]),
        ("WITH d AS (SELECT * FROM predictions WHERE defect_detected) SELECT count(*) FROM d",
         [(5,)]),
        ("SELECT count(*) FROM predictions WHERE received_at > now() - INTERVAL 1 HOUR", [(12,)]),
        ("SELECT count(*) FROM predictions WHERE received_at < '2020-01-01'::TIMESTAMPTZ", [(0,)]),
        ("SELECT count(*) FROM predictions WHERE sequence IN (1, 2) AND device_id <> 'x'", [(4,)]),
        ("SELECT count(*) FROM predictions a JOIN predictions b USING (sequence)", [(16,)]),
        ("SELECT sequence FROM predictions ORDER BY sequence DESC LIMIT 1", [(10,)]),
        ("SELECT reason, original->>'image_id' FROM rejected_predictions",
         [("CONFIDENCE_OUT_OF_RANGE", "image-3")]),
        ("SELECT first_sequence, last_sequence, reason FROM gaps", [(4, 9, "dropped_oldest")]),
        ("SELECT device_id, balanced FROM ledger ORDER BY ALL",
         [("gate-1", True), ("gate-2", True)]),
        ("SELECT max(d.confidence) FROM (SELECT unnest(detections) AS d FROM predictions)",
         [(0.75,)]),
        ("SELECT count(*) FROM blocks WHERE through > '2020-01-01'::TIMESTAMPTZ", [(0,)]),
        ("SELECT (captured_at AT TIME ZONE 'UTC')::DATE::VARCHAR FROM predictions LIMIT 1",
         [("2026-11-22",)]),
        ("SELECT count(*) FROM predictions WHERE received_at IN (SELECT received_at FROM gaps)",
         [(2,)]),
        ("SELECT count(*) FROM predictions JOIN gaps USING (received_at)", [(2,)]),
        ("FROM predictions SELECT count(*) WHERE captured_at IN ('2026-11-22 11:59:59Z', now())",
         [(12,)]),
        ("FROM predictions SELECT count(*) WHERE captured_at IN ('infinity', '290000-01-01')",
         [(0,)]),
        ("FROM ledger SELECT count(*) WHERE device_id IS DISTINCT FROM 'x' OR accepted > 1",
         [(2,)]),
        ("FROM gaps SELECT count(*) WHERE reason IS DISTINCT FROM 'x' OR reason IS DISTINCT FROM 1",
         [(1,)]),
        ("SELECT 1 WHERE false", []),
    ],
)  # fmt: skip
def test_one_select_is_answered(
    full_server: IngestProcess, sql: str, expected: list[tuple[Any, ...]]
) -> None:
    assert rows(full_server, sql) == expected


def test_no_two_columns_have_the_same_name(full_server: IngestProcess) -> None:
    """Or a program that takes rows as dictionaries loses all but one."""
    found, _ = run(full_server, "SELECT 1 AS a, 2 AS a, 3 AS a_1, 4 AS a, 5 AS b")
    assert found.to_pylist() == [{"a": 1, "a_2": 2, "a_1": 3, "a_3": 4, "b": 5}]
    joined, _ = run(full_server, "SELECT * FROM predictions p JOIN gaps g USING (device_id)")
    assert len(set(joined.column_names)) == joined.num_columns == 24


def test_rows_beyond_the_limit_are_cut_off_and_the_summary_says_so(
    full_server: IngestProcess,
) -> None:
    found, summary = run(full_server, "SELECT * FROM range(5000)", max_rows=4000)
    assert (found.num_rows, summary.rows, summary.truncated) == (4000, 4000, True)
    found, summary = run(full_server, "SELECT * FROM range(5000)", max_rows=5000)
    assert (found.num_rows, summary.rows, summary.truncated) == (5000, 5000, False)
    assert summary.elapsed.ToNanoseconds() > 0


def test_a_large_result_comes_in_small_messages(full_server: IngestProcess) -> None:
    found, _ = run(full_server, "SELECT range AS n, repeat('x', 500) AS s FROM range(9000)")
    assert found["n"].to_pylist() == list(range(9000))
    assert found["s"][8999].as_py() == "x" * 500


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM predictions",
        "COPY (SELECT 1) TO '/tmp/x.csv'",
        "ATTACH '/tmp/x.duckdb'",
        "SELECT 1; DROP TABLE predictions",
    ],
)
def test_anything_but_one_select_is_refused(full_server: IngestProcess, sql: str) -> None:
    error = refusal(full_server, sql)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "SQL_NOT_ONE_SELECT")
    assert error.violations[0].field == "sql"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_blob('/proc/self/environ')",
        "SELECT * FROM glob('/etc/*')",
        "FROM 'x.csv'",
        "FROM 'https://127.0.0.1/x.parquet'",
        "SELECT * FROM parquet_scan('s3://a/b')",
        "SELECT * FROM duckdb_secrets()",
        "IMPORT DATABASE '/tmp/x'",  # which the parser itself would read
    ],
)
def test_files_and_the_network_cannot_be_reached(full_server: IngestProcess, sql: str) -> None:
    error = refusal(full_server, sql)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "SQL_NOT_ALLOWED")


@pytest.mark.parametrize(
    "sql",
    [
        "SELEKT 1",
        "WITH gone AS (DELETE FROM predictions RETURNING *) SELECT * FROM gone",
        "SELECT * FROM nowhere",
        "FROM '/etc/passwd'",  # no known ending: the name of no table
        "SELECT getenv('PATH')",
        "SELECT * FROM head",  # a variable of the process's own
        "SELECT * FROM query('SELECT 1; DROP TABLE predictions')",
        f"SELECT {'(' * 20_000}1{')' * 20_000}",
        f"SELECT {'+'.join(['1'] * 20_000)}",
    ],
)
def test_what_cannot_be_run_is_refused(full_server: IngestProcess, sql: str) -> None:
    error = refusal(full_server, sql)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "SQL_INVALID")
    assert error.message.startswith("sql ")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT repeat('x', 4000000000)",
        "SELECT list(range) FROM range(1000000000)",
        "SELECT string_agg(range::VARCHAR, ',') FROM range(1000000000)",
        GROWING,
        "SELECT repeat('x', 1000000) FROM range(200)",
    ],
)
def test_a_query_that_needs_much_memory_is_ended(full_server: IngestProcess, sql: str) -> None:
    error = refusal(full_server, sql)
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUERY_MEMORY")
    assert full_server.watermark(spool(2)) == 10, "the service is as it was"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM range(1000000) a, range(1000000) b, range(1000000) c",
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t",
        "SELECT sleep_ms(60000)",
    ],
)
def test_a_query_ends_with_its_deadline(full_server: IngestProcess, sql: str) -> None:
    error = refusal(full_server, sql, timeout=1.5)
    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert eventually(lambda: children(full_server.pid) == [])


def test_the_service_bounds_the_time_of_a_query(start: Start) -> None:
    server = start("--sql-seconds", "1")
    error = refusal(server, "SELECT sleep_ms(60000)")
    assert (error.code, error.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "QUERY_TIME")
    assert eventually(lambda: children(server.pid) == [])


def test_a_caller_that_takes_no_rows_holds_its_place_for_the_time_of_a_query(
    full_server: IngestProcess, start: Start
) -> None:
    _, summary = run(full_server, "SELECT 1")
    enough = 1 + 4 * summary.elapsed.ToTimedelta().total_seconds()
    server = start("--sql-seconds", str(enough), "--sql-queries", "1")
    endless = server.stub.Query(
        reads_pb2.QueryRequest(sql="SELECT * FROM range(1000000000)", max_rows=1_000_000),
        timeout=PATIENCE,
    )
    answers = iter(endless)
    assert next(answers).data  # the rest waits for the caller
    assert eventually(lambda: children(server.pid) == [])
    with refused() as errors:
        list(answers)
    assert errors[0].reason == "QUERY_TIME"
    assert eventually(lambda: is_answered(server))


def test_few_queries_run_at_a_time_and_a_caller_that_goes_frees_its_place(start: Start) -> None:
    server = start("--sql-queries", "1")
    endless = server.stub.Query(
        reads_pb2.QueryRequest(sql="SELECT sleep_ms(60000)"), timeout=PATIENCE
    )
    assert eventually(lambda: len(children(server.pid)) == 1)
    error = refusal(server, "SELECT 1")
    assert (error.reason, error.retryable) == ("TOO_MANY_QUERIES", True)
    endless.cancel()  # type: ignore[no-untyped-call]
    assert eventually(lambda: is_answered(server))


def test_the_process_of_a_query_can_open_nothing_and_runs_last(full_server: IngestProcess) -> None:
    call = full_server.stub.Query(
        reads_pb2.QueryRequest(sql="SELECT sleep_ms(60000)"), timeout=PATIENCE
    )
    try:

        def limits() -> dict[str, str]:
            (pid,) = children(full_server.pid)
            lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
            return {line[:25].strip(): line[26:46].strip() for line in lines}

        assert eventually(lambda: len(children(full_server.pid)) == 1)
        assert eventually(lambda: limits()["Max open files"] == "3")
        assert limits()["Max file size"] == "0"
        (pid,) = children(full_server.pid)
        assert sorted(path.name for path in Path(f"/proc/{pid}/fd").iterdir()) == ["0", "1", "2"]
        assert os.getpriority(os.PRIO_PROCESS, pid) == 19
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert environment.strip(b"\0").split(b"\0") == [b"ARROW_DEFAULT_MEMORY_POOL=system"]
    finally:
        call.cancel()  # type: ignore[no-untyped-call]
    assert eventually(lambda: children(full_server.pid) == [])


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM range(1000000000)",  # waits for the caller
        "SELECT sleep_ms(60000)",
        "SELECT count(*) FROM range(1000000) a, range(1000000) b",
    ],
)
def test_a_killed_service_leaves_no_process(start: Start, sql: str) -> None:
    server = start()
    call = server.stub.Query(reads_pb2.QueryRequest(sql=sql, max_rows=1_000_000), timeout=PATIENCE)
    assert eventually(lambda: len(children(server.pid)) == 1)
    (pid,) = children(server.pid)
    assert eventually(
        lambda: "Max open files            3 " in Path(f"/proc/{pid}/limits").read_text()
    )
    server.kill()
    assert eventually(lambda: not Path(f"/proc/{pid}").exists())
    call.cancel()  # type: ignore[no-untyped-call]


def test_drain_ends_a_query(start: Start) -> None:
    server = start("--grace-seconds", "0.5")
    call = server.stub.Query(reads_pb2.QueryRequest(sql="SELECT sleep_ms(60000)"), timeout=PATIENCE)
    assert eventually(lambda: len(children(server.pid)) == 1)
    server.stop()
    with refused():
        next(iter(call))


def test_a_query_is_of_one_moment(server: IngestProcess) -> None:
    """The parts that a query reads belong together, while devices log."""
    server.log_messages(request(*predictions(1, 100), head=header()))
    done: list[int] = []

    def log() -> None:
        for last in range(200, 4001, 100):
            server.log_messages(request(*predictions(last - 99, last), head=header()))
            done.append(last)

    with ThreadPoolExecutor(1) as pool:
        logging = pool.submit(log)
        for _ in range(3):
            ((count, most, through),) = rows(
                server,
                "SELECT count(*), max(sequence), (SELECT max(committed_through) FROM watermarks)"
                " FROM predictions",
            )
            assert count == most == through
        logging.result(PATIENCE)
    assert rows(server, "SELECT count(*) FROM predictions") == [(4000,)]


@pytest.mark.parametrize(
    ("ask", "field"),
    [
        ({"sql": ""}, "sql"),
        ({"sql": " " * (64 * 1024 + 1)}, "sql"),
        ({"sql": "SELECT 1", "max_rows": -1}, "max_rows"),
        ({"sql": "SELECT 1", "max_rows": 1_000_001}, "max_rows"),
    ],
)
def test_a_wrong_request_names_its_field(
    full_server: IngestProcess, ask: dict[str, Any], field: str
) -> None:
    with refused() as errors:
        next(iter(full_server.stub.Query(reads_pb2.QueryRequest(**ask), timeout=PATIENCE)))
    assert errors[0].code is grpc.StatusCode.INVALID_ARGUMENT
    assert errors[0].violations[0].field == field


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(path.parent.name))
    return found
