-- Version 1. All times are UTC; lengths of time are in seconds; sizes and boxes are in pixels.

-- One row per prediction that kept every rule. (device_id, spool_id, sequence) is unique because
-- the watermark accepts each sequence once: an index would only add cost.
CREATE TABLE predictions (
    device_id VARCHAR NOT NULL,
    spool_id VARCHAR NOT NULL,
    sequence BIGINT NOT NULL,
    -- Commit time by the server's clock.
    received_at TIMESTAMPTZ NOT NULL,
    -- By the device's clock, uncorrected: captured_at + to_seconds(clock_offset_seconds) is the
    -- same moment by the server's clock. The offset is NULL if the device did not send its clock.
    captured_at TIMESTAMPTZ NOT NULL,
    clock_offset_seconds DOUBLE,
    image_id VARCHAR NOT NULL,
    -- 0: not known.
    image_width INTEGER NOT NULL,
    image_height INTEGER NOT NULL,
    model_name VARCHAR NOT NULL,
    -- '': not known.
    model_version VARCHAR NOT NULL,
    -- 'device' or 'cloud'.
    source VARCHAR NOT NULL,
    -- NULL: the cloud was not used.
    cloud_reason VARCHAR,
    -- NULL: not measured.
    inference_seconds DOUBLE,
    detections STRUCT(
        class_id INTEGER,
        class_name VARCHAR,
        confidence FLOAT,
        box STRUCT(x_min FLOAT, y_min FLOAT, x_max FLOAT, y_max FLOAT),
        track_id BIGINT
    )[] NOT NULL,
    -- NULL: the device gave no verdict.
    defect_detected BOOLEAN,
    labels MAP(VARCHAR, VARCHAR) NOT NULL,
    -- '': not traced.
    trace_id VARCHAR NOT NULL
);

-- One row per prediction that broke a rule, with the first rule that it broke.
CREATE TABLE rejected_predictions (
    device_id VARCHAR NOT NULL,
    spool_id VARCHAR NOT NULL,
    sequence BIGINT NOT NULL,
    received_at TIMESTAMPTZ NOT NULL,
    field VARCHAR NOT NULL,
    reason VARCHAR NOT NULL,
    -- The prediction as protobuf's JSON; if that cannot represent it, its received bytes in base64.
    original JSON NOT NULL
);

-- One row per run of sequences that a device declared it will never send.
CREATE TABLE gaps (
    device_id VARCHAR NOT NULL,
    spool_id VARCHAR NOT NULL,
    first_sequence BIGINT NOT NULL,
    last_sequence BIGINT NOT NULL,
    received_at TIMESTAMPTZ NOT NULL,
    reason VARCHAR NOT NULL,
    -- By the device's clock. NULL: not sent.
    declared_at TIMESTAMPTZ
);

-- One row per stream: the clocks of both sides when it was opened.
CREATE TABLE streams (
    device_id VARCHAR NOT NULL,
    spool_id VARCHAR NOT NULL,
    opened_at TIMESTAMPTZ NOT NULL,
    device_time TIMESTAMPTZ,
    device_monotonic_seconds DOUBLE,
    -- opened_at - device_time.
    clock_offset_seconds DOUBLE,
    -- '': not sent.
    client VARCHAR NOT NULL
);

-- One row per spool: every sequence up to committed_through is committed.
CREATE TABLE watermarks (
    device_id VARCHAR NOT NULL,
    spool_id VARCHAR NOT NULL,
    committed_through BIGINT NOT NULL,
    -- Predictions that were sent again and not stored again.
    duplicates BIGINT NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL
);

-- The ledger of each spool: every committed sequence is a row, a rejection or in a gap.
CREATE VIEW ledger AS
SELECT
    device_id,
    spool_id,
    sum(accepted)::BIGINT AS accepted,
    sum(rejected)::BIGINT AS rejected,
    sum(gap_sequences) AS gap_sequences,
    sum(committed_through)::BIGINT AS committed_through,
    sum(duplicates)::BIGINT AS duplicates,
    sum(accepted) + sum(rejected) + sum(gap_sequences) = sum(committed_through) AS balanced
FROM (
    SELECT device_id, spool_id, count(*) AS accepted, 0 AS rejected, 0::HUGEINT AS gap_sequences,
        0::BIGINT AS committed_through, 0::BIGINT AS duplicates
    FROM predictions GROUP BY device_id, spool_id
    UNION ALL
    SELECT device_id, spool_id, 0, count(*), 0, 0, 0
    FROM rejected_predictions GROUP BY device_id, spool_id
    UNION ALL
    SELECT device_id, spool_id, 0, 0, sum(last_sequence::HUGEINT - first_sequence + 1), 0, 0
    FROM gaps GROUP BY device_id, spool_id
    UNION ALL
    SELECT device_id, spool_id, 0, 0, 0, committed_through, duplicates
    FROM watermarks
)
GROUP BY device_id, spool_id;
