"""Commit rate of the FastAPI and SQLite service that Sightline replaces.

`python -m bench.http_sqlite`: eight devices post batches of predictions with three detections each,
each over a connection that stays open, to the service of `bench._http_service` in a process of its
own. A prediction counts when the answer to its batch has come. The bodies are made before the clock
starts.
"""

import argparse
import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import uvloop

from sightline.cli.processes import ServiceProcess

DEVICES = 8
_BODIES = 64
"""Different batches of a device. They repeat, which makes no difference to the service."""


@contextlib.contextmanager
def service(folder: Path) -> Iterator[str]:
    """Run the service in a process of its own.

    Args:
        folder: folder for its database.

    Yields:
        Its address, host:port.
    """
    flags = ["--database", str(folder / "predictions.sqlite")]
    with ServiceProcess("bench._http_service", flags) as running:
        yield running.address


def bodies(device: int, batch: int, count: int = _BODIES) -> list[bytes]:
    """Return batches of a device as JSON, three detections in each prediction."""
    return [
        json.dumps(
            {
                "edge_device_id": f"bench-{device}",
                "predictions": [_prediction(at * batch + number) for number in range(batch)],
            }
        ).encode()
        for at in range(count)
    ]


async def post(address: str, batch: int, seconds: float) -> float:
    """Return committed predictions per second, over all devices.

    Args:
        address: the service's address, host:port.
        batch: predictions in a request.
        seconds: duration after which no request is started.

    Raises:
        aiohttp.ClientError: a request failed.
    """
    prepared = [bodies(device, batch) for device in range(DEVICES)]
    async with aiohttp.ClientSession(
        f"http://{address}",
        headers={"content-type": "application/json"},
        connector=aiohttp.TCPConnector(limit=DEVICES),
        raise_for_status=True,
    ) as session:
        began = time.perf_counter()

        async def send(own: list[bytes]) -> int:
            committed = requests = 0
            while time.perf_counter() - began < seconds:
                async with session.post("/log", data=own[requests % len(own)]) as answer:
                    committed += (await answer.json())["accepted"]
                requests += 1
            return committed

        done = await asyncio.gather(*map(send, prepared))
        return sum(done) / (time.perf_counter() - began)


def rate(batch: int, seconds: float) -> float:
    """Return committed predictions per second of a service with an empty database.

    Args:
        batch: predictions in a request.
        seconds: to measure for.
    """
    with tempfile.TemporaryDirectory() as folder, service(Path(folder)) as address:
        return uvloop.run(post(address, batch, seconds))


def _prediction(number: int) -> dict[str, object]:
    return {
        "image_id": f"frame-{number:09d}",
        "timestamp": time.time(),
        "model_name": "yolov8n",
        "model_version": "1",
        "inference_time_ms": 12.0,
        "defect_detected": number % 10 == 0,
        "detections": [
            {"class_name": name, "confidence": 0.9, "bbox": [10.0, 20.0, 300.5, 400.25]}
            for name in ("person", "bus", "car")
        ],
    }


def main() -> None:
    """Print one JSON line per batch size."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=10.0, help="of one measurement")
    options = arguments.parse_args()
    for batch in (32, 256):
        line = {"bench": "http_sqlite", "devices": DEVICES, "batch_size": batch}
        print(json.dumps({**line, "http_sqlite_per_s": round(rate(batch, options.seconds))}))


if __name__ == "__main__":
    main()
