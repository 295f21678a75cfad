-- Version 3.

-- ---- Time that retention may go by (ingest_service/store/retention_clock.py) ----

-- One row, or none before the first start of the service: the last time that was trusted, and how
-- long the machine had been up then. A clock that moves further than that explains deletes nothing.
CREATE TABLE retention_clock (
    reached_at TIMESTAMPTZ NOT NULL,
    -- '': not known.
    boot_id VARCHAR NOT NULL,
    uptime_seconds DOUBLE NOT NULL,
    -- How far the clock may move beyond the uptime.
    slack_seconds DOUBLE NOT NULL
);

-- ---- Statistics without a filter (ingest_service/store/duckdb/totals.py) ----

-- Sums over all blocks by one kind of key at a time. The rows of a key add up to what counts.
CREATE TABLE totals (
    -- 'device_id', 'model_name', 'source', 'class_name' or 'bucket' (of an inference time).
    kind VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    -- Predictions; of a class, detections. Below 0: of a block that retention has deleted.
    total BIGINT NOT NULL,
    -- Of the predictions, those with a defect. Of classes and buckets: 0.
    defects BIGINT NOT NULL,
    -- Of the predictions. Of classes and buckets: 0.
    detections BIGINT NOT NULL,
    -- 0: not added up yet; else the number of the time that they were.
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

-- When the predictions of each block were captured.
CREATE TABLE block_times (
    through TIMESTAMPTZ NOT NULL,
    first_captured_at TIMESTAMPTZ NOT NULL,
    last_captured_at TIMESTAMPTZ NOT NULL
);

INSERT INTO block_times
SELECT through, min(first_captured_at), max(last_captured_at) FROM rollups GROUP BY through;

-- ---- Resends and copies of spools (ingest_service/receive/conflicts.py) ----


-- Of the first and of the last committed prediction of a spool, 16 bytes each. NULL: it lies in a
-- gap, or was committed before version 3.
ALTER TABLE watermarks ADD COLUMN first_digest BLOB;
ALTER TABLE watermarks ADD COLUMN last_digest BLOB;
-- Runs of sequences by the opening of the spool in which they were spooled, oldest first, as JSON:
-- [[generation, after_sequence], ...]; the generation is '' where the device did not say. NULL: it
-- never did, or all was committed before version 3.
ALTER TABLE watermarks ADD COLUMN generations VARCHAR;
