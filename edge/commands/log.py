"""The command `log`: pictures in, answers into the log."""

import json
import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edge.commands.live import Display, Glance
from edge.commands.options import notes, settings_with
from edge.errors import DeviceError
from edge.node import WORKERS, EdgeNode
from edge.run import Outcome
from edge.settings import EdgeSettings
from edge.sources.counts import SourceState
from edge.sources.frame import FrameSource
from edge.sources.opening import open_source
from edge.sources.sampling import Sampling
from edge.tally import NodeStats
from servicekit.distribution import install_hint
from servicekit.errors import SightlineError
from servicekit.telemetry import background_stderr
from servicekit.telemetry.failures_once import FailuresOnce
from servicekit.terminal import CommandError, sentence


def log(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="A picture, a folder of pictures, a pattern such as 'a/*.jpg', a video file, a"
            " camera's number, or its URL (rtsp://...).",
            show_default=False,
        ),
    ],
    model: Annotated[
        Path | None, typer.Option(help="Model file on this device. None: the cloud answers.")
    ] = None,
    detector: Annotated[str | None, typer.Option(help="onnx or ultralytics.")] = None,
    mode: Annotated[
        str | None, typer.Option(help="Who answers: auto, device, cloud, cascade or hedged.")
    ] = None,
    every: Annotated[int, typer.Option(help="Take every n-th picture only.", min=1)] = 1,
    every_seconds: Annotated[
        float | None,
        typer.Option(help="Take one picture every so many seconds; not of picture files."),
    ] = None,
    device_id: Annotated[str | None, typer.Option(help="This device's name.")] = None,
    ingest: Annotated[str | None, typer.Option(help="Ingest service, host:port.")] = None,
    inference: Annotated[str | None, typer.Option(help="Inference service, host:port.")] = None,
    wait: Annotated[
        float, typer.Option(help="Seconds to wait at the end for the log to be committed.", min=0)
    ] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object at the end.")] = False,
) -> None:
    """Detect in pictures, videos and cameras, log what is found, with the cloud as fallback.

    Cameras are reconnected when they are lost, and their oldest frames dropped when there is no
    time for them; no frame of a file is. Ctrl-C ends it, with the same summary. What is not
    committed at the end stays in the spool and is sent the next time. Exit code 1: a source could
    not be read, or, unless Ctrl-C ended it, a picture had no answer or the log is not committed.

    Example: sightline log pictures/ --model model.onnx --device-id gate-1

    Example: sightline log rtsp://camera/stream --model model.onnx --every-seconds 0.5
    """
    _never_wait_for_readers()
    settings = settings_with(
        device_model=model,
        detector=detector,
        mode=mode,
        device_id=device_id,
        ingest_target=ingest,
        inference_target=inference,
    )
    opened = _opened(sources, every, every_seconds)
    with _node(settings) as node:
        # A tracker needs the frames in order; else one is answered while another is fetched.
        workers = 1 if settings.device_tracker else WORKERS
        outcomes = _started(node, opened, workers)
        interrupted = False
        with _interruptible():
            with Display(notes(), lambda: _glance(node.stats()), time.monotonic) as on:
                try:
                    for outcome in outcomes:
                        _report(outcome, on)
                except KeyboardInterrupt:
                    interrupted = True
            committed = _flushed(node, wait)
            stats = node.stats()
    _sum_up(stats, as_json=as_json)
    unread = [name for name, one in stats.sources.items() if one.state is SourceState.FAILED]
    if unread or (not interrupted and (not committed or stats.pictures.failed)):
        raise typer.Exit(1)


def _never_wait_for_readers() -> None:
    """Keep who does not read stderr from stopping the node: its threads write there as well."""
    stream = background_stderr.install()
    if not logging.getLogger().handlers:
        logging.getLogger().addHandler(FailuresOnce(stream))


def _opened(sources: Sequence[str], every: int, every_seconds: float | None) -> list[FrameSource]:
    # What OpenCV and FFmpeg print would only be in the way: a source's errors are told by us. Both
    # read these when they are loaded.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        sampling = Sampling(every, every_seconds)
        return [open_source(word, sampling) for word in dict.fromkeys(sources)]
    except ValueError as error:
        raise CommandError(str(error)) from error
    except ModuleNotFoundError as error:
        raise CommandError(
            f"videos and cameras need {error.name}: {install_hint('video')}"
        ) from error


def _node(settings: EdgeSettings) -> EdgeNode:
    try:
        return EdgeNode.from_settings(settings)
    except ImportError as error:
        extra = "metrics" if error.name == "prometheus_client" else settings.detector
        raise CommandError(f"this needs {error.name}: {install_hint(extra)}") from error
    except (OSError, ValueError, RuntimeError) as error:  # a spool, a setting, a model
        raise CommandError(f"{error} (`sightline doctor` checks them all)") from error


def _started(node: EdgeNode, sources: list[FrameSource], workers: int) -> Iterator[Outcome]:
    try:
        return node.run(*sources, workers=workers)
    except ValueError as error:  # two sources of one name
        raise CommandError(str(error)) from error


@contextmanager
def _interruptible() -> Iterator[None]:
    """Make SIGTERM, which services are stopped by, what Ctrl-C is."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _report(outcome: Outcome, on: Display) -> None:
    """Say why a picture has no answer."""
    if outcome.error is not None:
        image, error = outcome.frame.image, outcome.error
        shown = image if isinstance(image, Path) else outcome.frame.image_id
        # A hint about the service would mislead where the device's model is at fault.
        said = str(error)
        if isinstance(error, SightlineError) and not isinstance(error, DeviceError):
            said = sentence(error)
        on.say(f"{shown}: {said or type(error).__name__}")


def _flushed(node: EdgeNode, wait: float) -> bool:
    """Return whether all of the log was committed in time; Ctrl-C ends the wait."""
    with suppress(KeyboardInterrupt):
        return node.logger.flush(wait, until="committed")
    return False


def _glance(stats: NodeStats) -> Glance:
    pictures, logger = stats.pictures, stats.logger
    return Glance(
        by_device=pictures.by_device,
        by_cloud=sum(pictures.by_cloud.values()),
        failed=sum(pictures.failed.values()),
        dropped=sum(source.dropped for source in stats.sources.values()),
        lost=sum(source.state is SourceState.LOST for source in stats.sources.values()),
        committed=logger.committed,
        waiting=logger.backlog + logger.in_memory,
    )


def _sum_up(stats: NodeStats, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(stats)))
        return
    seen = _glance(stats)
    dropped = f", {seen.dropped} dropped for want of time" if seen.dropped else ""
    typer.echo(
        f"{seen.pictures} pictures: {seen.by_device} answered by the device, "
        f"{seen.by_cloud} by the cloud ({seen.fallback_rate:.1%}), {seen.failed} failed{dropped}; "
        f"{stats.logger.spooled} spooled, {stats.logger.backlog} of them not yet committed"
    )
    for name, source in stats.sources.items():
        if source.last_error:
            typer.echo(
                f"{name}: {source.state}, {source.reconnects} times lost: {source.last_error}"
            )
