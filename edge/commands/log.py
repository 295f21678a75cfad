"""The command `log`: images in, predictions into the log."""

import asyncio
import logging
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from edge.commands.live import Display
from edge.commands.options import (
    SHORT_FLAGS,
    DetectorName,
    DeviceModel,
    InferenceTarget,
    IngestTarget,
    ModeName,
    notes,
    settings_with,
)
from edge.commands.sources import (
    PLACEHOLDER,
    check_placeholders,
    device_ids,
    open_sources,
    skipped_of,
)
from edge.commands.summary import glance, print_summary
from edge.errors import DeviceError
from edge.node import WORKERS, EdgeNode
from edge.run import Outcome
from edge.settings import EdgeSettings
from edge.sources.counts import SourceState
from edge.sources.frame import FrameSource
from edge.spool.directories import default_spool_dir
from edge.tally import NodeStats
from servicekit.contract_bounds import MAX_LABEL_BYTES, MAX_LABELS
from servicekit.distribution import install_hint
from servicekit.errors import SightlineError
from servicekit.help import OUTPUT, with_settings
from servicekit.names import readable
from servicekit.settings import warn_of_mistyped_variables
from servicekit.telemetry import background_stderr
from servicekit.telemetry.failures_once import FailuresOnce
from servicekit.terminal import CommandError, UsageError, sentence

_MAX_OWN_LABELS = MAX_LABELS - 1  # one is `source`


@with_settings(EdgeSettings, without=("detector", "mode", "device_id"), hidden=SHORT_FLAGS)
def log(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="An image, a folder of images, a pattern such as 'a/*.jpg', a video file, a"
            " camera's number, or its URL (rtsp://...).",
            show_default=False,
        ),
    ],
    *,
    advanced: Mapping[str, str],
    model: DeviceModel = None,
    detector: DetectorName = None,
    mode: ModeName = None,
    device_id: Annotated[
        str | None,
        typer.Option(
            help="This device's name. With {source} in it each source is a device of its own, with"
            " its own model and spool: gate-{source}."
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Label of every prediction, such as line=4; may be given more than once.",
        ),
    ] = None,
    every: Annotated[int, typer.Option(help="Take every n-th image only.", min=1)] = 1,
    every_seconds: Annotated[
        float | None,
        typer.Option(help="Take one image every so many seconds; not of image files."),
    ] = None,
    wait: Annotated[
        float, typer.Option(help="Seconds to wait at the end for the log to be committed.", min=0)
    ] = 10.0,
    ingest: IngestTarget = None,
    inference: InferenceTarget = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="One JSON object at the end.", rich_help_panel=OUTPUT),
    ] = False,
) -> None:
    """Detect objects in images, videos and cameras, and log the results.

    Example: sightline log images/ --model model.onnx --device-id gate-1

    Example: sightline log rtsp://camera/stream --model model.onnx --every-seconds 0.5

    The cloud answers where the device cannot. A lost camera is reconnected, and its oldest frames
    are dropped when answering takes too long; no frame of a file is dropped. Ctrl-C ends the run
    with the same summary. Predictions that are not committed at the end stay in the spool, and the
    next run sends them.

    Exit code 1: a source could not be read to its end, a frame of a file is damaged, or, unless
    Ctrl-C ended the run, an image got no answer or the log is not committed.
    """
    _never_wait_for_readers()
    named = {
        "device_model": model,
        "detector": detector,
        "mode": mode,
        "device_id": device_id,
        "ingest_target": ingest,
        "inference_target": inference,
    }
    options: dict[str, str | Path] = {
        **advanced,
        **{name: value for name, value in named.items() if value is not None},
    }
    settings = settings_with(**options)
    warn_of_mistyped_variables(EdgeSettings)
    check_placeholders(settings.device_id)
    labels = _labels(label or ())
    opened = open_sources(sources, every, every_seconds)
    for skipped in skipped_of(sources):
        notes().print(skipped, markup=False, highlight=False, soft_wrap=True)
    with ExitStack() as nodes:
        runs = [
            _Run(nodes.enter_context(_node(device)), its_sources, device, flags)
            for device, its_sources, flags in _devices(settings, opened, options)
        ]
        interrupted = False
        with _interruptible():
            with Display(
                notes(), lambda: glance([run.node.stats() for run in runs], opened), time.monotonic
            ) as display:
                try:
                    _answer_all(runs, labels, display)
                except KeyboardInterrupt:
                    interrupted = True
            committed = _flush(runs, wait)
            stats = {run.settings.device_id: run.node.stats() for run in runs}
    print_summary(
        stats,
        opened,
        {run.settings.device_id: run.options for run in runs},
        as_json=as_json,
        per_source=PLACEHOLDER in settings.device_id,
        interrupted=interrupted,
    )
    unanswered = any(node.pictures.failed for node in stats.values())
    if _has_unread(stats.values(), opened) or (not interrupted and (not committed or unanswered)):
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Run:
    """A node, the sources that it reads, its settings, and those that flags gave."""

    node: EdgeNode
    sources: Sequence[FrameSource]
    settings: EdgeSettings
    options: Mapping[str, str | Path]

    @property
    def workers(self) -> int:
        """Frames that are answered at once: one for a tracker, which needs them in order."""
        return 1 if self.settings.device_tracker else WORKERS


