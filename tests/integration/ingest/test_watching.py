"""WatchPredictions over real sockets: no hole and no double, whatever is cut or killed."""

import contextlib
import random
import signal
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
import pytest
from sightline.ingest.v1 import ingest_pb2, reads_pb2
from sightline.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub

from ingest_service.store.protocol import SpoolKey
from tests.integration.ingest.conftest import Start
from tests.integration.ingest.process import PATIENCE, IngestProcess, refused
from tests.unit.edge.samples import eventually
from tests.unit.ingest_service.samples import (
    SPOOL,
    header,
    prediction,
    predictions,
    request,
    spool,
)

Row = tuple[str, int]


class Watcher:
    """A client that follows the log, and resumes with the token of its last message."""

    def __init__(self, server: IngestProcess, per_second: int = 1000, **conditions: Any) -> None:
        self.server = server
        self.filter = ingest_pb2.PredictionFilter(**conditions)
        self.per_second = per_second
        self.token = ""
        self.rows: list[Row] = []
        self.left_out = 0

    def request(self) -> reads_pb2.WatchPredictionsRequest:
        return reads_pb2.WatchPredictionsRequest(
            filter=self.filter, resume_token=self.token, max_per_second=self.per_second
        )

    @contextlib.contextmanager
    def stream(self) -> Iterator[Iterator[reads_pb2.WatchPredictionsResponse]]:
        """Open a stream on a connection of its own, which is cut at the end."""
        with grpc.insecure_channel(self.server.address) as channel:
            call = IngestServiceStub(channel).WatchPredictions(self.request(), timeout=PATIENCE)
            yield map(self._keep, call)
            call.cancel()  # type: ignore[no-untyped-call]

    def until(self, counted: int) -> None:
        """Follow until this number of predictions is accounted for."""
        with self.stream() as answers:
            for _ in answers:
                if self.counted >= counted:
                    break
        assert self.counted == counted

    @property
    def counted(self) -> int:
        return len(self.rows) + self.left_out

    def _keep(
        self, answer: reads_pb2.WatchPredictionsResponse
    ) -> reads_pb2.WatchPredictionsResponse:
        assert answer.resume_token
        self.token = answer.resume_token
        self.rows += [(row.device_id, row.prediction.sequence) for row in answer.predictions]
        self.left_out += answer.left_out
        return answer


def begun(server: IngestProcess, per_second: int = 1000, **conditions: Any) -> Watcher:
    """Return a watcher that follows from here on."""
    watcher = Watcher(server, per_second, **conditions)
    with watcher.stream() as answers:
        next(answers)
    assert watcher.counted == 0
    return watcher


@pytest.fixture(scope="module")
def busy_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IngestProcess]:
    """A server for tests that each log spools of their own, one test after another."""
    server = IngestProcess(tmp_path_factory.mktemp("busy"))
    server.start()
    yield server
    server.kill()


def fresh() -> SpoolKey:
    """Return a spool of a device that no other test uses."""
    return SpoolKey(f"gate-{uuid.uuid4()}", str(uuid.uuid4()))


def sent(of: SpoolKey, first: int, last: int) -> list[Row]:
    return [(of.device_id, sequence) for sequence in range(first, last + 1)]


def test_it_begins_with_the_next_commit_and_keeps_the_order(busy_server: IngestProcess) -> None:
    server, mine, other = busy_server, fresh(), fresh()
    server.log_messages(request(*predictions(1, 3), head=header(mine)))
    watcher = Watcher(server)
    with watcher.stream() as answers:
        assert next(answers).predictions == []
        server.log_messages(request(*predictions(1, 6), head=header(mine)))
        for _ in answers:
            if watcher.counted == 3:
                break
        server.log_messages(request(*predictions(1, 2), head=header(other)))
        while watcher.counted < 5:
            next(answers)
    assert watcher.rows == [*sent(mine, 4, 6), *sent(other, 1, 2)]
    assert watcher.left_out == 0


