"""Part `cuda`: the latency that the service adds on an accelerator, and the gain of batches."""

import contextlib
import os
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import uvloop

from bench.infer import parts, servers
from bench.infer.figures import Closed, median_ratio, milliseconds
from bench.infer.load import closed_loop
from bench.infer.parts import Options, Row
from bench.infer.servers import BenchmarkServer, Case
from bench.infer.work import InferenceWork
from vision import ModelError
from vision.session_options import CPU, CUDA

BATCH = 16
CALLERS = 2 * BATCH
"""Enough for one batch to fill up while another runs."""
UNBATCHED, BATCHED = "batch_1", f"batch_{BATCH}"
_BATCH_WAIT_MS = 2


def row(folder: Path, image: bytes | None, probe: Path, options: Options) -> Row:
    """Return the figures on CUDA, or the reason for their absence.

    Args:
        folder: folder for models.
        image: image of a bus; None without ultralytics.
        probe: a small model to try CUDA with.
        options: durations of the measurements.
    """
    providers = (CUDA, CPU)
    why = "ultralytics, which has the model, is not installed" if image is None else None
    why = why or unusable(providers, probe)
    if image is None or why:
        return {"part": "cuda", "measured": False, "why": why}
    model = export_yolov8n(folder)
    figures = measure(repositories(folder, model, image), providers, options)
    return {"part": "cuda", "measured": True, **figures}


def unusable(providers: Sequence[str], model: Path) -> str | None:
    """Return the reason why these providers cannot run a model; None if they can."""
    try:
        InferenceWork(model, tuple(providers))
    except ModelError as error:
        return f"{providers[0]} cannot be used: {' '.join(error.message.split())}"
    return None


def export_yolov8n(folder: Path) -> Path:
    """Return YOLOv8n from ultralytics' architecture file: untrained, any batch size."""
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    from ultralytics import YOLO

    # ultralytics prints its progress to stdout and writes into the working directory.
    with redirect_stdout(sys.stderr), contextlib.chdir(folder):
        exported = YOLO("yolov8n.yaml", task="detect").export(format="onnx", dynamic=True)
        return Path(exported).absolute()


def repositories(folder: Path, model: Path, image: bytes) -> dict[int, Case]:
    """Return the case of a model by maximum batch size."""
    cases = {}
    for size in (1, BATCH):
        name = f"batch{size}"
        version = folder / f"repository{size}" / name / "1"
        version.mkdir(parents=True)
        shutil.copy(model, version / "model.onnx")
        description = f"batching: {{max_size: {size}, max_wait_ms: {_BATCH_WAIT_MS}}}\n"
        (version / "model.yaml").write_text(description)
        cases[size] = Case(name, version.parents[1], image)
    return cases


def measure(cases: dict[int, Case], providers: Sequence[str], options: Options) -> Row:
    """Return the latency added to one call, and the gain of batches with many callers."""
    flags = ["--providers", ",".join(providers), "--queue-size", str(4 * CALLERS)]
    with (
        servers.ours(cases[BATCH], *flags) as batched,
        servers.ours(cases[1], *flags) as single,
    ):
        work = InferenceWork(cases[BATCH].model, tuple(providers))
        taken = uvloop.run(parts.one_by_one(work, cases[BATCH], [batched], options.calls))
        loops = parts.rounds(
            {
                UNBATCHED: _loop(single, options.seconds),
                BATCHED: _loop(batched, options.seconds),
            },
            options.rounds,
        )
    rates = {name: [figures.per_s for figures in own] for name, own in loops.items()}
    alone = parts.median_seconds(taken[parts.IN_PROCESS])
    return {
        "provider": providers[0],
        "in_process_p50_ms": milliseconds(alone),
        "added_p50_ms": milliseconds(parts.median_seconds(taken[servers.OURS]) - alone),
        "concurrency": CALLERS,
        "rounds": options.rounds,
        **{f"{name}_per_s": round(statistics.median(own), 1) for name, own in rates.items()},
        "batching_gain": round(median_ratio(rates[BATCHED], rates[UNBATCHED]), 3),
    }


def _loop(server: BenchmarkServer, seconds: float) -> Callable[[], Closed]:
    return lambda: uvloop.run(closed_loop(server.connect, CALLERS, seconds))
