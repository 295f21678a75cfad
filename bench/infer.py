"""What `Infer` adds to the same work done in-process: `python -m bench.infer`.

One caller at a time. The service runs in a process of its own; calls to it and runs of the same
model on the same bytes in this process alternate, so that both see the same machine. The model is
YOLOv8n on ultralytics' bus.jpg where SIGHTLINE_TEST_MODELS names a folder with it, and the demo
model on one of its plates always.
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edge import InferenceClient
from models.plates import make_plate, to_jpeg
from servicekit.vision import OnnxDetector, decode_image
from sightline_cli.processes import ServiceProcess

REPOSITORY = Path(__file__).parents[1] / "models" / "repository"
THREADS = 1


def cases(folder: Path) -> Iterator[tuple[str, Path, bytes]]:
    """Yields a name, a model repository of one model, and a picture for it."""
    yield "plates", REPOSITORY, to_jpeg(make_plate(3).image)
    models = os.environ.get("SIGHTLINE_TEST_MODELS")
    package = importlib.util.find_spec("ultralytics")
    if not models or not package or not package.origin:
        return
    version = folder / "yolov8n" / "1"
    version.mkdir(parents=True)
    shutil.copy(Path(models) / "yolov8n_int8.onnx", version / "model.onnx")
    picture = Path(package.origin).parent / "assets" / "bus.jpg"
    yield "yolov8n", folder, picture.read_bytes()


def milliseconds(work: Callable[[], object]) -> float:
    """Returns how long the work took."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def measure(name: str, repository: Path, picture: bytes, calls: int) -> dict[str, object]:
    """Returns the medians of alternating calls to the service and runs in this process."""
    (path,) = (repository / name).glob("*/model.onnx")
    detector = OnnxDetector.load(path, intra_op_threads=THREADS)
    flags = ["--listen", "127.0.0.1:0", "--model-repository", str(repository)]
    threads = ["--intra-op-threads", str(THREADS), "--log-level", "warning"]
    with (
        ServiceProcess("inference_service", [*flags, *threads]) as service,
        InferenceClient(service.address, timeout=60) as client,
    ):

        def remote() -> object:
            return client.infer([picture])

        def local() -> object:
            return detector.detect(decode_image(picture))

        for _ in range(3):
            remote(), local()
        taken = [(milliseconds(remote), milliseconds(local)) for _ in range(calls)]
    infer, alone = (statistics.median(column) for column in zip(*taken, strict=True))
    return {
        "bench": "infer",
        "model": name,
        "concurrency": 1,
        "calls": calls,
        "infer_p50_ms": round(infer, 2),
        "in_process_p50_ms": round(alone, 2),
        "added_p50_ms": round(infer - alone, 2),
        "ratio": round(infer / alone, 3),
    }


def main() -> None:
    """Prints one JSON line per model."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--calls", type=int, default=100)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, repository, picture in cases(Path(folder)):
            print(json.dumps(measure(name, repository, picture, options.calls)))


if __name__ == "__main__":
    main()