def test_a_commit_of_many_rows_is_counted_whole_and_its_newest_are_sent(
    busy_server: IngestProcess,
) -> None:
    server, mine = busy_server, fresh()
    watcher = begun(server, per_second=7)
    server.log_messages(request(*predictions(1, 10_000), head=header(mine)))
    watcher.until(10_000)
    assert watcher.rows == sent(mine, 9994, 10_000)
    assert watcher.left_out == 9993


def test_large_rows_come_in_several_messages_that_each_can_be_resumed_from(
    busy_server: IngestProcess,
) -> None:
    server, mine = busy_server, fresh()
    watcher = begun(server)
    labels = {f"{n:02}{'l' * 1022}": "v" * 1024 for n in range(64)}
    large = [prediction(n, labels=labels) for n in range(1, 61)]  # 131 kB each
    server.log_messages(request(*large[:30], head=header(mine)), request(*large[30:]))
    sizes = []
    while watcher.counted < 60:
        with watcher.stream() as answers:
            next(answers)  # only tells the token
            sizes.append(next(answers).ByteSize())  # cut after each message
    assert watcher.rows == sent(mine, 1, 60)
    assert len(sizes) > 2
    assert max(sizes) < 4 << 20


@pytest.mark.parametrize(
    ("conditions", "own", "others"),
    [({}, 40, 40), ({"device_ids": ["own"]}, 40, 0), ({"defect_detected": True}, 10, 0)],
)
def test_a_filter_chooses(
    busy_server: IngestProcess, conditions: dict[str, Any], own: int, others: int
) -> None:
    mine, other = fresh(), fresh()
    if "device_ids" in conditions:
        conditions = {"device_ids": [mine.device_id]}
    watcher = begun(busy_server, **conditions)
    rows = [prediction(n, defect_detected=n % 4 == 0) for n in range(1, 41)]
    busy_server.log_messages(request(*predictions(1, 40), head=header(other)))
    busy_server.log_messages(request(*rows, head=header(mine)))
    watcher.until(own + others)
    counts = Counter(device for device, _ in watcher.rows)
    assert counts == Counter({mine.device_id: own, other.device_id: others})
    assert watcher.left_out == 0


def log_in_groups(server: IngestProcess, of: SpoolKey, sizes: Sequence[int]) -> None:
    """Log groups of predictions, each again until a server has confirmed it."""
    last = 0
    for size in sizes:
        last, confirmed = last + size, 0
        rows = predictions(last - size + 1, last)
        while confirmed < last:
            # Killed, or not back yet: the same again.
            with contextlib.suppress(grpc.RpcError), grpc.insecure_channel(server.address) as to:
                stub = IngestServiceStub(to)
                first = request(*rows, head=header(of))
                confirmed = stub.PredictionLog(iter([first]), timeout=PATIENCE).committed_through


def follow_with_cuts(watcher: Watcher, expected: int, seed: int, stop: threading.Event) -> None:
    """Follow until everything is accounted for, and cut each stream after a few messages."""
    chance = random.Random(seed)
    while watcher.counted < expected and not stop.is_set():
        cut_after = chance.randint(1, 4)
        with contextlib.suppress(grpc.RpcError), watcher.stream() as answers:
            for number, _ in enumerate(answers):
                if number == cut_after or watcher.counted >= expected:
                    break


def passed(watcher: Watcher, number: int) -> bool:
    return watcher.counted > number


