"""Latency of `log(results)` of ultralytics by task, with no server: `python -m bench.log_results`.

The results of one frame of 1920 x 1080 have ten objects: boxes alone (`detect`), masks in the size
of the model's input (640 x 640) as polygons and as run lengths (`segment`, `segment_rle`), 17
keypoints (`pose`) or rotated boxes (`obb`). A mask is smooth and covers about a fifth of each side.
The rounds of the tasks alternate. `bytes` is the size of a record before it is encoded, an upper
bound. Without ultralytics nothing is measured.
"""

import argparse
import importlib.util
import json
import logging
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.log_call import microseconds
from sightline import LogOptions, PredictionLogger, from_ultralytics

NOBODY = "127.0.0.1:1"
OBJECTS, POINTS = 10, 17
HEIGHT, WIDTH, INPUT = 1080, 1920, 640


def tasks() -> dict[str, Any]:
    """Return ultralytics' results by task, for one frame."""
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    import torch
    from ultralytics.engine.results import Results

    chance = np.random.default_rng(1)
    scores = np.sort(chance.uniform(0.3, 0.9, (OBJECTS, 1)), axis=0)[::-1]
    classes = chance.integers(0, 3, (OBJECTS, 1))
    start = chance.uniform(0, [WIDTH / 2, HEIGHT / 2], (OBJECTS, 2))
    boxes = np.hstack([start, start + np.array([WIDTH / 5, HEIGHT / 3]), scores, classes])
    angles = chance.uniform(0, 1.5, (OBJECTS, 1))
    rotated = np.hstack([start + 200, np.full((OBJECTS, 2), 200.0), angles, scores, classes])
    points = np.dstack(
        [chance.uniform(0, 1000, (OBJECTS, POINTS, 2)), chance.uniform(0, 1, (OBJECTS, POINTS, 1))]
    )
    make = partial(
        Results, np.zeros((HEIGHT, WIDTH, 3), np.uint8), "/frame.jpg", dict(enumerate("abc"))
    )
    floats = partial(torch.tensor, dtype=torch.float32)
    return {
        "detect": make(boxes=floats(boxes)),
        "segment": make(boxes=floats(boxes), masks=torch.from_numpy(_masks(boxes))),
        "pose": make(boxes=floats(boxes), keypoints=floats(points)),
        "obb": make(obb=floats(rotated)),
    }


def _masks(boxes: Any) -> Any:  # noqa: ANN401 (arrays)
    """Return uint8 `[n, INPUT, INPUT]`: an object with a wavy outline in each box."""
    gain = INPUT / WIDTH
    rows, columns = np.mgrid[:INPUT, :INPUT]
    masks = np.zeros((len(boxes), INPUT, INPUT), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes[:, :4], strict=True):
        across = (columns - gain * (left + right) / 2) / (gain * (right - left) / 2)
        pad = (INPUT - gain * HEIGHT) / 2
        down = (rows - pad - gain * (top + bottom) / 2) / (gain * (bottom - top) / 2)
        reach = 0.85 + 0.15 * np.sin(7 * np.arctan2(down, across))
        mask[:] = across**2 + down**2 < reach**2
    return masks


def measure(rounds: int) -> dict[str, object]:
    """Return the line of figures."""
    results = tasks()
    line: dict[str, object] = {"bench": "log_results", "objects": OBJECTS, "rounds": rounds}
    with tempfile.TemporaryDirectory() as name:
        make = partial(PredictionLogger, NOBODY, device_id="bench", model_name="bench")
        plain = make(spool_dir=Path(name) / "polygon")
        exact = make(spool_dir=Path(name) / "rle", options=LogOptions(mask_format="rle"))
        calls: dict[str, Callable[[], None]] = {
            **{task: partial(plain.log, result) for task, result in results.items()},
            "segment_rle": partial(exact.log, results["segment"]),
        }
        taken: dict[str, list[float]] = {task: [] for task in calls}
        for _ in range(rounds):
            for task, call in calls.items():
                taken[task].append(microseconds(call))
        for logger in (plain, exact):
            if not logger.flush(60) or logger.stats().left_out:
                raise RuntimeError(f"not everything was logged: {logger.stats()}")
            logger.close(1)
    for task, times in taken.items():
        line[f"{task}_p50_us"] = round(statistics.median(times), 1)
        record = from_ultralytics(
            results[task.removesuffix("_rle")],
            mask_format="rle" if task == "segment_rle" else "polygon",
        )
        line[f"{task}_bytes"] = record.size
    return line


def main() -> None:
    """Print one JSON line, or the reason for its absence on stderr."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=500)
    options = arguments.parse_args()
    if importlib.util.find_spec("ultralytics") is None:
        print("log_results needs ultralytics", file=sys.stderr)
        return
    logging.getLogger("edge").setLevel(logging.ERROR)  # there is no server on purpose
    print(json.dumps(measure(options.rounds)))


if __name__ == "__main__":
    main()
