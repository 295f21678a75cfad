"""A FastAPI endpoint around ONNX Runtime: `python -m bench.infer.bare_http --model FILE`.

A usual endpoint: the image is the body of a POST, the handler is a plain function, which
FastAPI runs in its pool of 40 threads, and pydantic models make the JSON. The same work as the
service's, uvicorn with uvloop and httptools, one process.
"""

import argparse
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import Body, FastAPI
from pydantic import BaseModel

from bench.infer.work import InferenceWork


class Found(BaseModel):
    """One object in an image."""

    class_id: int
    class_name: str
    confidence: float
    bbox: list[float]


def make_app(work: InferenceWork, address: str) -> FastAPI:
    """Return the service.

    Args:
        work: inference to run for each request.
        address: printed when it is ready.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        print(json.dumps({"ready": True, "address": address}), flush=True)
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/infer")
    def infer(
        image: Annotated[bytes, Body(media_type="application/octet-stream")],
    ) -> list[Found]:
        return [
            Found(class_id=number, class_name=name, confidence=sure, bbox=box)
            for number, name, sure, box in work.rows(image)
        ]

    return app


def main() -> None:
    """Serve on a free port of this machine until SIGTERM."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", type=Path, required=True)
    work = InferenceWork(arguments.parse_args().model)
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            make_app(work, address),
            loop="uvloop",
            http="httptools",
            access_log=False,
            log_level="warning",
        )
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
