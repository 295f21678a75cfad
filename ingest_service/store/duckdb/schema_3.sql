-- Version 3.

-- ---- The clock of retention (ingest_service/store/retention_clock.py) ----

-- One row, or none before the first start of the service: the last trusted time, and the uptime of
-- the machine at that time. While the clock is ahead of what they explain, retention waits.
CREATE TABLE retention_clock (
    reached_at TIMESTAMPTZ NOT NULL,
    -- '': not known.
    boot_id VARCHAR NOT NULL,
    uptime_seconds DOUBLE NOT NULL,
    -- How far the clock may move ahead of the uptime.
    slack_seconds DOUBLE NOT NULL
);

-- ---- Statistics without a filter (ingest_service/store/duckdb/totals.py) ----

-- Sums over all blocks for each kind of key. The total of a key is the sum of its rows.
CREATE TABLE totals (
    -- 'device_id', 'model_name', 'source', 'class_name' or 'bucket' (of an inference time).
    kind VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    -- Predictions; for a class, detections. Negative: of a block that retention has deleted.
    total BIGINT NOT NULL,
    -- Predictions with a defect. For classes and buckets: 0.
    defects BIGINT NOT NULL,
    -- Detections in the predictions. For classes and buckets: 0.
    detections BIGINT NOT NULL,
    -- 0: not compacted yet; else the number of the compaction.
    run BIGINT NOT NULL
);

INSERT INTO totals
SELECT 'device_id', device_id, sum(predictions),
    coalesce(sum(predictions) FILTER (WHERE defect_detected), 0), sum(detections), 1
FROM rollups GROUP BY device_id;
INSERT INTO totals
SELECT 'model_name', model_name, sum(predictions),
    coalesce(sum(predictions) FILTER (WHERE defect_detected), 0), sum(detections), 1
FROM rollups GROUP BY model_name;
INSERT INTO totals
SELECT 'source', source, sum(predictions),
    coalesce(sum(predictions) FILTER (WHERE defect_detected), 0), sum(detections), 1
FROM rollups GROUP BY source;
INSERT INTO totals
SELECT 'class_name', item.class_name, sum(item.detections), 0, 0, 1
FROM (SELECT unnest(classes) AS item FROM rollups) GROUP BY item.class_name;
INSERT INTO totals
SELECT 'bucket', item.bucket::VARCHAR, sum(item.predictions), 0, 0, 1
FROM (SELECT unnest(times) AS item FROM rollups) GROUP BY item.bucket;

-- First and last capture time of each block.
CREATE TABLE block_times (
    through TIMESTAMPTZ NOT NULL,
    first_captured_at TIMESTAMPTZ NOT NULL,
    last_captured_at TIMESTAMPTZ NOT NULL
);

INSERT INTO block_times
SELECT through, min(first_captured_at), max(last_captured_at) FROM rollups GROUP BY through;

-- ---- Resends and copies of spools (ingest_service/receive/conflicts.py) ----


-- Digests of the first and of the last committed prediction of a spool, 16 bytes each. NULL: the
-- prediction is in a gap, or was committed before version 3.
ALTER TABLE watermarks ADD COLUMN first_digest BLOB;
ALTER TABLE watermarks ADD COLUMN last_digest BLOB;
-- Runs of sequences by the opening of the spool in which they were spooled, oldest first, as JSON:
-- [[generation, after_sequence], ...]; the generation is '' if the device did not send it. NULL: it
-- never sent it, or everything was committed before version 3.
ALTER TABLE watermarks ADD COLUMN generations VARCHAR;
