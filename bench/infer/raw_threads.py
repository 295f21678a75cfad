"""Two threads that share a session, without a server: `python -m bench.infer.raw_threads`.

The program reads a number of seconds from stdin, works for that long, prints the figures as JSON,
and repeats.
"""

import argparse
import dataclasses
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.infer.figures import OK, Call, Closed, MeasurementWindow, closed, with_cpu
from bench.infer.work import InferenceWork

THREADS = 2


def work_for(work: InferenceWork, image: bytes, seconds: float) -> Closed:
    """Return the figures of two threads that run the work again and again."""
    calls: list[Call] = []
    window, used = MeasurementWindow(THREADS, seconds), time.process_time()

    def take(caller: int) -> None:
        try:
            while not window.over(began := time.perf_counter()):
                work(image)
                calls.append(Call(began, time.perf_counter(), OK))
                window.answered(caller, time.perf_counter())
        finally:
            window.answered(caller, time.perf_counter())

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(take, range(THREADS)))
    return with_cpu(closed(calls, window.began, seconds), time.process_time() - used)


def main() -> None:
    """Run the work in one thread until the window ends."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", type=Path, required=True)
    arguments.add_argument("--picture", type=Path, required=True)
    options = arguments.parse_args()
    work, image = InferenceWork(options.model), options.picture.read_bytes()
    print(json.dumps({"ready": True, "address": ""}), flush=True)
    for line in sys.stdin:
        figures = work_for(work, image, float(line))
        print(json.dumps(dataclasses.asdict(figures)), flush=True)


if __name__ == "__main__":
    main()
