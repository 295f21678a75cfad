-- Version 2: rollups, so that statistics need not read all rows; retention; exports.

-- From this version on, received_at increases strictly with each commit. A block is the run of
-- commits with after < received_at <= through. Blocks have no holes between them and never overlap.
-- Rows newer than the last block are in no block yet.
CREATE TABLE blocks (
    after TIMESTAMPTZ NOT NULL,
    through TIMESTAMPTZ NOT NULL,
    predictions BIGINT NOT NULL
);

-- The rollups of each block: one row per hour, device, model, source and verdict in it.
CREATE TABLE rollups (
    -- The end of the block.
    through TIMESTAMPTZ NOT NULL,
    captured_hour TIMESTAMPTZ NOT NULL,
    device_id VARCHAR NOT NULL,
    model_name VARCHAR NOT NULL,
    source VARCHAR NOT NULL,
    defect_detected BOOLEAN,
    predictions BIGINT NOT NULL,
    detections BIGINT NOT NULL,
    first_captured_at TIMESTAMPTZ NOT NULL,
    last_captured_at TIMESTAMPTZ NOT NULL,
    -- Detections by class.
    classes STRUCT(class_name VARCHAR, detections BIGINT)[] NOT NULL,
    -- Predictions by inference time: bucket b holds times from 1.02^b to 1.02^(b + 1) s, and bucket
    -- -32768 those that are 0. Predictions without a time are in no bucket.
    times STRUCT(bucket SMALLINT, predictions BIGINT)[] NOT NULL
);

-- Numbers of rows that retention has deleted, per spool. Watermarks and gaps are never deleted.
CREATE TABLE expired (
    device_id VARCHAR NOT NULL,
    spool_id VARCHAR NOT NULL,
    predictions BIGINT NOT NULL,
    rejected BIGINT NOT NULL
);

-- Runs of commits, after < received_at <= through, that were written to Parquet files.
CREATE TABLE exports (
    after TIMESTAMPTZ NOT NULL,
    through TIMESTAMPTZ NOT NULL,
    begun_at TIMESTAMPTZ NOT NULL,
    -- NULL: not all files are in place yet; the same run is then written again.
    finished_at TIMESTAMPTZ
);

-- The ledger of each spool: every committed sequence is or was a row, a rejection or in a gap.
CREATE OR REPLACE VIEW ledger AS
SELECT
    device_id,
    spool_id,
    -- Including those that retention has deleted.
    sum(accepted)::BIGINT AS accepted,
    sum(rejected)::BIGINT AS rejected,
    sum(gap_sequences) AS gap_sequences,
    sum(committed_through)::BIGINT AS committed_through,
    sum(duplicates)::BIGINT AS duplicates,
    -- The number of accepted and rejected predictions that retention has deleted.
    sum(expired)::BIGINT AS expired,
    sum(accepted) + sum(rejected) + sum(gap_sequences) = sum(committed_through) AS balanced
FROM (
    SELECT device_id, spool_id, count(*) AS accepted, 0 AS rejected, 0::HUGEINT AS gap_sequences,
        0::BIGINT AS committed_through, 0::BIGINT AS duplicates, 0::BIGINT AS expired
    FROM predictions GROUP BY device_id, spool_id
    UNION ALL
    SELECT device_id, spool_id, 0, count(*), 0, 0, 0, 0
    FROM rejected_predictions GROUP BY device_id, spool_id
    UNION ALL
    SELECT device_id, spool_id, 0, 0, sum(last_sequence::HUGEINT - first_sequence + 1), 0, 0, 0
    FROM gaps GROUP BY device_id, spool_id
    UNION ALL
    SELECT device_id, spool_id, 0, 0, 0, committed_through, duplicates, 0
    FROM watermarks
    UNION ALL
    SELECT device_id, spool_id, predictions, rejected, 0, 0, 0, predictions + rejected
    FROM expired
)
GROUP BY device_id, spool_id;
