"""Live events from real services: no hole and no double, whatever is cut or restarted."""

import math
import signal
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry
from sightline.ingest.v1.ingest_pb2 import LogHeader, PredictionFilter
from sightline.ingest.v1.ingest_service_pb2 import PredictionLogRequest
from sightline.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from sightline.types.v1.prediction_pb2 import PREDICTION_SOURCE_DEVICE, Prediction

from console_service import live
from console_service.backend import Backend, HttpCall
from console_service.context import Console
from console_service.metrics import ConsoleMetrics
from console_service.settings import ConsoleSettings
from servicekit.auth.caller import Scope
from servicekit.auth.key_file import KeyFile
from servicekit.settings import load
from sightline.cli.processes import ServiceProcess
from tests.integration.console.conftest import World, console, targets
from tests.integration.console.http import Browser, Events
from tests.integration.ingest.process import PATIENCE, IngestProcess

MakeConsole = Callable[..., ServiceProcess]


class Log:
    """One spool of a device, at an ingest service that restarts at the same address."""

    def __init__(self, server: IngestProcess, key: str, device: str = "gate-1") -> None:
        self.server = server
        self._key = key
        self._device = device
        self._spool = str(uuid.uuid4())
        self.committed = 0

    def commit(self, count: int) -> None:
        """Log predictions in one message, which is one commit."""
        request = PredictionLogRequest(
            header=LogHeader(device_id=self._device, spool_id=self._spool),
            predictions=[one(self.committed + number + 1) for number in range(count)],
        )
        metadata = (("authorization", f"Bearer {self._key}"),)
        with grpc.insecure_channel(self.server.address) as channel:
            log = IngestServiceStub(channel).PredictionLog
            log(iter([request]), timeout=PATIENCE, metadata=metadata)
        self.committed += count

    def restart(self, number: signal.Signals) -> None:
        """End the service with a signal and start it again where it was."""
        self.server.signal(number)
        self.server.wait()
        self.server.start()


def one(sequence: int) -> Prediction:
    """Return a prediction."""
    made = Prediction(
        sequence=sequence, image_id=str(sequence), model_name="m", source=PREDICTION_SOURCE_DEVICE
    )
    made.captured_at.GetCurrentTime()
    return made


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyFile:
    return KeyFile(tmp_path_factory.mktemp("keys") / "keys.db")


@pytest.fixture(scope="module")
def key(keys: KeyFile) -> str:
    """A key of a caller who may log and read everything."""
    return keys.create("everyone", devices=["*"], scopes=[Scope.LOG, Scope.READ])[0]


@pytest.fixture(scope="module")
def guard(keys: KeyFile) -> tuple[str, str]:
    """A key, and its id, of a caller who may read one device."""
    key, made = keys.create("guard", devices=["gate-1"], scopes=[Scope.READ])
    return key, made.id


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, keys: KeyFile, key: str, guard: tuple[str, str]
) -> Iterator[IngestProcess]:
    asks = ("--api-keys-file", str(keys._path))
    made = IngestProcess(tmp_path_factory.mktemp("log"), *asks)
    made.start()
    made._flags = (*asks, "--listen", made.address)  # of each further start
    yield made
    made.kill()


@pytest.fixture
def log(server: IngestProcess, key: str) -> Log:
    return Log(server, key)


