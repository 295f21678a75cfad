"""The program of a query's process: which statements it runs."""

import duckdb
import pytest

from ingest_service.store.duckdb import query_process


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "FROM range(3);",
        "VALUES (1)",
        "WITH a AS (SELECT 1) SELECT * FROM a",
        "SHOW TABLES",
        "DESCRIBE SELECT 1",
        "SUMMARIZE SELECT 1",
        "/* ; DROP TABLE t; */ SELECT ';'",
    ],
)
def test_one_select_is_run(sql: str) -> None:
    with duckdb.connect() as box:
        query_process._check(box, sql)


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t VALUES (1)",
        "DELETE FROM t",
        "UPDATE t SET a = 1",
        "MERGE INTO t USING u ON t.a = u.a WHEN MATCHED THEN DELETE",
        "TRUNCATE t",
        "DROP TABLE t",
        "ALTER TABLE t ADD COLUMN b INT",
        "CREATE TABLE t AS SELECT 1",
        "CREATE MACRO f(a) AS a",
        "CREATE SECRET (TYPE s3)",
        "COPY (SELECT 1) TO '/tmp/x.csv'",
        "COPY t FROM '/tmp/x.csv'",
        "EXPORT DATABASE '/tmp/x'",
        "ATTACH '/tmp/x.duckdb'",
        "DETACH memory",
        "USE memory",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET memory_limit = '10GB'",
        "SET VARIABLE a = 1",
        "RESET memory_limit",
        "PRAGMA memory_limit = '10GB'",
        "PRAGMA enable_profiling",
        "CALL duckdb_settings()",
        "EXPLAIN ANALYZE SELECT 1",
        "PREPARE p AS SELECT 1",
        "EXECUTE p",
        "BEGIN",
        "CHECKPOINT",
        "VACUUM",
        "PIVOT t ON a",  # creates a type first
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP TABLE t",
        "",
        ";",
        "-- SELECT 1",
    ],
)
def test_anything_else_is_refused(sql: str) -> None:
    with duckdb.connect() as box, pytest.raises(query_process._RefusalError) as caught:
        query_process._check(box, sql)
    assert caught.value.kind == query_process.NOT_ONE_SELECT


@pytest.mark.parametrize("sql", ["SELEKT 1", "WITH a AS (DELETE FROM t RETURNING *) FROM a"])
def test_what_the_parser_refuses_is_not_run(sql: str) -> None:
    with duckdb.connect() as box, pytest.raises(duckdb.Error):
        query_process._check(box, sql)