def _labels(words: Sequence[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not name or not separator:
            raise UsageError(f"--label: must be NAME=VALUE, such as line=4 (got {word!r})")
        if name == "source":
            raise UsageError("--label: source is the name of each image's source already")
        if not all(_fits_label(text) for text in (name, value)):
            raise UsageError(
                "--label: name and value must be UTF-8 text of at most"
                f" {MAX_LABEL_BYTES} bytes each (got {word!r})"
            )
        labels[name] = value
    if len(labels) > _MAX_OWN_LABELS:
        raise UsageError(f"--label: at most {_MAX_OWN_LABELS} may be given (got {len(labels)})")
    return labels


def _fits_label(text: str) -> bool:
    """Return True if the ingest service takes this text as the name or the value of a label."""
    try:
        return len(text.encode()) <= MAX_LABEL_BYTES
    except UnicodeEncodeError:  # bytes of an argument that are not UTF-8
        return False


def _devices(
    settings: EdgeSettings, sources: Sequence[FrameSource], options: Mapping[str, str | Path]
) -> Iterator[tuple[EdgeSettings, Sequence[FrameSource], Mapping[str, str | Path]]]:
    """Yield the settings of each device of the run, its sources, and its settings of flags.

    Args:
        settings: of the node; `{source}` in their device id makes each source a device.
        sources: all of the run.
        options: settings that flags gave.
    """
    if PLACEHOLDER not in settings.device_id:
        yield settings, sources, options
        return
    if settings.metrics_listen and not settings.metrics_listen.endswith(":0"):
        raise UsageError(
            f"metrics_listen: must be empty or have port 0 where each source is a device"
            f" (got {settings.metrics_listen})"
        )
    ids = device_ids(settings.device_id, sources)
    for device_id, source in zip(ids, sources, strict=True):
        folder = default_spool_dir(device_id)
        if settings.spool_dir is not None:
            folder = settings.spool_dir / folder.name
        own = {**options, "device_id": device_id, "spool_dir": folder}
        yield settings_with(**own), [source], own


def _answer_all(runs: Sequence[_Run], labels: Mapping[str, str], display: Display) -> None:
    """Answer every frame of every run, and report those without an answer."""
    if len(runs) > 1:
        asyncio.run(_answer_together(runs, labels, display))
        return
    (run,) = runs  # without the event loop, which costs 0.2 ms per frame
    for outcome in run.node.run(*run.sources, labels=labels, workers=run.workers):
        _report(outcome, display)


async def _answer_together(
    runs: Sequence[_Run], labels: Mapping[str, str], display: Display
) -> None:
    async def answer(run: _Run) -> None:
        async for outcome in run.node.arun(*run.sources, labels=labels, workers=run.workers):
            _report(outcome, display)

    async with asyncio.TaskGroup() as tasks:
        for run in runs:
            tasks.create_task(answer(run))


def _never_wait_for_readers() -> None:
    """Keep a stderr that nobody reads from blocking the node, whose threads write to it as well."""
    stream = background_stderr.install()
    if not logging.getLogger().handlers:
        logging.getLogger().addHandler(FailuresOnce(stream))


def _node(settings: EdgeSettings) -> EdgeNode:
    try:
        return EdgeNode.from_settings(settings)
    except ImportError as error:
        extra = "metrics" if error.name == "prometheus_client" else settings.detector
        raise CommandError(f"this needs {error.name}: {install_hint(extra)}") from error
    except (OSError, ValueError, RuntimeError) as error:  # a spool, a setting, a model
        text = str(error)
        if isinstance(error, OSError) and error.strerror and not error.filename:
            text = error.strerror
        raise CommandError(f"{text} (`sightline doctor` checks them all)") from error


@contextmanager
def _interruptible() -> Iterator[None]:
    """Make SIGTERM, which ends services, do what Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _has_unread(nodes: Iterable[NodeStats], sources: Sequence[FrameSource]) -> bool:
    """Return True if a source was not read to its end, or a file has a damaged frame."""
    files = {source.name for source in sources if not source.live}
    return any(
        counts.state is SourceState.FAILED or (counts.damaged and name in files)
        for node in nodes
        for name, counts in node.sources.items()
    )


def _report(outcome: Outcome, display: Display) -> None:
    """Print why an image has no answer."""
    if outcome.error is not None:
        image, error = outcome.frame.image, outcome.error
        name = readable(image) if isinstance(image, Path) else outcome.frame.image_id
        # A hint about the service would mislead where the device's model is at fault.
        text = str(error)
        if isinstance(error, SightlineError) and not isinstance(error, DeviceError):
            text = sentence(error, timeout="--timeout-seconds")
        display.say(f"{name}: {text or type(error).__name__}")


def _flush(runs: Sequence[_Run], wait: float) -> bool:
    """Return True if all of the log was committed within `wait` seconds; Ctrl-C ends the wait."""
    ends_at = time.monotonic() + wait
    with suppress(KeyboardInterrupt):
        return all(
            run.node.logger.flush(max(ends_at - time.monotonic(), 0.0), until="committed")
            for run in runs
        )
    return False
