"""The command that runs the ingest service: `python -m ingest_service --help`."""

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
from prometheus_client import CollectorRegistry, Gauge

from ingest_service.backup import Backups
from ingest_service.metrics import (
    CommitMetrics,
    DeviceTimes,
    UpkeepMetrics,
    conflict_counter,
    register_sizes,
)
from ingest_service.read.figures import FigureReads
from ingest_service.read.queries import Queries
from ingest_service.read.records import RecordReads
from ingest_service.read.sql import SqlQueries
from ingest_service.read.watching import Watches
from ingest_service.receive.group import MessageOutcome
from ingest_service.receive.group_commit import MESSAGE_COST, GroupCommitter
from ingest_service.receive.group_writer import GroupWriter
from ingest_service.receive.nodes_ahead import NodesAhead
from ingest_service.receive.protobuf_decoder import ProtobufDecoder
from ingest_service.receive.ptars_decoder import PtarsDecoder
from ingest_service.server import IngestServer, page_bytes
from ingest_service.settings import IngestSettings
from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.duckdb.opening import StoreOpenError
from ingest_service.store.housekeeping import Duties, Housekeeping
from ingest_service.store.watched import WatchedStore
from servicekit import free_memory
from servicekit.about import program
from servicekit.calls.budget_bounds import BudgetBounds
from servicekit.calls.budgets import bounds_of
from servicekit.errors import SightlineError
from servicekit.lifecycle import Readiness, StartError, run, serve
from servicekit.private_files import keep_private
from servicekit.settings import load, warn_of_mistyped_variables
from servicekit.telemetry import logs

PROG = program("python -m ingest_service")
STREAM_GRACE_SECONDS = 2.0
"""Time after SIGTERM for open streams to end by themselves before they are cut, s."""
SWITCH_SECONDS = 0.001
"""Switch interval of the interpreter, s. The writer needs the interpreter's lock after each
statement; with Python's 5 ms it would wait for the event loop for much of a commit."""
STREAM_WINDOW = 32 * 1024
"""Data of one stream that gRPC receives ahead of its handler, bytes."""
POSITION_QUEUE = 10_000
"""Nodes that may request their position at the same time, as a whole fleet does after an outage."""


def _now() -> datetime:
    return datetime.now(UTC)


def _open(settings: IngestSettings) -> DuckDBStore:
    try:
        return DuckDBStore(settings.database, trust=settings.trust_database)
    except StoreOpenError as error:
        raise StartError(str(error)) from error


def _duties(settings: IngestSettings) -> Duties:
    return Duties(
        settings.retain_days,
        settings.export_dir,
        export_seconds=60 * settings.export_every_minutes,
        confirmed_until=settings.retain_confirm_until,
    )


def _clock_gauges(
    registry: CollectorRegistry, store: DuckDBStore, housekeeping: Housekeeping
) -> None:
    """Register the metrics that show the effects of a wrong wall clock."""
    Gauge(
        "sightline_retention_held_seconds",
        "How far the clock is ahead of the time that retention uses, s; 0: it is trusted",
        registry=registry,
    ).set_function(lambda: housekeeping.held_seconds)
    Gauge(
        "sightline_received_at_ahead_seconds",
        "How far received_at is ahead of the clock after it was set back, s",
        registry=registry,
    ).set_function(lambda: store.seconds_ahead(_now()))


def _device_times(
    settings: IngestSettings, store: DuckDBStore, registry: CollectorRegistry
) -> DeviceTimes:
    limit = settings.metrics_devices
    known = store.latest_devices(limit) if limit else []
    return DeviceTimes(registry, limit, known, time.time)


def _bounds(settings: IngestSettings) -> BudgetBounds:
    """Return the bounds of the messages in memory, from their arrival to their commit."""
    # Read a message that is too large, to answer with a better error than gRPC's own.
    largest = min(2 * settings.max_message_bytes, 2**31 - 1)
    committing = min(settings.max_inflight_bytes, settings.max_bytes_in_flight or 1 << 50)
    return replace(
        bounds_of(settings, STREAM_WINDOW),
        # As much again is for messages that are being received, including read requests, but at
        # least four of the largest. With a smaller bound the server would read streams one by one,
        # each after everything is committed, and eight busy devices would wait for each other.
        limit=max(2 * committing, committing + 4 * (largest + MESSAGE_COST)),
        waiting=committing // 2,
        largest=largest,
        message_cost=MESSAGE_COST,
        # A slow disk is no reason to refuse a received message: the device waits.
        patience_seconds=settings.receive_timeout_seconds,
    )


