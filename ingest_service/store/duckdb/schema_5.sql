-- Version 5: devices and the ledger, without reading all rows.

-- One row per device: its last stream (ingest_service/store/duckdb/last_streams.py).
CREATE TABLE devices (
    device_id VARCHAR NOT NULL,
    -- By the server's clock.
    opened_at TIMESTAMPTZ NOT NULL,
    -- opened_at - device_time. NULL: the device did not send its clock.
    clock_offset_seconds DOUBLE,
    -- '': not sent.
    client VARCHAR NOT NULL,
    -- The device's own account of its log: what waits, what was dropped. NULL: not sent.
    account JSON
);

INSERT INTO devices
SELECT device_id, max(opened_at), arg_max(clock_offset_seconds, opened_at),
    arg_max(client, opened_at), NULL
FROM streams GROUP BY device_id;

-- One row per spool: its predictions in all blocks, including those that retention has deleted.
CREATE TABLE spool_sums (
    device_id VARCHAR NOT NULL,
    spool_id VARCHAR NOT NULL,
    predictions BIGINT NOT NULL
);

INSERT INTO spool_sums
SELECT device_id, spool_id, sum(predictions)::BIGINT
FROM (
    SELECT device_id, spool_id, count(*) AS predictions FROM predictions
    WHERE received_at <= (SELECT max(through) FROM blocks) GROUP BY device_id, spool_id
    UNION ALL
    SELECT device_id, spool_id, predictions FROM expired
)
GROUP BY device_id, spool_id;