@pytest.fixture(scope="module")
def reader(
    server: IngestProcess, key: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("console")
    with console(folder, *targets(server.address), "--max-live", "1") as made:
        headers = {
            "Authorization": f"Bearer {key}",
            "X-Metrics": str(made.ready["metrics_address"]),
        }
        yield Browser(made.address, headers)


class Seen:
    """The sequences that a page has seen, and where it continues."""

    def __init__(self) -> None:
        self.sequences: list[int] = []
        self.left_out = 0
        self.token = ""
        self.kinds: list[str] = []

    def until(self, events: Events, count: int) -> None:
        """Take events until this number of predictions is accounted for."""
        for event in events:
            self.kinds.append(event.kind)
            if event.kind != "predictions":
                continue
            self.token = event.token
            self.sequences += [row["prediction"]["sequence"] for row in event.data["predictions"]]
            self.left_out += event.data["left_out"]
            if len(self.sequences) + self.left_out >= count:
                return
        pytest.fail(f"the stream ended: {self.kinds}, {self.sequences}")


@contextmanager
def following(reader: Browser, seen: Seen) -> Iterator[Events]:
    """Follow the log from where a page has been, or from now on."""
    headers = {"last_event_id": seen.token} if seen.token else {}
    until_free(reader)
    with reader.following("/live", **headers) as events:
        assert events.status == 200, events.response.read()
        assert events.response.headers["Content-Type"].startswith("text/event-stream")
        if not seen.token:
            seen.until(events, 0)
        yield events


def test_what_is_committed_comes_in_order_with_many_rows_in_a_commit(
    log: Log, reader: Browser
) -> None:
    seen = Seen()
    log.commit(3)  # before the page was opened
    with following(reader, seen) as events:
        for count in (20, 1, 12):
            log.commit(count)
            seen.until(events, log.committed - 3)
    assert seen.sequences == list(range(4, 37))
    assert seen.left_out == 0


def test_a_cut_connection_continues_without_a_hole_or_a_double(log: Log, reader: Browser) -> None:
    seen = Seen()
    for _ in range(3):
        with following(reader, seen) as events:
            log.commit(5)
            seen.until(events, len(seen.sequences) + 1)
        log.commit(4)  # while nobody follows
    with following(reader, seen) as events:
        seen.until(events, log.committed)
    assert seen.sequences == list(range(1, 28))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_stream_outlasts_a_restart_of_the_ingest_service(
    log: Log, reader: Browser, number: signal.Signals
) -> None:
    seen = Seen()
    with following(reader, seen) as events:
        log.commit(5)
        seen.until(events, 5)
        log.restart(number)
        log.commit(6)
        seen.until(events, 11)
    assert seen.sequences == list(range(1, 12))
    assert "waiting" in seen.kinds


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_another_console_continues_where_one_has_ended(
    log: Log,
    reader: Browser,
    make_console: MakeConsole,
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    first = make_console(*targets(log.server.address), "--grace-seconds", "60")
    seen = Seen()
    shown = {"Authorization": reader.headers["Authorization"]}
    with following(Browser(first.address, shown), seen) as events:
        log.commit(5)
        seen.until(events, 5)
        first.process.send_signal(number)
        assert list(events) == [], "the stream ends, and an EventSource connects again"
        first.process.wait(30)  # half the grace period: a stream does not hold up a drain
    log.commit(4)
    with (
        console(tmp_path / "second", *targets(log.server.address)) as second,
        following(Browser(second.address, shown), seen) as events,
    ):
        seen.until(events, 9)
    assert seen.sequences == list(range(1, 10))


def test_more_than_a_page_can_read_is_counted(log: Log, reader: Browser) -> None:
    seen = Seen()
    with following(reader, seen) as events:
        log.commit(400)
        seen.until(events, 400)
    assert len(seen.sequences) + seen.left_out == 400
    assert 50 <= len(seen.sequences) <= 150
    assert seen.sequences == sorted(set(seen.sequences))


def test_the_stream_begins_while_the_ingest_service_is_away(log: Log, reader: Browser) -> None:
    log.server.stop()
    with reader.following("/live") as events:
        assert events.status == 200
        assert next(iter(events)).kind == "waiting"
        log.server.start()
        assert next(event for event in events if event.kind == "predictions")


def test_a_page_that_goes_frees_its_stream(reader: Browser) -> None:
    with following(reader, Seen()):
        refused = reader.get("/live?resume_token=none")  # which the service would refuse
        assert (refused.status, refused.reason) == (429, "TOO_MANY_LIVE")
    with following(reader, Seen()):
        pass


async def test_a_stream_without_events_says_that_it_is_there(
    server: IngestProcess, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "BEAT_SECONDS", 0.05)
    settings = load(ConsoleSettings, ["--ingest-target", server.address], prog="console")
    here = Console(settings, Backend(settings), ConsoleMetrics(CollectorRegistry()))
    call = HttpCall(f"Bearer {key}", None, math.inf)
    stream = live.LiveStream(here, call, PredictionFilter(), "", 50)
    try:
        await stream.open()
        events = stream.events()
        seen = [await anext(events) for _ in range(5)]
        assert seen.count(b":\n\n") >= 3
        here.draining.set()
        assert [event async for event in events if event != b":\n\n"] == []
    finally:
        await here.backend.close()


@pytest.mark.parametrize("token", ["nonsense", "é", "x" * 5000])
def test_an_id_of_no_event_is_refused(reader: Browser, token: str) -> None:
    answer = reader.get("/live", last_event_id=token)
    assert (answer.status, answer.json["code"]) == (400, "INVALID_ARGUMENT")


@pytest.mark.parametrize(
    ("who", "path", "status", "reason"),
    [
        (None, "/live", 401, "CREDENTIAL_MISSING"),
        ("logger", "/live", 403, "SCOPE_MISSING"),
        ("guard", "/live?device_id=gate-2", 403, "DEVICE_NOT_ALLOWED"),
        ("reader", "/live?max_per_second=51", 400, "INVALID_FIELD"),
    ],
)
def test_who_may_not_follow_is_refused_before_the_stream_begins(
    world: World, who: str | None, path: str, status: int, reason: str
) -> None:
    answer = world.browser(who).get(path)
    assert (answer.status, answer.reason) == (status, reason)


def test_a_caller_follows_its_own_devices_until_its_key_is_revoked(
    server: IngestProcess, key: str, keys: KeyFile, guard: tuple[str, str], reader: Browser
) -> None:
    own, key_id = guard
    until_free(reader)
    browser = Browser(reader.address, {"Authorization": f"Bearer {own}"})
    with browser.following("/live") as events:
        assert events.status == 200, events.response.read()
        seen = Seen()
        seen.until(events, 0)
        Log(server, key, "gate-2").commit(3)
        Log(server, key, "gate-1").commit(1)
        seen.until(events, 1)
        assert (seen.sequences, seen.left_out) == ([1], 0)
        keys.revoke(key_id)
        last = list(events)[-1]
        assert (last.kind, last.data["reason"]) == ("failed", "API_KEY_REVOKED")


def until_free(reader: Browser) -> None:
    """Wait until the console has noticed that the last page has gone."""
    if "X-Metrics" not in reader.headers:
        return
    ends_at = time.monotonic() + 30
    while b"sightline_console_live_streams 0.0" not in _page(reader.headers["X-Metrics"]):
        assert time.monotonic() < ends_at
        time.sleep(0.2)


def _page(address: str) -> bytes:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
        return bytes(response.read())