async def _main(argv: Sequence[str]) -> None:
    settings = load(IngestSettings, argv, prog=PROG)
    logs.configure(settings.log_level, settings.log_format, service="ingest")
    warn_of_mistyped_variables(IngestSettings)
    keep_private()
    opened, registry = _open(settings), CollectorRegistry()
    store = WatchedStore(opened)
    positions = Queries(store, threads=1, queue=POSITION_QUEUE)
    queries = Queries(store, threads=settings.query_threads, queue=settings.query_queue)
    largest_page = page_bytes(settings.max_message_bytes)
    records = RecordReads(queries, now=_now, page_bytes=largest_page)
    figures = FigureReads(queries, now=_now, page_bytes=largest_page)
    watches = Watches(store, at_once=settings.max_watches, message_bytes=largest_page)
    sql = SqlQueries(
        store,
        at_once=settings.sql_queries,
        memory_bytes=settings.sql_memory,
        seconds=settings.sql_seconds,
    )
    ahead = NodesAhead(registry, was_empty=opened.was_empty)

    def on_committed(gaps: pa.Table, outcomes: Sequence[MessageOutcome]) -> None:
        ahead.committed(gaps, outcomes)
        watches.committed()

    writer = GroupWriter(
        store,
        _now,
        on_committed=on_committed,
        on_conflict=conflict_counter(registry),
        observer=CommitMetrics(registry, _device_times(settings, opened, registry)),
        decoder=ProtobufDecoder() if settings.decoder == "protobuf" else PtarsDecoder(),
        date_undated=settings.undated == "server-time",
    )
    committer = GroupCommitter(
        writer.prepare,
        writer.commit,
        group_bytes=settings.group_bytes,
        group_wait=settings.group_wait_ms / 1000,
    )
    register_sizes(registry, opened.sizes)
    housekeeping = Housekeeping(store, _duties(settings), _now, UpkeepMetrics(registry))
    _clock_gauges(registry, opened, housekeeping)
    backups = Backups(opened.backup, settings.database)
    server = IngestServer(
        committer,
        positions,
        queries,
        backups,
        [records, figures, watches, sql],
        now=_now,
        max_message_bytes=settings.max_message_bytes,
    )

    async def start(readiness: Readiness) -> None:
        """Connect the store to readiness; the store was opened before the address was bound."""
        store.on_change = readiness.set

    async def drain() -> None:
        backups.cancel()  # it would outlast the grace period
        watches.drain()
        asyncio.get_running_loop().call_later(STREAM_GRACE_SECONDS, server.cut_streams)

    async def stop() -> None:
        await committer.close()
        await asyncio.to_thread(positions.close)
        await asyncio.to_thread(queries.close)
        await asyncio.to_thread(watches.close)
        await asyncio.to_thread(sql.close)
        await asyncio.to_thread(housekeeping.close)
        await backups.close()
        try:
            await asyncio.to_thread(store.close)
        except SightlineError as error:  # the service must not exit with 0 if it has lost its file
            raise StartError(f"database: {settings.database}: {error.message}") from error

    await serve(
        settings,
        [server.service()],
        name="ingest",
        start=start,
        drain=drain,
        stop=stop,
        registry=registry,
        bounds=_bounds(settings),
        # Pages are bounded by themselves. A prediction that came when max_message_bytes was larger
        # must be readable.
        options=[("grpc.max_send_message_length", -1)],
    )


def main() -> None:
    """Run the service until SIGTERM; exit with 1 if it cannot start, with 2 for a bad setting."""
    sys.setswitchinterval(SWITCH_SECONDS)
    free_memory.keep_few_arenas()
    sys.exit(run(lambda: _main(sys.argv[1:]), prog=PROG))


if __name__ == "__main__":
    main()
