"""Parts of the benchmark for one case; each part is a function that yields rows of figures."""

import contextlib
import functools
import random
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench.infer import clients, servers
from bench.infer.figures import (
    OK,
    Call,
    Closed,
    goodput,
    median_ratio,
    milliseconds,
    recovered_after,
    with_cpu,
)
from bench.infer.load import (
    CONNECTIONS,
    PATIENCE,
    Open,
    Turn,
    alternate,
    arrivals,
    closed_loop,
    open_loop,
    probes,
    timed,
)
from bench.infer.servers import BenchmarkServer, Case
from bench.infer.work import InferenceWork

Row = dict[str, object]

SEED = 4
IN_PROCESS = "in_process"
CONCURRENCIES = (4, 16)
OVERLOAD = 2.0
"""Offered load as a multiple of the server's capacity."""
_WARM_UP = 3
_USUAL = 1.5  # times the unloaded median: upper bound of a usual call


@dataclass(frozen=True, slots=True)
class Options:
    """Durations and deadlines of the measurements."""

    calls: int
    """Sequential calls to each server."""
    replays: int
    rounds: int
    """Rounds in which the closed loops alternate."""
    seconds: float
    """Duration of a closed loop."""
    overload_seconds: float
    deadline: float
    """Deadline of a call in an open loop, seconds."""
    recovery_seconds: float
    """Maximum time to wait for a server's recovery."""


@contextlib.contextmanager
def all_servers(case: Case) -> Iterator[list[BenchmarkServer]]:
    """Run the service and the two usual alternatives.

    Raises:
        RuntimeError: they find different objects.
    """
    with (
        servers.ours(case) as ours,
        servers.bare_grpc(case) as grpc,
        servers.bare_http(case) as http,
    ):
        every = [ours, grpc, http]
        uvloop.run(check_answers(case, every))
        yield every


async def check_answers(case: Case, every: Sequence[BenchmarkServer]) -> None:
    """Check that each server finds the same objects as the in-process work.

    Raises:
        RuntimeError: a server does not, so it does not do the same work.
    """
    expected = InferenceWork(case.model)(case.image).class_id.tolist()
    for server in every:
        async with server.connect() as caller:
            answer = await caller(PATIENCE)
        if answer.code != OK or (classes := server.classes(answer.payload)) != expected:
            answered = answer.code if answer.code != OK else f"classes {classes}"
            raise RuntimeError(f"{server.name} answers {answered} and not classes {expected}")


def added(case: Case, folder: Path, options: Options) -> Iterator[Row]:
    """Yield the latency that the servers add at concurrency 1, and that of a replay."""
    del folder
    with all_servers(case) as every:
        turns = one_by_one(InferenceWork(case.model), case, every, options.calls)
        taken = uvloop.run(turns)
        replays = uvloop.run(_replays(case, every[0], options.replays))
    outside = [turn.seconds - clients.seconds_of_work(turn.payload) for turn in taken[servers.OURS]]
    alone = median_seconds(taken.pop(IN_PROCESS))
    yield {
        "part": "added",
        "concurrency": 1,
        "calls": options.calls,
        "in_process_p50_ms": milliseconds(alone),
        **{
            f"{prefix(name)}added_p50_ms": milliseconds(median_seconds(own) - alone)
            for name, own in taken.items()
        },
        "outside_work_p50_ms": milliseconds(statistics.median(outside)),
        "replay_p50_ms": milliseconds(statistics.median(replays)),
    }


def median_seconds(turns: Sequence[Turn]) -> float:
    """Return the median duration of the turns."""
    return statistics.median(turn.seconds for turn in turns)


def prefix(name: str) -> str:
    """Return the prefix of a server's figures; the service's own have none."""
    return "" if name == servers.OURS else f"{name}_"


