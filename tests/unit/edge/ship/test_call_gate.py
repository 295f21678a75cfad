import gc
import threading
import time
from collections.abc import Iterator

import grpc
import pytest

from edge.channel import Endpoint
from edge.ship.call_gate import CallGate
from servicekit.errors import SightlineError
from tests.fakes.ingest import FakeIngest
from tests.unit.edge.samples import eventually


class Caller:
    """Calls an ingest service that hangs, in a thread of its own."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.gate = CallGate()
        self.errors: list[SightlineError] = []
        self._log = channel.stream_unary(
            "/sightline.ingest.v1.IngestService/PredictionLog",
            request_serializer=None,
            response_deserializer=None,
        )
        self.thread = threading.Thread(target=self.call)

    def call(self) -> None:
        try:
            self.gate.run(lambda: self._log.future(iter([b""]), timeout=30))
        except SightlineError as error:
            self.errors.append(error)


@pytest.fixture
def caller() -> Iterator[Caller]:
    begun, end = threading.Event(), threading.Event()

    def hang(_: object) -> None:
        begun.set()
        end.wait(30)

    with FakeIngest(on_message=hang) as ingest, Endpoint(ingest.target).channel() as channel:
        caller = Caller(channel)
        caller.thread.start()
        assert begun.wait(20)
        yield caller
        end.set()
        caller.thread.join(20)


def test_closing_interrupts_the_call_and_every_later_one(caller: Caller) -> None:
    begun = time.monotonic()
    caller.gate.close()
    caller.thread.join(20)
    caller.call()
    assert time.monotonic() - begun < 5
    assert [error.code for error in caller.errors] == [grpc.StatusCode.CANCELLED] * 2


def test_a_fork_interrupts_the_call_and_holds_the_next_one(caller: Caller) -> None:
    caller.gate.hold()
    caller.thread.join(20)
    assert [error.reason for error in caller.errors] == ["INTERRUPTED"]
    again = threading.Thread(target=caller.call)
    again.start()
    assert not eventually(lambda: caller.gate._cancel is not None, 0.1)
    caller.gate.release()
    assert eventually(lambda: caller.gate._cancel is not None)
    caller.gate.close()
    again.join(20)


def test_releasing_what_is_not_held_does_nothing() -> None:
    gate = CallGate()
    gate.release()
    gate.hold()
    gate.release()
    gate.release()
    assert not gate._lock.locked()


def calls() -> list[object]:
    """Calls that are not destroyed yet, asked of the garbage collector; it must be off."""
    return [
        object_
        for object_ in gc.get_objects()
        if type(object_).__name__ == "_MultiThreadedRendezvous"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("end", ["interrupted", "failed"])
def test_no_call_is_left_over_for_a_forked_process_to_destroy(end: str) -> None:
    gate = CallGate()
    gc.collect()
    gc.disable()
    try:
        others = calls()  # of tests before this one, which something still holds
        with FakeIngest() as ingest, Endpoint(ingest.target).channel() as channel:
            log = channel.stream_unary("/nobody.knows/It", None, None)
            if end == "interrupted":
                gate.close()
            with pytest.raises(SightlineError):
                gate.run(lambda: log.future(iter([b""]), timeout=30))
            assert [call for call in calls() if call not in others] == []
    finally:
        gc.enable()
