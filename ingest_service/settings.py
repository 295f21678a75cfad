"""Settings of the ingest service."""

from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from servicekit import resources
from servicekit.server_settings import ServerSettings
from servicekit.settings import BASIC, Address

_LEAST_SQL_MEMORY = 64 * 1024 * 1024
_SQL_MEMORY = 512 * 1024 * 1024
_SQL_SHARE = 8


class IngestSettings(ServerSettings):
    """The ingest service, which commits predictions of edge devices to a DuckDB file.

    Example: sightline serve ingest --database sightline.duckdb
    """

    part: ClassVar[str] = "ingest"

    listen: Address = Field(
        "127.0.0.1:50051",
        description="address to serve gRPC on: host:port, [IPv6]:port or unix:path; port 0: any",
        json_schema_extra=BASIC,
    )
    database: Path = Field(
        Path("sightline.duckdb"),
        description="DuckDB file, created if it is missing; its folder must exist",
        json_schema_extra=BASIC,
    )
    trust_database: bool = Field(
        False,
        description="start even if the database is not the one that the service left, or if its"
        " books do not balance; missing rows stay missing. Set it for a single start, after a check"
        " of the database",
    )
    group_bytes: int = Field(
        8 * 1024 * 1024,
        ge=1,
        le=1024**3,
        description="maximum size of the messages in one transaction, bytes, each counted with 512"
        " more; one message always fits",
    )
    group_wait_ms: float = Field(
        5.0,
        ge=0,
        le=20,
        description="time that a transaction waits for further messages after its first one, ms",
    )
    max_inflight_bytes: int = Field(
        64 * 1024 * 1024,
        ge=1,
        le=64 * 1024**3,
        description="maximum size of messages that are received and not yet committed, over all"
        " streams, bytes, each counted with 512 more; beyond it, devices wait. Messages that are"
        " still being received are not included. A smaller max_bytes_in_flight replaces it",
    )
    decoder: Literal["ptars", "protobuf"] = Field(
        "ptars",
        description="library that decodes logged messages: ptars is faster; protobuf is the"
        " reference implementation",
    )
    undated: Literal["reject", "server-time"] = Field(
        "reject",
        description="what becomes of a prediction without captured_at, or with one before 2000 that"
        " the device's clock does not explain: reject keeps it in rejected_predictions; server-time"
        " stores it with the server's time, and the device's in the label"
        " sightline.device_captured_at",
    )
    query_threads: int = Field(4, ge=1, le=64, description="read queries that run at the same time")
    query_queue: int = Field(
        64,
        ge=0,
        le=10_000,
        description="read queries that may wait for a thread; further ones are refused",
    )

    max_watches: int = Field(
        64,
        ge=1,
        le=10_000,
        description="callers that may follow the log at the same time (WatchPredictions); further"
        " ones are refused",
    )
    sql_queries: int = Field(
        2,
        ge=1,
        le=64,
        description="SQL queries of callers (Query) that run at the same time, each in a process of"
        " its own; further ones are refused",
    )
    sql_memory_bytes: int | None = Field(
        None,
        ge=_LEAST_SQL_MEMORY,
        le=1 << 40,
        description="memory of the process of an SQL query, beyond some 100 MB for its libraries,"
        " bytes; a query that needs more is ended; default: 512 MiB, but at most an eighth of the"
        " memory that the service may use",
    )
    sql_seconds: float = Field(
        300.0,
        gt=0,
        le=86_400,
        description="maximum duration of an SQL query, s; an earlier deadline of its call counts",
    )

    metrics_devices: int = Field(
        1000,
        ge=0,
        le=100_000,
        description="maximum number of devices with a series of their own in the metrics, which"
        " says when each was last received; 0: none. A device that was silent for a week gives its"
        " series up",
    )

    retain_days: int = Field(
        0,
        ge=0,
        le=36_500,
        description="days after which a prediction is deleted, by the time the server received it;"
        " 0: never",
        json_schema_extra=BASIC,
    )
    retain_confirm_until: datetime | None = Field(
        None,
        description="confirmation by an operator that the server's clock is right up to this date"
        " or time (UTC without a zone). Retention needs it after the clock moved more than a day"
        " further than the elapsed time, as after a long stop; none: no confirmation",
    )
    export_dir: Path | None = Field(
        None,
        description="folder for exports of predictions to Parquet files by day and device; none: no"
        " export. Nothing is deleted before it is exported",
        json_schema_extra=BASIC,
    )
    export_every_minutes: float = Field(
        60.0, ge=0.01, le=1440, description="time between two exports, minutes"
    )

    @property
    def sql_memory(self) -> int:
        """`sql_memory_bytes`, or its default."""
        if self.sql_memory_bytes:
            return self.sql_memory_bytes
        available = resources.memory() or _SQL_MEMORY * _SQL_SHARE
        return max(min(_SQL_MEMORY, available // _SQL_SHARE), _LEAST_SQL_MEMORY)

    @field_validator("retain_confirm_until")
    @classmethod
    def _has_a_zone(cls, time: datetime | None) -> datetime | None:
        return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time

    @field_validator("export_dir")
    @classmethod
    def _names_a_folder(cls, path: Path | None) -> Path | None:
        if path is not None and path.exists() and not path.is_dir():
            raise ValueError("must be the path of a folder")
        return path

    @field_validator("database")
    @classmethod
    def _names_a_file(cls, path: Path) -> Path:
        if path.name in {"", ".."} or path.is_dir():
            raise ValueError("must be the path of a file")
        return path