async def one_by_one(
    work: InferenceWork, case: Case, every: Sequence[BenchmarkServer], calls: int
) -> dict[str, list[Turn]]:
    """Return each server's calls, and the work in-process, turn by turn."""

    async def in_process() -> bytes:
        work(case.image)
        return b""

    async with contextlib.AsyncExitStack() as stack:
        turns: dict[str, Callable[[], Awaitable[bytes]]] = {IN_PROCESS: in_process}
        for server in every:
            turns[server.name] = _asking(await stack.enter_async_context(server.connect()))
        await alternate(turns, _WARM_UP, SEED)
        return await alternate(turns, calls, SEED)


def _asking(caller: clients.CallerFunction) -> Callable[[], Awaitable[bytes]]:
    async def ask() -> bytes:
        if (answer := await caller(PATIENCE)).code != OK:
            raise RuntimeError(f"a call was not answered: {answer.code}")
        return answer.payload

    return ask


async def _replays(case: Case, server: BenchmarkServer, count: int) -> list[float]:
    """Return the durations of calls with a key that was answered before, seconds.

    Raises:
        RuntimeError: an answer differs from the first one, so it is no replay.
    """
    key = [("idempotency-key", str(uuid.uuid4()))]
    message = clients.request(case.image)
    seconds = []
    async with clients.grpc_caller(server.address, message, lambda: key) as caller:
        first = await caller(PATIENCE)
        for _ in range(count):
            began = time.perf_counter()
            again = await caller(PATIENCE)
            seconds.append(time.perf_counter() - began)
            if first.code != OK or again != first:
                raise RuntimeError(f"a retry was not replayed: {first.code}, then {again.code}")
    return seconds


def closed(case: Case, folder: Path, options: Options) -> Iterator[Row]:
    """Yield throughput, latency and memory of the servers and of two raw threads."""
    row: Row = {"part": "closed", "rounds": options.rounds, "seconds": options.seconds}
    with all_servers(case) as every, servers.raw_threads(case, folder) as raw:
        ratios = []
        for callers in CONCURRENCIES:
            loops = _loops(every, callers, options.seconds)
            loops[servers.RAW] = functools.partial(raw.work, options.seconds)
            taken = rounds(loops, options.rounds)
            ratios.append(_ratios(taken, servers.RAW))
            row |= {f"{name}_{callers}": value for name, value in _figures(taken).items()}
            row |= {
                f"{prefix(name)}throughput_ratio_{callers}": ratio
                for name, ratio in ratios[-1].items()
            }
        for server in every:
            before = prefix(server.name)
            row[f"{before}throughput_ratio"] = min(
                round_ratios[server.name] for round_ratios in ratios
            )
            row[f"{before}rss_mib"] = server.rss_mib
        row[f"{prefix(servers.RAW)}rss_mib"] = raw.rss_mib
    yield row


def _loops(
    every: Sequence[BenchmarkServer], callers: int, seconds: float
) -> dict[str, Callable[[], Closed]]:
    def loop(server: BenchmarkServer) -> Closed:
        used = server.cpu_seconds
        figures = uvloop.run(closed_loop(server.connect, callers, seconds))
        return with_cpu(figures, server.cpu_seconds - used)

    return {server.name: functools.partial(loop, server) for server in every}


def rounds(loops: dict[str, Callable[[], Closed]], count: int) -> dict[str, list[Closed]]:
    """Return the results of loops that take turns in varying order."""
    chance = random.Random(SEED)
    taken: dict[str, list[Closed]] = {name: [] for name in loops}
    for _ in range(count):
        for name in chance.sample(list(loops), len(loops)):
            taken[name].append(loops[name]())
    return taken


def _figures(taken: dict[str, list[Closed]]) -> Row:
    row: Row = {}
    for name, own in taken.items():
        row[f"{prefix(name)}per_s"] = round(statistics.median(figures.per_s for figures in own), 2)
        row[f"{prefix(name)}p99_ms"] = statistics.median(figures.p99_ms for figures in own)
        row[f"{prefix(name)}cpu_ms"] = statistics.median(figures.cpu_ms for figures in own)
    return row


def _ratios(taken: dict[str, list[Closed]], base: str) -> dict[str, float]:
    rates = {name: [figures.per_s for figures in own] for name, own in taken.items()}
    bases = rates.pop(base)
    return {name: round(median_ratio(own, bases), 3) for name, own in rates.items()}


