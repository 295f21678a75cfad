"""The cost of logging for a detector's frame rate: `python -m bench.detector_loop`.

YOLOv8n in ultralytics detects on ultralytics' bus.jpg again and again and logs its results
(`log(results)`): with the ingest service in its own process, with no service, and without logging.
Short rounds of the three alternate; a ratio is that of one round, and the figures are medians.
`cpu_ratio` is the same for the CPU time of the whole process, and `log_p50_us` is the duration of
the call itself. On a busy machine the ratios say little.
Each part of a round begins with frames that are not timed, so that the work of the logger's threads
is included as it would be in a long run. The model is yolov8n_int8.onnx in the folder that
SIGHTLINE_TEST_MODELS names; without it nothing is measured.
"""

import argparse
import importlib.util
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from bench.edge_cost import service
from sightline import PredictionLogger

NOBODY = "127.0.0.1:1"
WARM_UP = 3
"""Frames at the beginning of each part that are not timed."""

Frame = Callable[[], Any]
"""Runs the model on the image and returns ultralytics' `Results`."""


def detector(folder: Path) -> Frame:
    """Return a detector for one image."""
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    from ultralytics import YOLO
    from ultralytics.utils import ASSETS

    image = np.ascontiguousarray(np.asarray(Image.open(ASSETS / "bus.jpg"))[..., ::-1])
    model = YOLO(folder / "yolov8n_int8.onnx", task="detect")

    def look() -> Any:  # noqa: ANN401 (ultralytics is not imported for its types here)
        (results,) = model.predict(image, verbose=False, device="cpu")
        return results

    return look


class Cost(NamedTuple):
    """The cost of a frame in seconds: wall time, CPU time of all threads, and time in the call."""

    wall: float
    cpu: float
    call: float


def cost(look: Frame, log: Callable[[Any], object], frames: int) -> Cost:
    """Return the cost of a frame in a loop that logs each result."""
    for _ in range(WARM_UP):
        log(look())
    calls = []
    began, used = time.perf_counter(), time.process_time()
    for _ in range(frames):
        results = look()
        at = time.perf_counter()
        log(results)
        calls.append(time.perf_counter() - at)
    wall, cpu = time.perf_counter() - began, time.process_time() - used
    return Cost(wall / frames, cpu / frames, statistics.median(calls))


def measure(look: Frame, folder: Path, rounds: int, frames: int) -> dict[str, object]:
    """Return the line of figures."""
    with (
        service(folder) as running,
        PredictionLogger(running.address, device_id="up", spool_dir=folder / "up") as up,
        PredictionLogger(NOBODY, device_id="away", spool_dir=folder / "away") as away,
    ):
        logs: dict[str, Callable[[Any], object]] = {"off": lambda _: None, "up": up, "away": away}
        costs: dict[str, list[Cost]] = {name: [] for name in logs}
        for _ in range(rounds):
            for name in random.sample(list(logs), len(logs)):
                costs[name].append(cost(look, logs[name], frames))
        committed = up.flush(60, until="committed")
        spooled = away.flush(60)
        logged = up.stats().committed, away.stats().spooled
    expected = rounds * (frames + WARM_UP)
    if not committed or not spooled or logged != (expected, expected):
        raise RuntimeError(f"logged {expected} with each, but {logged} arrived")
    return {
        "bench": "detector_loop",
        "model": "yolov8n_int8",
        "rounds": rounds,
        "frames": frames,
        "fps": round(1 / statistics.median(cost.wall for cost in costs["off"]), 2),
        **{f"fps_ratio_{name}": ratio(costs["off"], costs[name], 0) for name in ("up", "away")},
        **{f"cpu_ratio_{name}": ratio(costs["off"], costs[name], 1) for name in ("up", "away")},
        **{f"log_p50_us_{name}": call_us(costs[name]) for name in ("up", "away")},
    }


def ratio(without: list[Cost], logging: list[Cost], part: int) -> float:
    """Return the median ratio of one part of the costs over the rounds; 1 means no cost."""
    pairs = zip(without, logging, strict=True)
    return round(statistics.median(first[part] / second[part] for first, second in pairs), 4)


def call_us(costs: list[Cost]) -> float:
    """Return the median time of `log(results)`, in microseconds."""
    return round(statistics.median(cost.call for cost in costs) * 1e6, 1)


def main() -> None:
    """Print one JSON line, or the reason for its absence on stderr."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--frames", type=int, default=20, help="in each part of a round")
    options = arguments.parse_args()
    models = os.environ.get("SIGHTLINE_TEST_MODELS")
    if not models or importlib.util.find_spec("ultralytics") is None:
        print("detector_loop needs ultralytics and SIGHTLINE_TEST_MODELS", file=sys.stderr)
        return
    with redirect_stdout(sys.stderr):  # ultralytics prints there what it loads
        look = detector(Path(models))
        look()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(look, Path(folder), options.rounds, options.frames)))


if __name__ == "__main__":
    main()
