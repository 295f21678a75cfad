"""Benchmark of `Infer` beside the same work in-process: `python -m bench.infer`.

Cases: YOLOv8n int8 on ultralytics' bus.jpg, where SIGHTLINE_TEST_MODELS names a folder with the
model, and the demo model on one of its plates. The work is to decode the image, to scale it, to
run the model on one thread, and to read the boxes from its output. Servers, each in a process of
its own: the service; `bare_grpc`, a grpc.aio server that does the work in two threads and nothing
else; `fastapi`, a usual FastAPI endpoint; `raw_threads`, two threads that share a session without
a server. The callers run in this process and share the machine with the servers. Figures
without a prefix are the service's; those of several rounds are medians, a ratio is that of one
round, and all servers take turns within a round.

`added`, one caller: `added_p50_ms` is the median of its calls minus the median of the same work in
this process, turn by turn. `outside_work_p50_ms`, which hardly depends on how steady the machine
is: the median of the calls minus the decode, infer and post times that each answer reports.
`replay_p50_ms`: the median of calls whose key was answered before.

`closed`, 4 and 16 callers that call again when they are answered, each on its own connection:
`per_s` counts answers in a time that begins when every caller was answered once; a call across an
edge counts by its part. `throughput_ratio_N` is that to the raw threads' images per second, and
`throughput_ratio` the lower of the two. `p99_ms`: of a call's duration. `cpu_ms`: CPU time of the
server's process per call. `rss_mib`: resident memory of the process after the loops.

`overload`: calls arrive by a Poisson process, at twice the answers per second that the same server
gave to 16 callers just before (`capacity_per_s`), with deadlines of a second.
`goodput_ratio_2x`: answers that came within their deadline while the load lasted, per second and in
capacities. `late_answers`: those that came after their deadline by the caller's clock and, of the
service, those that it sent (by its own metrics) and no caller got in time. `drain_s`: from when
the load ended until no caller waited for an answer any more. `recovery_s`: from then until a call
was sent, of calls one at a time, that took at most 1.5 times the median of calls without load;
null: none did. `sent_late_ms`: how late the latest call was sent, for lack of a CPU.

`light`, demo model only: answers per second to 16 callers with API keys, limits, an idempotency key
for each call and metrics (no access log), and `light_ratio` to the bare grpc.aio server without.

`cuda`: YOLOv8n as ultralytics' architecture file has it, untrained, with any batch size, on the
CUDA provider: `added_p50_ms` as above, and `batching_gain`, the throughput of batches of up to 16
images over that of single images. Where there is no CUDA, the row has the reason.
"""

import argparse
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.infer import accelerator, parts
from bench.infer.parts import Options, Row
from bench.infer.servers import Case
from models.plates import make_plate, to_jpeg

REPOSITORY = Path(__file__).parents[2] / "models" / "repository"
PARTS: dict[str, Callable[[Case, Path, Options], Iterator[Row]]] = {
    "added": parts.added,
    "closed": parts.closed,
    "overload": parts.overload,
    "light": parts.light,
}
USUAL = {"yolov8n": ("added", "closed", "overload"), "plates": ("added", "closed", "light")}
"""Default parts of each case. Overloading the demo model would measure the caller, and the light
load is about everything but the model."""
QUICK = Options(
    calls=3,
    replays=5,
    rounds=1,
    seconds=0.2,
    overload_seconds=0.5,
    deadline=1.0,
    recovery_seconds=10.0,
)


def bus() -> bytes | None:
    """Return ultralytics' image of a bus, None without ultralytics."""
    package = importlib.util.find_spec("ultralytics")
    if not package or not package.origin:
        return None
    return (Path(package.origin).parent / "assets" / "bus.jpg").read_bytes()


def yolov8n(folder: Path) -> Case | str:
    """Return the case of YOLOv8n, or the reason for its absence."""
    models, image = os.environ.get("SIGHTLINE_TEST_MODELS"), bus()
    if not models or not (Path(models) / "yolov8n_int8.onnx").exists():
        return "SIGHTLINE_TEST_MODELS must name a folder with yolov8n_int8.onnx"
    if image is None:
        return "ultralytics, which has the image, is not installed"
    version = folder / "yolov8n" / "1"
    version.mkdir(parents=True)
    shutil.copy(Path(models) / "yolov8n_int8.onnx", version / "model.onnx")
    return Case("yolov8n", folder, image)


def plates(folder: Path) -> Case:
    """Return the case of the demo model."""
    del folder
    return Case("plates", REPOSITORY, to_jpeg(make_plate(3).image))


CASES: dict[str, Callable[[Path], Case | str]] = {"yolov8n": yolov8n, "plates": plates}


def selected(case: str | None, only: str | None) -> Iterator[tuple[str, str]]:
    """Yield each case and part to measure.

    Args:
        case: the only case; None: each.
        only: the only part; None: the usual ones.
    """
    for name, usual in USUAL.items():
        if case in (None, name):
            chosen = usual if only is None else (only,)
            # A part selected by name runs in its usual cases, or in the selected case.
            yield from ((name, part) for part in chosen if case or part in usual)
    if (only is None and case is None) or only == "cuda":
        yield "cuda", "cuda"


def rows(case: str, part: str, folder: Path, options: Options) -> Iterator[Row]:
    """Yield the rows of one part."""
    if part == "cuda":
        yield accelerator.row(folder, bus(), plates(folder).model, options)
        return
    measured_case = CASES[case](folder)
    if isinstance(measured_case, str):
        yield {"part": part, "measured": False, "why": measured_case}
    else:
        yield from PARTS[part](measured_case, folder, options)


def options_of(arguments: argparse.Namespace) -> Options:
    """Return the durations of the measurements."""
    if arguments.quick:
        return QUICK
    return Options(
        calls=arguments.calls,
        replays=arguments.replays,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        overload_seconds=arguments.overload_seconds,
        deadline=1.0,
        recovery_seconds=60.0,
    )


def main() -> None:
    """Print one JSON line per row."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--calls", type=int, default=200, help="of one caller, each server")
    arguments.add_argument("--replays", type=int, default=200)
    arguments.add_argument("--rounds", type=int, default=3, help="of the closed loops")
    arguments.add_argument("--seconds", type=float, default=10.0, help="of a closed loop")
    arguments.add_argument("--overload-seconds", type=float, default=20.0)
    arguments.add_argument(
        "--quick", action="store_true", help="shortest run, to try the benchmark"
    )
    arguments.add_argument("--case", choices=CASES)
    arguments.add_argument("--only", choices=[*PARTS, "cuda"], help="one part")
    chosen = arguments.parse_args()
    options = options_of(chosen)
    for case, part in selected(chosen.case, chosen.only):
        with tempfile.TemporaryDirectory() as folder:
            for row in rows(case, part, Path(folder), options):
                print(json.dumps({"bench": "infer", "case": case, **row}), flush=True)


if __name__ == "__main__":
    main()
