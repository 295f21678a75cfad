-- Version 2. Sums over the rows, so that statistics need not read them all; retention; exports.

-- From here on, each commit's received_at is later than that of the commit before. A block is the
-- run of commits with after < received_at <= through; blocks follow one another without a hole and
-- never overlap. What is newer than the last block is in no block yet.
CREATE TABLE blocks (
    after TIMESTAMPTZ NOT NULL,
    through TIMESTAMPTZ NOT NULL,
    predictions BIGINT NOT NULL
);

-- The sums of each block, one row per hour, device, model, source and verdict that is in it.
CREATE TABLE rollups (
    -- Of the block.
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
    -- -32768 those that are 0. Predictions without a time are in none.
    times STRUCT(bucket SMALLINT, predictions BIGINT)[] NOT NULL
);

-- What retention has deleted of each spool. Watermarks and gaps stay for ever.
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
    -- NULL: not all files are in their place yet. The same run is then written again.
    finished_at TIMESTAMPTZ
);

-- The books of each spool: every committed sequence is or was a row, a rejection or in a gap.
CREATE OR REPLACE VIEW ledger AS
SELECT
    device_id,
    spool_id,
    -- Also those that retention has deleted since.
    sum(accepted)::BIGINT AS accepted,
    sum(rejected)::BIGINT AS rejected,
    sum(gap_sequences) AS gap_sequences,
    sum(committed_through)::BIGINT AS committed_through,
    sum(duplicates)::BIGINT AS duplicates,
    -- Of accepted and rejected, those that retention has deleted.
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
