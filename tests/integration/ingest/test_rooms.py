"""A caller that floods the service must not affect another one (items 1 and 2)."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from sightline.ingest.v1 import ingest_service_pb2 as messages

from bench.isolation.frames import Setting
from bench.isolation.raw import bearer
from servicekit.auth.caller import Scope
from servicekit.auth.key_file import KeyFile
from tests.fakes.hostile import hostile, most_of
from tests.integration.ingest.conftest import Start
from tests.integration.ingest.process import PATIENCE, IngestProcess, refused
from tests.unit.ingest_service.samples import header, predictions, request, spool

SERVICE = "/sightline.ingest.v1.IngestService/"
LOG, WATERMARK, STATS = SERVICE + "PredictionLog", SERVICE + "GetWatermark", SERVICE + "GetStats"
MIB = 1 << 20
BOUND = 64 * MIB
"""The default of max_inflight_bytes."""
LARGE = 8 * MIB - 1024
"""A message that gRPC just takes, bytes."""
DEADLINE = 2.0
"""How long each call of the well-behaved caller may take, s."""


class SteadyDevice:
    """A well-behaved device, which gets its watermark and logs within the deadline in each turn."""

    def __init__(self, server: IngestProcess, number: int) -> None:
        self.spool = spool(number)
        self.logged = 0
        self._server = server

    def turn(self) -> None:
        """Raise grpc.RpcError if the service does not answer in time."""
        stub = self._server.stub
        query = messages.GetWatermarkRequest(
            device_id=self.spool.device_id, spool_id=self.spool.spool_id
        )
        assert stub.GetWatermark(query, timeout=DEADLINE).committed_through == self.logged
        sent = request(*predictions(self.logged + 1, self.logged + 3), head=header(self.spool))
        self.logged += 3
        answer = stub.PredictionLog(iter([sent]), timeout=DEADLINE)
        assert answer.committed_through == self.logged


def turns(device: SteadyDevice, seconds: float) -> int:
    """Return the number of turns of the device in this time."""
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        device.turn()
        count += 1
    return count


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


@pytest.mark.parametrize("connections", [1, 4])
def test_calls_without_a_message_shut_nobody_out(server: IngestProcess, connections: int) -> None:
    device = SteadyDevice(server, 1)
    with hostile(server.address) as attack:
        for method in (LOG, WATERMARK, STATS, "/grpc.health.v1.Health/Check"):
            attack.begin(method, 64, connections=connections)
        assert turns(device, 3) > 3
    server.stop()
    server.assert_exactly_once({device.spool: device.logged})


def test_a_call_counts_for_its_caller_s_limit_when_it_begins(start: Start, tmp_path: Path) -> None:
    key, _ = KeyFile(tmp_path / "keys").create("gate-1", devices=["*"], scopes=[Scope.LOG])
    server = start(
        *("--api-keys-file", str(tmp_path / "keys")),
        *("--rate-limit-per-second", "1", "--rate-limit-burst", "1"),
    )
    with hostile(server.address) as attack:
        first = attack.begin(WATERMARK, 1, metadata=bearer(key))
        second = attack.begin(WATERMARK, 3, metadata=bearer(key))
        wait_until(lambda: all(stream.ended for stream in second), 3)
        assert {stream.status for stream in second} == {str(resource_exhausted())}
        assert not first[0].ended


def resource_exhausted() -> int:
    code: int = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    return code


def test_most_of_large_messages_stay_within_the_bound(start: Start) -> None:
    server = start("--receive-timeout-seconds", "3")
    device = SteadyDevice(server, 1)
    turns(device, 1)  # what the first commits take for good is no flood's
    process = psutil.Process(server.pid)
    before = peak = process.memory_info().rss
    with hostile(server.address) as attack:
        streams = attack.begin(LOG, 150, most_of(LARGE), connections=3)
        streams += attack.begin(WATERMARK, 50, most_of(LARGE))
        end = time.monotonic() + 5
        while time.monotonic() < end:
            device.turn()
            peak = max(peak, process.memory_info().rss)
        assert peak - before <= 2 * BOUND
        wait_until(lambda: all(stream.ended for stream in streams))
    server.stop()
    server.assert_exactly_once({device.spool: device.logged})


def test_an_idle_stream_ends_and_says_what_is_committed(start: Start) -> None:
    server = start("--receive-timeout-seconds", "1")
    ended = threading.Event()

    def idle() -> Iterator[messages.PredictionLogRequest]:
        yield request(*predictions(1, 3), head=header())
        ended.wait(PATIENCE)

    with refused() as errors:
        server.stub.PredictionLog(idle(), timeout=PATIENCE)
    ended.set()
    error = errors[0]
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_STALLED")
    assert error.retryable
    assert error.retry_after
    assert error.metadata["committed_through"] == "3"
    assert server.log_messages(request(*predictions(4, 5), head=header())).committed_through == 5


def test_streams_that_idle_make_room_for_those_that_do_not(start: Start) -> None:
    """One device's connection has more open streams than the reserved memory allows messages."""
    server = start()
    with hostile(server.address) as attack:
        attack.begin(LOG, 100)
        device = SteadyDevice(server, 1)
        assert turns(device, 3) > 3


def test_streams_of_one_connection_are_capped(start: Start) -> None:
    server = start("--max-concurrent-streams", "7")
    with hostile(server.address) as attack:
        attack.begin(WATERMARK, 1)
        assert attack.settings()[Setting.MAX_CONCURRENT_STREAMS] == 7


def test_streams_of_one_caller_are_capped(start: Start, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys")
    first, second = (keys.create(n, devices=["*"], scopes=[Scope.LOG])[0] for n in ("a", "b"))
    server = start(
        *("--api-keys-file", str(tmp_path / "keys"), "--max-streams-per-caller", "4"),
    )
    with hostile(server.address) as attack:
        kept = attack.begin(LOG, 4, metadata=bearer(first), connections=2)
        over = attack.begin(LOG, 2, metadata=bearer(first), connections=2)
        others = attack.begin(LOG, 2, metadata=bearer(second))
        wait_until(lambda: all(stream.ended for stream in over), 3)
        assert {stream.status for stream in over} == {str(resource_exhausted())}
        assert not any(stream.ended for stream in itertools.chain(kept, others))


def test_many_devices_at_once_wait_and_lose_nothing(server: IngestProcess) -> None:
    spools = [spool(number) for number in range(1, 201)]
    channels = [grpc.insecure_channel(server.address) for _ in range(4)]
    calls = []
    for number, of in enumerate(spools):
        log = channels[number % 4].stream_unary(
            LOG, None, messages.PredictionLogResponse.FromString
        )
        sent = request(*predictions(1, 20), head=header(of)).SerializeToString()
        calls.append(log.future(iter([sent]), timeout=PATIENCE))
    assert {call.result().committed_through for call in calls} == {20}
    for channel in channels:
        channel.close()
    server.stop()
    server.assert_exactly_once(dict.fromkeys(spools, 20))


def test_a_request_that_only_asks_is_small(server: IngestProcess) -> None:
    request = messages.GetWatermarkRequest(device_id="x" * 300_000, spool_id=spool(1).spool_id)
    with refused() as errors:
        server.stub.GetWatermark(request, timeout=PATIENCE)
    assert (errors[0].code, errors[0].reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "MESSAGE_TOO_LARGE",
    )
    assert "at most 262144 bytes" in errors[0].message
