"""Settings of the ingest service."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field, field_validator

from servicekit.settings import Address, ServerSettings


class IngestSettings(ServerSettings):
    """Takes predictions of edge devices into a DuckDB file."""

    part: ClassVar[str] = "ingest"

    listen: Address = Field(
        "127.0.0.1:50051",
        description="address to serve gRPC on: host:port, [IPv6]:port or unix:path; port 0: any",
    )
    database: Path = Field(
        Path("sightline.duckdb"),
        description="DuckDB file; made where it is missing, in a folder that exists",
    )
    group_bytes: int = Field(
        8 * 1024 * 1024,
        ge=1,
        le=1024**3,
        description="messages that one transaction takes at most, bytes; one message always fits",
    )
    group_wait_ms: float = Field(
        5.0,
        ge=0,
        le=20,
        description="how long a transaction waits for company after its first message, ms",
    )
    max_inflight_bytes: int = Field(
        64 * 1024 * 1024,
        ge=1,
        le=64 * 1024**3,
        description="messages received and not yet committed, over all streams, bytes;"
        " beyond it devices are told to wait",
    )
    query_threads: int = Field(4, ge=1, le=64, description="read queries that run at once")
    query_queue: int = Field(
        64, ge=0, le=10_000, description="read queries that wait for a thread; more are refused"
    )

    @field_validator("database")
    @classmethod
    def _names_a_file(cls, path: Path) -> Path:
        if path.name in {"", ".."} or path.is_dir():
            raise ValueError("must be the path of a file")
        return path