def overload(case: Case, folder: Path, options: Options) -> Iterator[Row]:
    """Yield each server's goodput at twice its capacity."""
    del folder
    with all_servers(case) as every:
        for server in every:
            yield _overload_row(server, options)


def _overload_row(server: BenchmarkServer, options: Options) -> Row:
    usual = uvloop.run(_unloaded(server, options.calls))
    capacity = uvloop.run(closed_loop(server.connect, max(CONCURRENCIES), options.seconds)).per_s
    load, after, before = uvloop.run(_overload(server, capacity, usual * _USUAL, options))
    load_figures = goodput(load.calls, options.deadline, load.began, options.overload_seconds)
    received = sum(call.code == OK for call in [*load.calls, *after])
    unheard = unheard_answers(server.answered() - before, received) if server.counts else 0
    settled = max(call.ended for call in load.calls)
    recovery = recovered_after(after, settled, usual * _USUAL)
    return {
        "part": "overload",
        "server": server.name,
        "seconds": options.overload_seconds,
        "deadline_ms": milliseconds(options.deadline),
        "capacity_per_s": round(capacity, 2),
        "offered_per_s": round(len(load.calls) / options.overload_seconds, 2),
        "goodput_per_s": round(load_figures.good_per_s, 2),
        "goodput_ratio_2x": round(load_figures.good_per_s / capacity, 3),
        "late_answers": load_figures.late + unheard,
        "codes": load_figures.codes,
        "p99_ms": load_figures.p99_ms,
        "unloaded_p50_ms": milliseconds(usual),
        "drain_s": round(max(settled - load.ended, 0.0), 3),
        "recovery_s": None if recovery is None else round(recovery, 3),
        "sent_late_ms": milliseconds(load.behind),
    }


def unheard_answers(sent: int, received: int) -> int:
    """Return the number of answers that the server sent and no caller received in time.

    Raises:
        RuntimeError: fewer were sent than received, so the server's count is wrong.
    """
    if sent < received:
        raise RuntimeError(f"the server counts {sent} answers, but {received} were received")
    return sent - received


async def _unloaded(server: BenchmarkServer, calls: int) -> float:
    async with server.connect() as caller:
        await timed(caller, PATIENCE)
        return statistics.median([(await timed(caller, PATIENCE)).latency for _ in range(calls)])


async def _overload(
    server: BenchmarkServer, capacity: float, usual: float, options: Options
) -> tuple[Open, list[Call], int]:
    """Return the load, the probes after it, and the number of calls answered before.

    The last probe is the first that took no longer than usual, if any did.
    """
    times = arrivals(OVERLOAD * capacity, options.overload_seconds, SEED)
    async with contextlib.AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(server.connect()) for _ in range(CONNECTIONS)]
        for caller in callers:
            await timed(caller, PATIENCE)
        before = server.answered() if server.counts else 0
        load = await open_loop(callers, times, options.overload_seconds, options.deadline)
        after = []
        async for probe in probes(callers[0], options.deadline, options.recovery_seconds):
            after.append(probe)
            if probe.code == OK and probe.latency <= usual:
                break
    return load, after, before


def light(case: Case, folder: Path, options: Options) -> Iterator[Row]:
    """Yield the service's throughput with all features on, beside that of a bare server."""
    callers = max(CONCURRENCIES)
    with (
        servers.ours_with_everything_on(case, folder) as ours,
        servers.bare_grpc(case) as grpc,
    ):
        every = [ours, grpc]
        uvloop.run(check_answers(case, every))
        taken = rounds(_loops(every, callers, options.seconds), options.rounds)
        memory = {f"{prefix(server.name)}rss_mib": server.rss_mib for server in every}
    figures = _figures(taken)
    yield {
        "part": "light",
        "concurrency": callers,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "light_requests_per_s": figures.pop("per_s"),
        **figures,
        "light_ratio": _ratios(taken, servers.GRPC)[servers.OURS],
        **memory,
    }
