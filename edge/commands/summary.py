"""The counts that a run of `log` shows, and its summary at the end."""

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import typer

from edge.commands.live import Glance
from edge.commands.options import flags_of
from edge.commands.sources import length_of
from edge.log.stats import LoggerStats
from edge.sources.counts import SourceState, SourceStats
from edge.sources.frame import FrameSource
from edge.tally import NodeStats

_REASONS = {
    "dropped_oldest": "memory was full",
    "dropped_newest": "memory was full",
    "spool_bytes": "the spool was full",
    "spool_age": "they were too old",
    "disk_reserve": "the disk was full",
    "spool_damaged": "the spool was damaged",
    "spool_write_failed": "the spool could not be written",
}
"""Reasons for dropped predictions in words, by the name of the `GapReason`."""


def glance(stats: Sequence[NodeStats], sources: Sequence[FrameSource]) -> Glance:
    """Return the counts of a run as they are now.

    Args:
        stats: of each node of the run.
        sources: all of the run, for how many frames there are.
    """
    lengths = [length_of(source) for source in sources]
    known = [length for length in lengths if length is not None]
    of_sources = {name: source for node in stats for name, source in node.sources.items()}
    lost = {n: source for n, source in of_sources.items() if source.state is SourceState.LOST}
    return Glance(
        by_device=sum(node.pictures.by_device for node in stats),
        by_cloud=sum(sum(node.pictures.by_cloud.values()) for node in stats),
        failed=sum(sum(node.pictures.failed.values()) for node in stats),
        dropped=sum(source.dropped - source.stopped for source in of_sources.values()),
        lost=tuple(name for name, source in lost.items() if not source.is_unreachable),
        unreachable=tuple(name for name, source in lost.items() if source.is_unreachable),
        committed=sum(node.logger.committed for node in stats),
        waiting=sum(_waiting(node.logger) for node in stats),
        done=sum(
            source.read - source.waiting + source.damaged + source.missing
            for source in of_sources.values()
        ),
        stopped=sum(source.stopped for source in of_sources.values()),
        length=sum(known) if len(known) == len(lengths) else None,
    )


def print_summary(
    stats: Mapping[str, NodeStats],
    sources: Sequence[FrameSource],
    options: Mapping[str, Mapping[str, str | Path]],
    *,
    as_json: bool,
    per_source: bool,
    interrupted: bool,
) -> None:
    """Print what became of a run: counts, sources with an error, and the command to type next.

    Args:
        stats: of each node, by device id.
        sources: all of the run.
        options: settings that flags gave, by device id.
        as_json: print one JSON object instead.
        per_source: each source has a device id of its own.
        interrupted: Ctrl-C or SIGTERM ended the reading.
    """
    if as_json:
        plain = {device: asdict(node) for device, node in stats.items()}
        typer.echo(json.dumps({"devices": plain} if per_source else next(iter(plain.values()))))
        return
    nodes = list(stats.values())
    seen = glance(nodes, sources)
    typer.echo(
        f"{_count(seen.pictures, 'image')}: {seen.by_device:,} answered by the device, "
        f"{seen.by_cloud:,} by the cloud, {seen.failed:,} failed"
        + (f", {seen.dropped:,} dropped because answering took too long" if seen.dropped else "")
        + (
            f", {seen.unanswered:,} not answered because the run was interrupted"
            if interrupted and seen.unanswered
            else ""
        )
    )
    typer.echo(_fate([node.logger for node in nodes]))
    for device, node in stats.items():
        if node.logger.last_error and (node.logger.dropped or _waiting(node.logger)):
            typer.echo(f"Last error of the log of {device}: {node.logger.last_error}")
    for node in nodes:
        for name, source in node.sources.items():
            if source.last_error:
                times = f", lost {_count(source.reconnects, 'time')}" if source.reconnects else ""
                typer.echo(f"{name}: {_state(source)}{times}: {source.last_error}")
    typer.echo(f"Next: {_next(stats, options)}")


def _state(source: SourceStats) -> str:
    """Return the state of a source in words."""
    if source.is_unreachable and source.state is not SourceState.FAILED:
        return "not reachable"
    return str(source.state)


def _waiting(logger: LoggerStats) -> int:
    """Return how many predictions are neither committed nor dropped."""
    return logger.backlog + _unspooled(logger)


def _unspooled(logger: LoggerStats) -> int:
    """Return how many predictions are not on the disk: in memory, or in a write that is retried."""
    lost = sum(logger.dropped.values())
    return max(logger.in_memory, logger.logged - logger.spooled - lost)


def _fate(loggers: Sequence[LoggerStats]) -> str:
    """Return what became of the predictions of a run."""
    logged = sum(logger.logged for logger in loggers)
    dropped: Counter[str] = Counter()
    for logger in loggers:
        dropped.update(logger.dropped)
    backlog, unspooled = sum(one.backlog for one in loggers), sum(map(_unspooled, loggers))
    parts = [f"{_count(logged, 'prediction')} logged"]
    parts += [f"{count:,} dropped ({_reason(reason)})" for reason, count in dropped.items()]
    if backlog:
        parts.append(f"{backlog:,} not committed yet: kept in the spool, sent by the next run")
    if unspooled:
        parts.append(f"{unspooled:,} not written to the spool")
    if not backlog and not unspooled and logged:
        committed = any(logger.committed for logger in loggers)
        others = "the others committed" if committed else "none committed"
        parts.append(others if dropped else "all committed")
    return ", ".join(parts)


def _reason(name: str) -> str:
    """Return why predictions were dropped."""
    return _REASONS.get(name, name.replace("_", " "))


def _next(stats: Mapping[str, NodeStats], options: Mapping[str, Mapping[str, str | Path]]) -> str:
    """Return the command to type next: `doctor` for the first device at fault, else `stats`."""
    for device, node in stats.items():
        if _is_at_fault(node):
            return shlex.join(["sightline", "doctor", *flags_of(options[device])])
    words = ["sightline", "stats", *(word for device in stats for word in ("--device", device))]
    target = next(iter(options.values())).get("ingest_target")
    return shlex.join([*words, *(["--ingest", str(target)] if target else [])])


def _is_at_fault(node: NodeStats) -> bool:
    """Return True if nothing was logged or committed, or a camera was never reached."""
    logger = node.logger
    return bool(
        _waiting(logger)
        or not logger.logged
        or (logger.dropped and not logger.committed)
        or any(source.is_unreachable for source in node.sources.values())
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