@pytest.mark.parametrize("seed", [15])
def test_cut_connections_and_killed_servers_make_no_hole_and_no_double(
    server: IngestProcess, seed: int
) -> None:
    """Watchers are cut at random, while devices log and the service is killed and restarted."""
    chance, spools = random.Random(seed), [SPOOL, spool(2)]
    watchers = [begun(server), begun(server, per_second=1), begun(server, device_ids=["gate-1"])]
    sizes = [[chance.randint(1, 30) for _ in range(20)] for _ in spools]
    counts = [sum(groups) for groups in sizes]  # together less than a watcher may be sent at once
    wanted, stop = [sum(counts), sum(counts), counts[0]], threading.Event()
    with ThreadPoolExecutor(5) as pool:
        tasks = [
            *(
                pool.submit(follow_with_cuts, w, n, n, stop)
                for w, n in zip(watchers, wanted, strict=True)
            ),
            *(
                pool.submit(log_in_groups, server, of, n)
                for of, n in zip(spools, sizes, strict=True)
            ),
        ]
        try:
            for number, end in enumerate((server.kill, server.stop, server.kill)):
                reached = sum(counts) * number // 4
                assert eventually(partial(passed, watchers[0], reached))
                end()
                server.start()
            for task in tasks:
                task.result(PATIENCE)
        finally:
            stop.set()
    whole = [row for of, count in zip(spools, counts, strict=True) for row in sent(of, 1, count)]
    assert sorted(watchers[0].rows) == whole
    assert watchers[2].rows == sent(SPOOL, 1, counts[0])
    assert [w.left_out for w in watchers] == [0, sum(counts) - len(watchers[1].rows), 0]
    assert len(set(watchers[1].rows)) == len(watchers[1].rows)


def test_a_flood_is_counted_exactly_and_sent_at_its_rate(busy_server: IngestProcess) -> None:
    server, mine = busy_server, fresh()
    watcher = begun(server, per_second=10)
    with watcher.stream() as answers:
        next(answers)
        for last in range(500, 5001, 500):
            server.log_messages(request(*predictions(last - 499, last), head=header(mine)))
        while watcher.counted < 5000:
            next(answers)
    assert watcher.left_out == 5000 - len(watcher.rows)
    assert watcher.rows == sorted(set(watcher.rows))


def test_drain_ends_a_watch_and_the_token_outlives_it(server: IngestProcess) -> None:
    watcher = begun(server)
    with watcher.stream() as answers:
        next(answers)
        server.signal(signal.SIGTERM)
        with refused() as errors:
            for _ in answers:
                pass
    assert (errors[0].code, errors[0].reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert server.wait() == 0
    server.start()
    server.log_messages(request(*predictions(1, 3), head=header()))
    watcher.until(3)


def test_too_many_watches_are_refused_and_a_place_becomes_free(start: Start) -> None:
    server = start("--max-watches", "1")
    first, second = Watcher(server), Watcher(server)
    with first.stream() as answers:
        next(answers)
        with refused() as errors, second.stream() as others:
            next(others)
        assert errors[0].reason == "TOO_MANY_WATCHES"
        assert errors[0].retryable

    def free() -> bool:
        with contextlib.suppress(grpc.RpcError), second.stream() as others:
            next(others)
            return True
        return False

    assert eventually(free)


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"max_per_second": 1001}, "max_per_second", "INVALID_FIELD"),
        ({"max_per_second": -1}, "max_per_second", "INVALID_FIELD"),
        ({"resume_token": "x"}, "resume_token", "INVALID_RESUME_TOKEN"),
        ({"filter": {"min_confidence": 2}}, "filter.min_confidence", "INVALID_FIELD"),
    ],
)
def test_a_wrong_request_is_refused(
    shared_server: IngestProcess, fields: dict[str, Any], field: str, reason: str
) -> None:
    ask = reads_pb2.WatchPredictionsRequest(**fields)
    with refused() as errors:
        next(iter(shared_server.stub.WatchPredictions(ask, timeout=PATIENCE)))
    assert errors[0].code is grpc.StatusCode.INVALID_ARGUMENT
    assert (errors[0].reason, errors[0].violations[0].field) == (reason, field)


def test_a_token_of_another_filter_is_refused(shared_server: IngestProcess) -> None:
    watcher = begun(shared_server)
    watcher.filter.device_ids.append("gate-1")
    with refused() as errors, watcher.stream() as answers:
        next(answers)
    assert errors[0].reason == "INVALID_RESUME_TOKEN"


def test_a_quiet_log_still_sends_messages(shared_server: IngestProcess) -> None:
    watcher = Watcher(shared_server)
    with watcher.stream() as answers:
        first, second = next(answers), next(answers)  # within the call's deadline
    assert (len(second.predictions), second.left_out) == (0, 0)
    assert first.resume_token == second.resume_token
