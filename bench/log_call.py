"""What `log()` costs its caller, at 1 kHz with the server away: `python -m bench.log_call`.

The baseline, taken in the same run and in turns with it, is a `queue.SimpleQueue.put` of the same
record: the least that handing over to another thread can cost.
"""

import argparse
import json
import queue
import statistics
import tempfile
import time
from pathlib import Path

from edge import Box, Detection, Prediction, PredictionLogger

NOBODY = "127.0.0.1:1"


def prediction(number: int) -> Prediction:
    """Returns a record with three detections."""
    found = tuple(
        Detection(index, name, 0.9 - index / 10, Box(10, 20, 300.5, 400.25))
        for index, name in enumerate(("person", "bus", "car"))
    )
    return Prediction(
        f"frame-{number:09d}", "yolov8n", image_width=1920, image_height=1080, detections=found
    )


def main() -> None:
    """Prints one JSON line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=20.0)
    options = arguments.parse_args()
    log_us: list[float] = []
    put_us: list[float] = []
    baseline: queue.SimpleQueue[Prediction] = queue.SimpleQueue()
    calls = int(options.seconds * 1000)
    with tempfile.TemporaryDirectory() as folder:
        log = PredictionLogger(NOBODY, device_id="bench", spool_dir=Path(folder) / "spool")
        began = time.perf_counter()
        for number in range(calls):
            one = prediction(number)
            at = time.perf_counter_ns()
            log(one)
            between = time.perf_counter_ns()
            baseline.put(one)
            put_us.append((time.perf_counter_ns() - between) / 1000)
            log_us.append((between - at) / 1000)
            time.sleep(max(0.0, began + (number + 1) / 1000 - time.perf_counter()))
        log.flush(30)
        spooled = log.stats().spooled
        log.close(1)
    cuts = statistics.quantiles(log_us, n=1000)
    p50 = statistics.median(log_us)
    print(
        json.dumps(
            {
                "bench": "log_call",
                "calls": calls,
                "spooled": spooled,
                "p50_us": round(p50, 2),
                "p99_us": round(cuts[989], 1),
                "p999_us": round(cuts[998], 1),
                "queue_put_p50_us": round(statistics.median(put_us), 2),
                "ratio_to_queue_put": round(p50 / statistics.median(put_us), 1),
            }
        )
    )


if __name__ == "__main__":
    main()
