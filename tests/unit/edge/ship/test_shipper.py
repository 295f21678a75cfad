"""The shipper against an ingest service on a real socket that fails on demand."""

import logging
import sqlite3
import threading
import time
from pathlib import Path

import grpc
import pytest
import tenacity

from edge.channel import Endpoint
from edge.log.encode import prediction_body
from edge.records import Prediction
from edge.ship import shipper
from edge.ship.progress import Progress
from edge.ship.shipper import Shipper
from edge.spool.caps import SpoolLimits
from edge.spool.entries import Dropped, GapReason
from edge.spool.spool import Spool
from servicekit.errors import SightlineError
from tests.fakes.ingest import MALFORMED, UNAVAILABLE, FakeIngest, hole
from tests.unit.edge.samples import eventually
from tests.unit.edge.ship.shipping import Node, images
from tests.unit.edge.ship.shipping import ingest as ingest
from tests.unit.edge.ship.shipping import node as node

CUT_OFF = SightlineError(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", "connection lost")


def test_everything_arrives_once_and_in_order(node: Node, ingest: FakeIngest) -> None:
    node.log(50, Dropped(3, GapReason.DROPPED_NEWEST))
    with node.shipping():
        assert node.is_empty()
        node.log(7)
        assert node.is_empty()
    ingest.only().check()
    assert ingest.images() == images(57)
    assert ingest.only().gaps == [(51, 53, GapReason.DROPPED_NEWEST)]
    assert ingest.duplicates == 0
    assert node.progress.delivered == 57
    assert node.progress.committed == 60
    assert max(ingest.streams) <= 4  # messages of 4 in streams of 16


def test_the_header_says_who_and_when(node: Node, ingest: FakeIngest) -> None:
    node.log(1)
    with node.shipping():
        assert node.is_empty()
    (header,) = ingest.headers
    assert header.device_id == "gate-1"
    assert header.spool_id == node.spool.identity.spool_id
    assert abs(header.device_time.ToSeconds() - time.time()) < 60
    assert header.device_monotonic.ToNanoseconds() <= time.monotonic_ns()
    assert header.client.startswith("sightline-edge")


def test_the_header_says_what_waits(node: Node, ingest: FakeIngest) -> None:
    before = time.monotonic()
    node.log(20, Dropped(3, GapReason.DROPPED_NEWEST))
    with node.shipping():
        assert node.is_empty()
    first, second = (header.account for header in ingest.headers)
    assert first.waiting_predictions == 23  # streams of 16
    assert second.waiting_predictions == 7
    assert first.spool_bytes >= second.spool_bytes > 0
    age = first.oldest_waiting.ToTimedelta().total_seconds()
    assert 0 <= age <= time.monotonic() - before
    assert not first.HasField("uptime")  # this shipper has no logger


def test_an_account_that_cannot_be_made_whole_stops_nothing(
    node: Node, ingest: FakeIngest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> float:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(node.spool, "oldest_age", fail)
    node.log(3)
    with node.shipping():
        assert node.is_empty()
    (header,) = ingest.headers
    assert header.account.waiting_predictions == 3
    assert not header.account.HasField("oldest_waiting")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_stream_that_ends_early(node: Node, ingest: FakeIngest, when: str) -> None:
    """Before the commit nothing may be missing, after it (the answer is lost) nothing be twice."""
    getattr(ingest, when).extend([UNAVAILABLE, CUT_OFF])
    node.log(40)
    with node.shipping():
        assert node.is_empty()
    ingest.only().check()
    assert ingest.images() == images(40)
    assert ingest.duplicates == 0  # the watermark was asked first
    assert node.progress.ship_error is None


def test_a_server_that_commits_and_dies_before_it_answers(node: Node, ingest: FakeIngest) -> None:
    node.log(16)

    def die(_: object) -> None:
        ingest.on_message = lambda _: None
        ingest.die()

    ingest.on_message = die
    with node.shipping():
        assert eventually(lambda: node.progress.ship_error is not None)
        assert not node.is_empty(0.1)
        ingest.stop()
        ingest.start()
        assert node.is_empty()
    ingest.only().check()
    assert ingest.images() == images(16)


def test_an_outage_that_lasts(node: Node, ingest: FakeIngest) -> None:
    ingest.stop()
    with node.shipping():
        node.log(30)
        assert eventually(lambda: node.progress.ship_error is not None)
        node.log(30)
        ingest.start()
        assert node.is_empty()
    ingest.only().check()
    assert ingest.images() == images(60)


def test_the_server_says_when_to_come_back(node: Node, ingest: FakeIngest) -> None:
    wait = SightlineError(
        grpc.StatusCode.UNAVAILABLE, "DRAINING", "come back later", retry_after=1.5
    )
    ingest.before.append(wait)
    node.log(1)
    with node.shipping():
        assert eventually(lambda: len(ingest.streams) == 1)
        begun = time.monotonic()
        assert node.is_empty()
        assert time.monotonic() - begun >= 1.4


@pytest.mark.slow
def test_errors_that_are_not_retryable_are_retried_all_the_same(
    node: Node, ingest: FakeIngest, caplog: pytest.LogCaptureFixture
) -> None:
    refused = SightlineError(grpc.StatusCode.PERMISSION_DENIED, "UNKNOWN_DEVICE", "who are you?")
    ingest.watermark_errors.extend([refused, refused])
    node.log(5)
    with node.shipping(), caplog.at_level(logging.INFO):
        assert node.is_empty()
        assert eventually(lambda: "is answering again" in caplog.text)
    assert caplog.text.count("who are you?") == 1
    assert ingest.images() == images(5)


def test_bad_records_do_not_block_the_rest(node: Node, ingest: FakeIngest) -> None:
    bad = {"i5", "i21", "i22", "i60"}
    ingest.unreadable = lambda prediction: prediction.image_id in bad
    node.log(60)
    with node.shipping():
        assert node.is_empty()
    ingest.only().check()
    assert ingest.images() == [image for image in images(60) if image not in bad]
    unreadable = GapReason.UNREADABLE
    gaps = [gap for gap in ingest.only().gaps if gap[2] == unreadable]
    assert sorted(n for first, last, _ in gaps for n in range(first, last + 1)) == [5, 21, 22, 60]
    assert node.progress.dropped == {"unreadable": 4}


def test_a_message_that_is_malformed_only_once_costs_nothing(
    node: Node, ingest: FakeIngest
) -> None:
    ingest.before.extend([MALFORMED] * 3)
    node.log(20)
    with node.shipping():
        assert node.is_empty()
    assert ingest.images() == images(20)


@pytest.mark.slow
def test_a_prediction_over_the_servers_limit_does_not_block_the_rest(tmp_path: Path) -> None:
    with FakeIngest(max_bytes=20_000) as ingest:
        node = Node(tmp_path, ingest.target)
        node.log(10)
        node.spool.append([prediction_body(Prediction("x" * 30_000, "m"), 0.0)])
        node.log(10)
        with node.shipping():
            assert node.is_empty()
        node.spool.close()
        ingest.only().check()
        assert ingest.images() == images(20)
        assert ingest.only().gaps == [(11, 11, GapReason.UNREADABLE)]


def test_a_hole_that_the_server_sees(node: Node, ingest: FakeIngest) -> None:
    ingest.before.append(hole(1))
    node.log(10)
    with node.shipping():
        assert node.is_empty()
    ingest.only().check()
    assert ingest.images() == images(10)


def test_a_server_that_always_sees_a_hole_is_not_hammered(node: Node, ingest: FakeIngest) -> None:
    ingest.before.extend([hole(1)] * 10_000)
    node.log(10)
    with node.shipping():
        assert eventually(lambda: len(ingest.streams) >= 3)
        time.sleep(0.5)
        assert len(ingest.streams) < 100


@pytest.mark.slow
def test_predictions_wait_for_company(tmp_path: Path, ingest: FakeIngest) -> None:
    node = Node(tmp_path, ingest.target, batch_timeout_seconds=1.5)
    with node.shipping():
        for _ in range(8):
            node.log(1)
            time.sleep(0.01)
        assert node.is_empty()
        assert len(ingest.streams) == 1
    node.spool.close()


def test_a_whole_stream_and_who_hurries_wait_for_no_company(
    tmp_path: Path, ingest: FakeIngest
) -> None:
    node = Node(tmp_path, ingest.target, batch_timeout_seconds=60.0)
    with node.shipping():
        node.log(16)  # a whole stream
        assert node.is_empty()
        with node.progress.update():
            node.progress.hurry += 1
        node.log(1)
        assert node.is_empty()
    node.spool.close()


def test_a_backlog_is_shipped_in_bounded_streams(tmp_path: Path, ingest: FakeIngest) -> None:
    node = Node(tmp_path, ingest.target, batch_size=32, stream_size=128)
    node.log(2048)
    with node.shipping():
        assert node.is_empty()
    node.spool.close()
    ingest.only().check()
    assert len(ingest.streams) == 16
    assert set(ingest.streams) == {4}


def test_a_spool_that_is_found_damaged_goes_on(node: Node, ingest: FakeIngest) -> None:
    node.log(20)
    with node.shipping():
        assert node.is_empty()
        with node.spool._lock:  # `pending` is 0 before the shipper's COMMIT has returned
            node.spool._recover(RuntimeError("as if"))
        node.log(5)
        assert node.is_empty()
    ingest.only().check()
    assert ingest.images() == images(25)


def test_an_unexpected_error_is_survived(
    node: Node,
    ingest: FakeIngest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    read, calls = node.spool.read, list[int]()

    def fail_once(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("a bug")
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(node.spool, "read", fail_once)
    node.log(5)
    with node.shipping():
        assert node.is_empty()
    assert "unexpected error, trying again" in caplog.text
    assert ingest.images() == images(5)


def test_retries_are_spread_over_a_time_that_grows_to_a_bound() -> None:
    """Full jitter: devices that have lost the same server do not come back together."""
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.set_exception((SightlineError, CUT_OFF, None))
    longest = []
    for attempt in (1, 3, 6, 100, 100_000):
        state.attempt_number = attempt
        waits = [shipper._seconds_to_wait(state) for _ in range(400)]
        longest.append(max(waits))
        assert min(waits) < max(waits) / 10
    for wait, bound in zip(longest, (0.2, 0.8, 6.4, 15, 15), strict=True):
        assert bound * 0.9 < wait <= bound


def test_stopping_interrupts_a_server_that_hangs(node: Node, ingest: FakeIngest) -> None:
    begun, end = threading.Event(), threading.Event()

    def hang(_: object) -> None:
        begun.set()
        end.wait(30)

    ingest.on_message = hang
    node.log(1)
    with node.shipping():  # whose end must not take long
        assert begun.wait(20)
    end.set()


def test_the_api_key_goes_with_every_call(tmp_path: Path, ingest: FakeIngest) -> None:
    progress = Progress()
    spool = Spool(tmp_path, "gate-1", SpoolLimits(1 << 40, 0.0, 0), progress.lost)
    spool.append([prediction_body(Prediction("i", "m"), 0.0)])
    shipper = Shipper(
        spool,
        Endpoint(ingest.target, api_key="sesame"),
        progress,
        batch_size=1,
        batch_timeout_seconds=0.0,
        stream_size=1,
    )
    shipper.run(until_empty=True)
    spool.close()
    assert [metadata["authorization"] for metadata in ingest.metadata] == ["Bearer sesame"]


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED]
)
def test_a_refused_credential_is_tried_again_slowly(code: grpc.StatusCode) -> None:
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    for error, minimum in ((SightlineError(code, "REFUSED", "no"), 5.0), (UNAVAILABLE, 0.0)):
        state.set_exception((type(error), error, None))
        assert minimum <= shipper._seconds_to_wait(state) <= minimum + 0.4


def test_a_server_that_asks_for_centuries_does_not_get_them(
    node: Node, ingest: FakeIngest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipper, "_MAX_SLEEP_SECONDS", 0.1)
    late = SightlineError(grpc.StatusCode.UNAVAILABLE, "DRAINING", "later", retry_after=1e11)
    ingest.before.append(late)
    node.log(1)
    with node.shipping():
        assert node.is_empty()
