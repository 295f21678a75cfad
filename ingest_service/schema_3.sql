-- Version 3.

-- ---- Time that retention may go by (ingest_service/retention_clock.py) ----

-- One row, or none before the first start of the service: the last time that was trusted, and how long the
-- machine had been up then. A clock that moves further than that explains deletes nothing.
CREATE TABLE retention_clock (
    reached_at TIMESTAMPTZ NOT NULL,
    -- '': not known.
    boot_id VARCHAR NOT NULL,
    uptime_seconds DOUBLE NOT NULL,
    -- How far the clock may move beyond the uptime.
    slack_seconds DOUBLE NOT NULL
);
