"""The counts that a run of `log` shows, and its summary at the end."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import typer

from edge.commands.live import Glance
from edge.commands.sources import length_of
from edge.sources.counts import SourceState
from edge.sources.frame import FrameSource
from edge.tally import NodeStats


def glance(stats: Sequence[NodeStats], sources: Sequence[FrameSource]) -> Glance:
    """Return the counts of a run as they are now.

    Args:
        stats: of each node of the run.
        sources: all of the run, for how many frames there are.
    """
    lengths = [length_of(source) for source in sources]
    known = [length for length in lengths if length is not None]
    of_sources = {name: source for node in stats for name, source in node.sources.items()}
    return Glance(
        by_device=sum(node.pictures.by_device for node in stats),
        by_cloud=sum(sum(node.pictures.by_cloud.values()) for node in stats),
        failed=sum(sum(node.pictures.failed.values()) for node in stats),
        dropped=sum(source.dropped for source in of_sources.values()),
        lost=tuple(n for n, source in of_sources.items() if source.state is SourceState.LOST),
        committed=sum(node.logger.committed for node in stats),
        waiting=sum(node.logger.backlog + node.logger.in_memory for node in stats),
        done=sum(source.read - source.waiting for source in of_sources.values()),
        length=sum(known) if len(known) == len(lengths) else None,
    )


def print_summary(
    stats: Mapping[str, NodeStats],
    sources: Sequence[FrameSource],
    target: str | None,
    *,
    as_json: bool,
    per_source: bool,
) -> None:
    """Print what became of a run: counts, sources with an error, and the command to type next.

    Args:
        stats: of each node, by device id.
        sources: all of the run.
        target: the ingest service, where a flag named it.
        as_json: print one JSON object instead.
        per_source: each source has a device id of its own.
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
    )
    logged = sum(node.logger.logged for node in nodes)
    gone = sum(sum(node.logger.dropped.values()) for node in nodes)
    typer.echo(
        f"{_count(logged, 'prediction')} logged, "
        + (f"{gone:,} dropped for lack of space, " if gone else "")
        + (
            f"{seen.waiting:,} not committed yet: kept in the spool, sent by the next run"
            if seen.waiting
            else "all committed"
            if not gone
            else "the others committed"
        )
    )
    for node in nodes:
        for name, source in node.sources.items():
            if source.last_error:
                times = f", lost {_count(source.reconnects, 'time')}" if source.reconnects else ""
                typer.echo(f"{name}: {source.state}{times}: {source.last_error}")
    typer.echo(f"Next: {_next(list(stats), target, waiting=bool(seen.waiting))}")


def _next(devices: Sequence[str], target: str | None, *, waiting: bool) -> str:
    if waiting:
        return "sightline doctor" + (f" --ingest {target}" if target else "")
    words = ["sightline", "stats", *(word for device in devices for word in ("--device", device))]
    return shlex.join([*words, *(["--target", target] if target else [])])


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
