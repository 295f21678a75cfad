"""The command `log`: pictures in, answers into the log."""

import glob
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edge.commands.live import Display, Glance
from edge.commands.options import notes, settings_with
from edge.node import EdgeNode, NodeStats
from edge.settings import EdgeSettings
from servicekit.errors import invalid
from servicekit.terminal import CommandError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def log(
    source: Annotated[
        str, typer.Argument(help="A picture, a folder of pictures, or a pattern such as 'a/*.jpg'.")
    ],
    model: Annotated[
        Path | None, typer.Option(help="Model file on this device. None: the cloud answers.")
    ] = None,
    detector: Annotated[str | None, typer.Option(help="onnx or ultralytics.")] = None,
    mode: Annotated[
        str | None, typer.Option(help="Who answers, such as auto, device or cloud.")
    ] = None,
    every: Annotated[int, typer.Option(help="Take every n-th picture only.", min=1)] = 1,
    device_id: Annotated[str | None, typer.Option(help="This device's name.")] = None,
    ingest: Annotated[str | None, typer.Option(help="Ingest service, host:port.")] = None,
    inference: Annotated[str | None, typer.Option(help="Inference service, host:port.")] = None,
    wait: Annotated[
        float, typer.Option(help="Seconds to wait at the end for the log to be committed.", min=0)
    ] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object at the end.")] = False,
) -> None:
    """Detect in pictures and log what is found, with the cloud as fallback.

    Ctrl-C ends it, with the same summary. What is not committed at the end stays in the spool and
    is sent the next time. Exit code 1: a picture had no answer, or the log is not committed.

    Example: sightline log pictures/ --model model.onnx --device-id gate-1
    """
    pictures = _pictures(source)[::every]
    settings = settings_with(
        device_model=model,
        detector=detector,
        mode=mode,
        device_id=device_id,
        ingest_target=ingest,
        inference_target=inference,
    )
    with _node(settings) as node:
        interrupted = False
        with (
            _interruptible(),
            Display(notes(), lambda: _glance(node.stats()), time.monotonic) as on,
        ):
            try:
                for path in pictures:
                    _log_one(node, path, on)
            except KeyboardInterrupt:
                interrupted = True
        committed = _flushed(node, wait)
        stats = node.stats()
    _sum_up(stats, as_json=as_json)
    if not interrupted and (not committed or stats.pictures.failed):
        raise typer.Exit(1)


def _pictures(source: str) -> list[Path]:
    """Returns the pictures of a source, in the order of their names."""
    path = Path(source)
    if path.is_dir():
        found = [one for one in path.iterdir() if one.suffix.lower() in _SUFFIXES]
    elif path.is_file():
        found = [path]
    else:
        found = [Path(name) for name in glob.glob(source, recursive=True)]  # noqa: PTH207 - absolute ones, too
    if not found:
        raise invalid("source", f"must name at least one picture (got {source!r})")
    return sorted(found)


def _node(settings: EdgeSettings) -> EdgeNode:
    try:
        return EdgeNode.from_settings(settings)
    except ImportError as error:
        extra = settings.detector
        raise CommandError(
            f"detector {extra} needs {error.name}: pip install 'sightline[{extra}]'"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:  # a spool, a setting, a model
        raise CommandError(f"{error} (`sightline doctor` checks them all)") from error


@contextmanager
def _interruptible() -> Iterator[None]:
    """Makes SIGTERM, which services are stopped by, what Ctrl-C is."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _log_one(node: EdgeNode, path: Path, on: Display) -> None:
    """Logs one picture; says why it cannot."""
    try:
        node.process(path, image_id=path.name)
    except Exception as error:  # noqa: BLE001 - in mode device, whatever the model raises
        on.say(f"{path}: {str(error) or type(error).__name__}")


def _flushed(node: EdgeNode, wait: float) -> bool:
    """Returns whether all of the log was committed in time; Ctrl-C ends the wait."""
    with suppress(KeyboardInterrupt):
        return node.logger.flush(wait, until="committed")
    return False


def _glance(stats: NodeStats) -> Glance:
    pictures, logger = stats.pictures, stats.logger
    return Glance(
        by_device=pictures.by_device,
        by_cloud=sum(pictures.by_cloud.values()),
        failed=sum(pictures.failed.values()),
        committed=logger.committed,
        waiting=logger.backlog + logger.in_memory,
    )


def _sum_up(stats: NodeStats, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(stats)))
        return
    seen = _glance(stats)
    typer.echo(
        f"{seen.pictures} pictures: {seen.by_device} answered by the device, "
        f"{seen.by_cloud} by the cloud ({seen.fallback_rate:.1%}), {seen.failed} failed; "
        f"{stats.logger.spooled} spooled, {stats.logger.backlog} of them not yet committed"
    )
