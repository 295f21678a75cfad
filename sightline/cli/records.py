"""`sightline devices`, `ledger`, `gaps`, `rejections` and `show`: the records of the log."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Protocol, TypeAlias, TypeVar

import grpc
import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge.channel import Endpoint
from edge.commands.options import IngestTarget, Json, settings_with
from edge.endpoints import ingest_endpoint
from servicekit.errors import from_rpc_error
from servicekit.plain import plain, words_of
from servicekit.terminal import UsageError
from sightline.cli.read import Timeout
from sightline.cli.unknown import note_unknown
from sightline.ingest.v1 import ingest_pb2, ingest_service_pb2_grpc, reads_pb2

if TYPE_CHECKING:
    from grpc import UnaryUnaryMultiCallable

_PAGE = 1000
_LARGE = [("grpc.max_receive_message_length", -1)]
"""A single rejection may be larger than what gRPC accepts by default."""
_SECONDS_OF = {"d": 86_400, "h": 3600, "min": 60, "s": 1}
_REASON_WORDS = words_of(ingest_pb2.GapReason.DESCRIPTOR)
_REASONS = {
    word: number
    for number in ingest_pb2.GapReason.values()
    if (word := _REASON_WORDS[number]) is not None
}
Device = Annotated[
    list[str] | None,
    typer.Option("--device", help="Only this device; may be given more than once."),
]
Limit = Annotated[int, typer.Option(help="How many to print, newest first.", min=1)]


class _ListRequest(Protocol):
    page_token: str


class _ListPage(Protocol):
    next_page_token: str


_A = TypeVar("_A")
_B = TypeVar("_B")
_E = TypeVar("_E")
_R = TypeVar("_R", bound=_ListRequest)
_P = TypeVar("_P", bound=_ListPage)
_Method: TypeAlias = (
    "Callable[[ingest_service_pb2_grpc.IngestServiceStub], UnaryUnaryMultiCallable[_A, _B]]"
)


def devices(
    device: Device = None,
    silent_after: Annotated[
        float,
        typer.Option(help="Seconds without a commit after which a device counts as silent.", min=0),
    ] = 300.0,
    window: Annotated[
        float, typer.Option(help="Seconds of the rate, up to now.", min=60, max=86_400)
    ] = 300.0,
    target: IngestTarget = None,
    as_json: Json = False,
    timeout: Timeout = 10.0,
) -> None:
    """List the devices: when each was last received, its rate, and what waits on it.

    Example: sightline devices --silent-after 60

    With --json, one line for each device, with the age of its last commit in seconds and whether it
    is silent.
    """
    request = reads_pb2.ListDevicesRequest(device_ids=device or (), page_size=_PAGE)
    request.window.FromMilliseconds(round(window * 1000))
    table = Table()
    table.add_column("device", overflow="fold")
    for title in ("last commit", "per s", "before", "waiting", "stored", "lost"):
        table.add_column(title, justify="right")
    silent, found = 0, []
    for page in _pages(target, timeout, lambda stub: stub.ListDevices, request):
        for entry in page.devices:
            age = _age(page.server_time, entry)
            is_silent = age is None or age > silent_after
            silent += is_silent
            found.append(entry.device_id)
            if as_json:
                _print_json(plain(entry) | {"age_seconds": age, "silent": is_silent})
            else:
                table.add_row(*_device_cells(entry, age), style="red" if is_silent else None)
    if not as_json:
        Console().print(table)
        typer.echo(
            f"{len(found):,} devices, {silent:,} of them silent for over {_length(silent_after)}"
        )
    note_unknown(_service(target), device, found, timeout)


def ledger(
    device: Device = None,
    target: IngestTarget = None,
    as_json: Json = False,
    timeout: Timeout = 10.0,
) -> None:
    """Print the account of each spool: what was committed, and what became of it.

    Example: sightline ledger --json | jq .total

    Accepted, rejected and lost predictions together are the committed ones. Exit code 1: they are
    not, for at least one spool.
    """
    request = reads_pb2.GetLedgerRequest(device_ids=device or (), page_size=_PAGE)
    pages = list(_pages(target, timeout, lambda stub: stub.GetLedger, request))
    entries = [entry for page in pages for entry in page.entries]
    total: reads_pb2.LedgerEntry = pages[0].total
    if as_json:
        _print_json({"entries": [plain(entry) for entry in entries], "total": plain(total)})
    else:
        _print_ledger(entries, total)
    found = [entry.device_id for entry in entries]
    note_unknown(_service(target), device, found, timeout)
    if not total.balanced:
        raise typer.Exit(1)


def gaps(
    device: Device = None,
    reason: Annotated[
        str | None, typer.Option(help=f"Only this reason: {', '.join(_REASONS)}.")
    ] = None,
    limit: Limit = 100,
    target: IngestTarget = None,
    as_json: Json = False,
    timeout: Timeout = 10.0,
) -> None:
    """List the sequences that devices declared they will never send.

    Example: sightline gaps --reason spool_bytes
    """
    if reason is not None and reason not in _REASONS:
        raise UsageError(f"--reason: must be one of {', '.join(_REASONS)}")
    request = reads_pb2.ListGapsRequest(device_ids=device or (), page_size=min(limit, _PAGE))
    request.reason = _REASONS[reason] if reason else ingest_pb2.GAP_REASON_UNSPECIFIED
    table = _table("received (UTC)", "device", "spool", "sequences", "reason")
    pages = _pages(target, timeout, lambda stub: stub.ListGaps, request)
    found = set()
    for entry in _entries(pages, lambda page: page.gaps, limit):
        found.add(entry.device_id)
        if as_json:
            _print_json(plain(entry))
        else:
            gap = entry.gap
            table.add_row(
                _time(entry.received_at),
                escape(entry.device_id),
                entry.spool_id,
                f"{gap.first_sequence}-{gap.last_sequence}",
                _REASON_WORDS.get(gap.reason, str(gap.reason)),
            )
    if not as_json:
        Console().print(table)
    note_unknown(_service(target), device, found, timeout)


def rejections(
    device: Device = None,
    reason: Annotated[
        str | None, typer.Option(help="Only this rule, such as CONFIDENCE_OUT_OF_RANGE.")
    ] = None,
    limit: Limit = 100,
    target: IngestTarget = None,
    as_json: Json = False,
    timeout: Timeout = 10.0,
) -> None:
    """List the predictions that broke a rule, with --json each with its original.

    Example: sightline rejections --json | jq .original.image_id
    """
    request = reads_pb2.ListRejectionsRequest(
        device_ids=device or (), reason=reason or "", page_size=min(limit, _PAGE)
    )
    table = _table("received (UTC)", "device", "spool", "sequence", "field and rule")
    pages = _pages(target, timeout, lambda stub: stub.ListRejections, request)
    found = set()
    for entry in _entries(pages, lambda page: page.rejections, limit):
        found.add(entry.device_id)
        if as_json:
            _print_json(plain(entry))
        else:
            rejection = entry.rejection
            table.add_row(
                _time(entry.received_at),
                escape(entry.device_id),
                entry.spool_id,
                str(rejection.sequence),
                escape(f"{rejection.field}: {rejection.reason}"),
            )
    if not as_json:
        Console().print(table)
    note_unknown(_service(target), device, found, timeout)


def show(
    device: Annotated[str, typer.Argument(help="The device.", show_default=False)],
    spool: Annotated[str, typer.Argument(help="The id of its spool.", show_default=False)],
    sequence: Annotated[int, typer.Argument(help="The sequence.", show_default=False)],
    target: IngestTarget = None,
    as_json: Json = False,
    timeout: Timeout = 10.0,
) -> None:
    """Show what became of one sequence: a prediction, a rejection or a gap.

    Example: sightline show gate-1 0b0e7bd6-5f6b-4a44-9d0f-2f8f6b0c9d01 4711
    """
    if not -(2**63) <= sequence < 2**63:
        raise UsageError(f"SEQUENCE: must be 1 to {2**63 - 1}, got {sequence}")
    request = reads_pb2.GetPredictionRequest(device_id=device, spool_id=spool, sequence=sequence)
    answer = _ask(_service(target), lambda stub: stub.GetPrediction, request, timeout)
    kind = answer.WhichOneof("found") or "nothing"
    found = plain(getattr(answer, kind))
    if as_json:
        _print_json({kind: found})
    else:
        typer.echo(f"{kind}:")
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))


def _service(target: str | None) -> Endpoint:
    return ingest_endpoint(settings_with(ingest_target=target))


def _ask(service: Endpoint, method: "_Method[_A, _B]", request: _A, timeout: float) -> _B:
    with service.channel(_LARGE) as channel:
        stub = ingest_service_pb2_grpc.IngestServiceStub(channel)
        try:
            return method(stub)(request, timeout=timeout, metadata=service.metadata)
        except grpc.RpcError as error:
            raise service.explain(from_rpc_error(error), "ingest", "--ingest") from error


def _pages(
    target: str | None, timeout: float, method: "_Method[_R, _P]", request: _R
) -> Iterator[_P]:
    """Yield the pages of a listing."""
    service = _service(target)
    while True:
        page = _ask(service, method, request, timeout)
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _entries(
    pages: Iterable[_P], entries_of: Callable[[_P], Sequence[_E]], limit: int
) -> Iterator[_E]:
    """Yield at most `limit` entries of a listing."""
    for page in pages:
        entries = entries_of(page)[:limit]
        yield from entries
        limit -= len(entries)
        if not limit:
            return


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))


def _table(*titles: str) -> Table:
    table = Table()
    for title in titles:
        table.add_column(title, overflow="fold", no_wrap=title.endswith("(UTC)"))
    return table


def _age(now: Timestamp, device: reads_pb2.Device) -> float | None:
    """Return the time since the last commit, s; None: nothing was committed."""
    if not device.HasField("last_received_at"):
        return None
    # Commits are ahead of the clock after it was set back.
    return max(0.0, (now.ToMicroseconds() - device.last_received_at.ToMicroseconds()) / 1e6)


def _device_cells(device: reads_pb2.Device, age: float | None) -> list[str]:
    waiting = f"{device.account.waiting_predictions:,}" if device.HasField("account") else "-"
    return [
        escape(device.device_id),
        "never" if age is None else f"{_length(age)} ago",
        f"{device.predictions_per_second:.2f}",
        f"{device.predictions_per_second_before:.2f}",
        waiting,
        f"{device.predictions:,}",
        f"{device.gap_sequences:,}",
    ]


def _print_ledger(entries: list[reads_pb2.LedgerEntry], total: reads_pb2.LedgerEntry) -> None:
    table = Table()
    for title in ("device", "spool"):
        table.add_column(title, overflow="fold")
    for title in ("accepted", "rejected", "lost", "committed"):
        table.add_column(title, justify="right")
    table.add_column("balanced")
    for entry in (*entries, total):
        is_total = entry is total
        table.add_row(
            "all" if is_total else escape(entry.device_id),
            f"{len(entries):,} spools" if is_total else entry.spool_id,
            *(f"{count:,}" for count in (entry.accepted, entry.rejected, entry.gap_sequences)),
            f"{entry.committed_through:,}",
            "yes" if entry.balanced else "NO",
            style=None if entry.balanced else "red",
        )
    Console().print(table)


def _time(time: Timestamp) -> str:
    return f"{time.ToDatetime():%Y-%m-%d %H:%M:%S}"


def _length(seconds: float) -> str:
    """Return a length of time in its largest unit: `3 h`."""
    unit = next((unit for unit, size in _SECONDS_OF.items() if seconds >= size), "s")
    return f"{seconds / _SECONDS_OF[unit]:.0f} {unit}"
