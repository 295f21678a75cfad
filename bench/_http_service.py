"""The service that Sightline replaces: batches of predictions by HTTP into SQLite.

Written as it would be today: FastAPI with pydantic models, uvicorn with uvloop and
httptools, one table with the indexes that its queries want, WAL with `synchronous = NORMAL`, as
people do (a power failure may cost the last commits; FULL is slower). A batch is one POST, one
`executemany` and one COMMIT, and the answer comes after it. One process: SQLite has one writer.
"""

import argparse
import json
import socket
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, Field, FiniteFloat, TypeAdapter

_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS predictions (
    id INTEGER PRIMARY KEY,
    edge_device_id TEXT NOT NULL,
    image_id TEXT NOT NULL,
    timestamp REAL NOT NULL,
    model_name TEXT NOT NULL,
    model_version TEXT NOT NULL,
    inference_time_ms REAL NOT NULL,
    defect_detected INTEGER NOT NULL,
    detections TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS by_device ON predictions (edge_device_id, timestamp);
CREATE INDEX IF NOT EXISTS by_time ON predictions (timestamp);
CREATE INDEX IF NOT EXISTS by_model ON predictions (model_name);
"""
_INSERT = """
INSERT INTO predictions (edge_device_id, image_id, timestamp, model_name, model_version,
    inference_time_ms, defect_detected, detections)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
_Name = Annotated[str, Field(min_length=1, max_length=512)]


class DetectionModel(BaseModel):
    """One object in an image."""

    class_name: Annotated[str, Field(max_length=256)]
    confidence: Annotated[float, Field(ge=0, le=1)]
    bbox: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]


class PredictionModel(BaseModel):
    """The output of a model for one image."""

    image_id: _Name
    timestamp: Annotated[FiniteFloat, Field(gt=0)]
    model_name: _Name
    model_version: str
    inference_time_ms: Annotated[FiniteFloat, Field(ge=0)]
    defect_detected: bool
    detections: list[DetectionModel]


class Batch(BaseModel):
    """The predictions that one device sends in one request."""

    edge_device_id: _Name
    predictions: Annotated[list[PredictionModel], Field(max_length=10_000)]


class Accepted(BaseModel):
    """The number of committed predictions."""

    accepted: int


_DETECTIONS = TypeAdapter(list[DetectionModel])


def make_app(database: Path, address: str) -> FastAPI:
    """Return the service.

    Args:
        database: the SQLite file.
        address: printed when it is ready.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        print(json.dumps({"ready": True, "address": address}), flush=True)
        yield
        connection.close()

    connection = sqlite3.connect(database)
    connection.executescript(_SCHEMA)
    app = FastAPI(lifespan=lifespan)

    # Not handed to a thread: SQLite takes one writer at a time, and the hop costs more than the
    # commit, which waits for no disk.
    @app.post("/log")
    async def log(batch: Batch) -> Accepted:
        with connection:
            connection.executemany(_INSERT, _rows(batch))
        return Accepted(accepted=len(batch.predictions))

    @app.get("/stats")
    async def stats() -> dict[str, int]:
        query = "SELECT edge_device_id, count(*) FROM predictions GROUP BY edge_device_id"
        return dict(connection.execute(query).fetchall())

    return app


def _rows(batch: Batch) -> Iterator[tuple[str | float | bool, ...]]:
    for prediction in batch.predictions:
        yield (
            batch.edge_device_id,
            prediction.image_id,
            prediction.timestamp,
            prediction.model_name,
            prediction.model_version,
            prediction.inference_time_ms,
            prediction.defect_detected,
            _DETECTIONS.dump_json(prediction.detections).decode(),
        )


def main() -> None:
    """Serve on a free port of this machine until SIGTERM."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--database", type=Path, required=True)
    options = arguments.parse_args()
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            make_app(options.database, address),
            loop="uvloop",
            http="httptools",
            access_log=False,
            log_level="warning",
        )
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
