"""The whole of Sightline on one machine: `make demo`.

Two service processes, an edge node with a seeded camera, a network that goes down and comes
back, a model that fails now and then. At the end SQL on the database says what became of every
prediction. Progress goes to stderr; stdout gets a table and then one JSON object. With `--stay` the
camera goes on afterwards, and the console shows it, until Ctrl-C.
"""

import argparse
import json
import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from edge.tally import NodeStats
from examples.demo.audit import Audit, audit
from examples.demo.node import FailingDetector, make_detector, make_node
from examples.demo.script import Script
from examples.demo.world import CONSOLE, World
from models.plates import camera, to_jpeg
from sightline import EdgeNode, Source

FLUSH_SECONDS = 60.0
_NOTES = Console(stderr=True)


@dataclass
class DemoRun:
    """The record of one run of the node."""

    logged: list[str] = field(default_factory=list)
    """Image ids, in order."""
    by_source: dict[Source, int] = field(default_factory=lambda: dict.fromkeys(Source, 0))
    stats: NodeStats | None = None


def main() -> None:
    """Run the demo; exit with 1 unless every logged prediction is in the database once."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--frames", type=int, default=240, help="number of images, at least 12")
    parser.add_argument("--fps", type=float, default=8.0, help="images per second")
    parser.add_argument("--seed", type=int, default=1, help="seed of the camera")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("build/demo"),
        help="output folder, replaced if it exists",
    )
    parser.add_argument(
        "--kill-ingest", action="store_true", help="kill the ingest service and restart it"
    )
    parser.add_argument(
        "--stay", action="store_true", help="keep running afterwards, with the console, to look at"
    )
    options = parser.parse_args()
    if options.frames < 12 or options.fps <= 0:
        parser.error(
            f"--frames must be at least 12, --fps above 0: got {options.frames}, {options.fps}"
        )
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    script = Script(options.frames, kill_ingest=options.kill_ingest)
    run = DemoRun()
    with World(options.folder) as world:
        detector = make_detector()
        with make_node(world, detector, options.folder) as node:
            _play(script, world, node, detector, run, fps=options.fps, seed=options.seed)
            _NOTES.print("waiting until everything logged is committed ...")
            node.logger.flush(FLUSH_SECONDS, until="committed")
            run.stats = node.stats()
    counts = audit(world.database, run.logged)
    _report(script, run, counts, world.database)
    exact = counts.committed == len(run.logged) and not counts.lost and not counts.duplicates
    if not exact or not counts.balanced:
        sys.exit(1)
    if options.stay:
        _stay(script, options.folder, fps=options.fps, seed=options.seed + 1)
    else:
        _NOTES.print(
            f"to look at it: sightline up --data {options.folder}, then http://{CONSOLE}"
            " (make demo STAY=1 does both, with the camera running)"
        )


def _play(
    script: Script,
    world: World,
    node: EdgeNode,
    detector: FailingDetector,
    run: DemoRun,
    *,
    fps: float,
    seed: int,
) -> None:
    """Take one image every 1/fps seconds, and have each answered and logged."""
    began = time.monotonic()
    with Progress(console=_NOTES) as progress:
        task = progress.add_task("frames", total=script.frames)
        for frame, plate in zip(range(script.frames), camera(seed), strict=False):
            for event in script.before(frame):
                progress.console.print(f"frame {frame}: {event.value}")
                world.happen(event)
            detector.fails = script.device_fails(frame)
            image_id = f"plate-{frame:05d}"
            answer = node.process(to_jpeg(plate.image), image_id)
            run.logged.append(image_id)
            run.by_source[answer.source] += 1
            _show(progress, task, node)
            time.sleep(max(0.0, began + (frame + 1) / fps - time.monotonic()))


def _stay(script: Script, folder: Path, *, fps: float, seed: int) -> None:
    """Let the camera run on the same database, with the console, until Ctrl-C or SIGTERM."""
    stop = threading.Event()
    for wanted in (signal.SIGINT, signal.SIGTERM):
        signal.signal(wanted, lambda *_: stop.set())
    with World(folder, console=True) as world:
        detector = make_detector()
        with make_node(world, detector, folder) as node:
            print(json.dumps({"console": f"http://{world.console}"}), flush=True)
            _NOTES.print(f"the console is at http://{world.console}; Ctrl-C ends everything")
            for number, plate in enumerate(camera(seed)):
                detector.fails = script.device_fails(number % script.frames)
                node.process(to_jpeg(plate.image), f"plate-{number:05d}")
                if stop.wait(1 / fps):
                    return


def _show(progress: Progress, task: TaskID, node: EdgeNode) -> None:
    logger = node.stats().logger
    progress.update(
        task, advance=1, description=f"frames  spooled {logger.spooled}  waiting {logger.backlog}"
    )


def _report(script: Script, run: DemoRun, counts: Audit, database: Path) -> None:
    if run.stats is None:
        raise AssertionError("the node has not run")
    pictures, logger = run.stats.pictures, run.stats.logger
    table = Table("what", "how many", title="Sightline demo")
    table.add_row("frames", str(script.frames))
    for name, count in counts.by_class.items():
        table.add_row(f"detections: {name}", str(count))
    table.add_row("answered by the device", str(run.by_source[Source.DEVICE]))
    table.add_row("answered by the cloud", str(run.by_source[Source.CLOUD]))
    table.add_row("spooled", str(logger.spooled))
    table.add_row("committed", str(counts.committed))
    table.add_row("lost", str(counts.lost))
    table.add_row("duplicates", str(counts.duplicates))
    table.add_row("answer p50", f"{pictures.total_milliseconds.p50:.1f} ms")
    table.add_row("answer p95", f"{pictures.total_milliseconds.p95:.1f} ms")
    Console().print(table)
    print(
        json.dumps(
            {
                "frames": script.frames,
                "logged": len(run.logged),
                "committed": counts.committed,
                "lost": counts.lost,
                "duplicates": counts.duplicates,
                "from_device": counts.from_device,
                "from_cloud": counts.from_cloud,
                "p50_ms": round(pictures.total_milliseconds.p50 or 0.0, 2),
                "p95_ms": round(pictures.total_milliseconds.p95 or 0.0, 2),
                "database": str(database),
            }
        )
    )


if __name__ == "__main__":
    main()
