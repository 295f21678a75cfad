"""`PredictionLogger` with a real spool and an ingest service on a real socket."""

import asyncio
import gc
import logging
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from sightline.ingest.v1 import ingest_pb2

from edge.errors import ClosedError
from edge.log import orphans
from edge.log.logger import PredictionLogger
from edge.options import LogOptions
from edge.records import Prediction
from edge.spool.spool import Spool
from servicekit.errors import SightlineError
from tests.fakes.ingest import FakeIngest
from tests.unit.edge.log.loggers import QUICK, UNHURRIED, failing_disk, logger
from tests.unit.edge.log.loggers import ingest as ingest
from tests.unit.edge.samples import eventually, prediction


def test_from_log_to_store(tmp_path: Path, ingest: FakeIngest) -> None:
    with logger(tmp_path, ingest.target) as log:
        for number in range(100):
            log(prediction(f"i{number}"))
        assert log.flush(20, until="committed")
        stats = log.stats()
    assert (stats.logged, stats.spooled, stats.committed, stats.backlog) == (100, 100, 100, 0)
    assert (stats.dropped, stats.rejected, stats.last_error, stats.in_memory) == ({}, 0, None, 0)
    ingest.only().check()
    assert ingest.images() == [f"i{number}" for number in range(100)]
    stored = ingest.only().predictions[1]
    assert [detection.class_name for detection in stored.detections] == ["person", "bus"]
    assert abs(stored.captured_at.ToSeconds() - time.time()) < 60


def test_what_is_not_shipped_is_shipped_by_the_next_process(
    tmp_path: Path, ingest: FakeIngest
) -> None:
    with logger(tmp_path) as log:
        log.log(prediction("a"))
        assert not log.flush(0.2, until="committed")
        assert "UNAVAILABLE" in str(log.stats().last_error)
    with logger(tmp_path, ingest.target) as log:
        assert log.flush(20, until="committed")  # although this one has logged nothing
        log.log(prediction("b"), wait="committed", timeout=20)
    assert ingest.images() == ["a", "b"]
    assert len(ingest.spools) == 1


def test_waiting_in_vain(tmp_path: Path) -> None:
    with logger(tmp_path) as log:
        with pytest.raises(TimeoutError):
            log.log(prediction(), wait="committed", timeout=0.1)
        assert log.stats().logged == 1


def test_waiting_for_what_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    log = logger(tmp_path)
    monkeypatch.setattr(Spool, "append", fail)
    monkeypatch.setattr(log._pipeline._writer, "_patience_seconds", 0.0)
    with pytest.raises(SightlineError, match="SPOOL_WRITE_FAILED") as caught:
        log.log(prediction(), wait="spooled", timeout=20)
    assert caught.value.reason == "PREDICTION_DROPPED"
    assert log.stats().last_error == "database or disk is full"
    assert log.stats().dropped == {"spool_write_failed": 1}
    monkeypatch.undo()
    assert not log.close()


@pytest.mark.parametrize("method", ["flush", "close"])
def test_deadlines_are_kept_while_the_server_is_away(tmp_path: Path, method: str) -> None:
    log = logger(tmp_path)
    log.log(prediction())
    begun = time.monotonic()
    if method == "flush":
        assert log.flush(0.3, until="committed") is False
    else:
        assert log.close(0.3) is True
    assert time.monotonic() - begun < UNHURRIED
    log.close()


def test_closing_does_not_wait_for_a_server_that_is_away(tmp_path: Path) -> None:
    log = logger(tmp_path)
    log.log(prediction(), wait="spooled", timeout=20)
    assert eventually(lambda: log.stats().last_error is not None)
    begun = time.monotonic()
    assert log.close(20)
    assert time.monotonic() - begun < 5


def test_deadlines_are_kept_while_the_server_hangs(tmp_path: Path, ingest: FakeIngest) -> None:
    end = threading.Event()
    ingest.on_message = lambda _: end.wait(30)
    log = logger(tmp_path, ingest.target)
    log.log(prediction())
    begun = time.monotonic()
    assert log.close(0.5) is True
    assert time.monotonic() - begun < UNHURRIED
    end.set()


def test_deadlines_are_kept_while_the_writer_is_busy(tmp_path: Path) -> None:
    detections = tuple(prediction().detections) * 500
    with logger(tmp_path, on_full="block") as log:
        for number in range(200):
            log(Prediction(f"i{number}", "m", detections=detections))
        begun = time.monotonic()
        spooled = log.flush(0.0)
        assert time.monotonic() - begun < 2
        assert not spooled or log.stats().spooled == 200
        assert log.flush(60)
        assert log.stats().spooled == 200


def test_a_server_that_answers_gets_the_rest_on_close(tmp_path: Path, ingest: FakeIngest) -> None:
    slow = LogOptions(batch_timeout_seconds=60.0)
    log = PredictionLogger(ingest.target, device_id="gate-1", spool_dir=tmp_path, options=slow)
    for number in range(500):
        log(prediction(str(number)))
    begun = time.monotonic()
    assert log.close(20)
    assert time.monotonic() - begun < 15
    assert len(ingest.images()) == 500


def test_a_closed_logger_refuses(tmp_path: Path) -> None:
    log = logger(tmp_path)
    assert log.close()
    assert log.close()
    with pytest.raises(ClosedError):
        log.log(prediction())


def test_a_closed_folder_can_be_opened_again(tmp_path: Path) -> None:
    for _ in range(3):
        with logger(tmp_path) as log, pytest.raises(SightlineError, match="SPOOL_LOCKED"):
            assert logger(tmp_path) is not log


def test_a_forgotten_logger_is_closed(tmp_path: Path) -> None:
    log = logger(tmp_path)
    log.log(prediction())
    del log
    gc.collect()
    with logger(tmp_path) as log:
        assert log.stats().backlog == 1


def test_a_logger_may_be_forgotten_by_one_of_its_own_threads(tmp_path: Path) -> None:
    log = logger(tmp_path)
    pipeline, finished = log._pipeline, threading.Event()

    def forget() -> None:
        pipeline.abandon(20)
        finished.set()

    pipeline._writer._maintain = forget  # type: ignore[method-assign]
    log.log(prediction())
    assert finished.wait(20)
    spool = pipeline._spool
    assert spool is not None
    assert eventually(lambda: spool._folder_lock._file.closed)
    with logger(tmp_path) as again:
        assert again.stats().backlog == 1


def test_what_forked_processes_left_is_shipped_by_the_next_process(
    tmp_path: Path, ingest: FakeIngest
) -> None:
    left = orphans.new_fork_directory(tmp_path)
    with logger(left) as log:
        log.log(prediction("orphan"))
    alive = orphans.new_fork_directory(tmp_path)
    with logger(alive) as child, logger(tmp_path, ingest.target) as log:
        child.log(prediction("child"), wait="spooled", timeout=20)
        log.log(prediction("own"))
        assert eventually(lambda: sorted(ingest.images()) == ["orphan", "own"])
        assert eventually(lambda: not left.exists())
        assert alive.exists()
    assert len(ingest.spools) == 2
    for header in ingest.headers:  # of the logger's process: its own spool and the orphan's
        assert header.account.waiting_predictions in (1, 2)
        assert header.account.HasField("uptime")


def test_asyncio(tmp_path: Path, ingest: FakeIngest) -> None:
    async def main() -> None:
        async with logger(tmp_path, ingest.target) as log:
            for number in range(20):
                log.log(prediction(str(number)))
            ticks = 0
            flushing = asyncio.create_task(log.aflush(20, "committed"))
            while not flushing.done():
                await asyncio.sleep(0.001)
                ticks += 1
            assert await flushing
            assert ticks > 1  # the loop was never blocked
        with pytest.raises(ClosedError):
            log.log(prediction())

    asyncio.run(main())
    assert len(ingest.images()) == 20


def test_several_loops_and_threads_share_a_logger(tmp_path: Path, ingest: FakeIngest) -> None:
    with logger(tmp_path, ingest.target) as log:

        async def camera(name: str) -> None:
            for number in range(50):
                log(prediction(f"{name}/{number}"))
                await asyncio.sleep(0)

        def run(name: str) -> None:
            asyncio.run(camera(name))

        threads = [threading.Thread(target=run, args=(f"loop{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert log.flush(20, until="committed")
    ingest.only().check()
    for number in range(4):
        own = [name for name in ingest.images() if name.startswith(f"loop{number}/")]
        assert own == [f"loop{number}/{count}" for count in range(50)]


def test_compressed_messages_arrive(tmp_path: Path, ingest: FakeIngest) -> None:
    options = LogOptions(compression="gzip", batch_timeout_seconds=0.05)
    with PredictionLogger(
        ingest.target, device_id="gate-1", spool_dir=tmp_path, options=options
    ) as log:
        for number in range(100):
            log(prediction(f"i{number}"))
        assert log.flush(20, until="committed")
    assert ingest.images() == [f"i{number}" for number in range(100)]


def test_drops_are_counted_and_declared(
    tmp_path: Path, ingest: FakeIngest, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = LogOptions(memory_predictions=10, batch_timeout_seconds=0.0)
    log = PredictionLogger(
        ingest.target,
        device_id="gate-1",
        spool_dir=tmp_path,
        on_full="drop_oldest",
        options=options,
    )
    with log:
        hold = log._pipeline._spool
        assert hold is not None
        with hold._lock:
            log.log(prediction("0"))
            assert eventually(lambda: log.stats().in_memory == 0)  # the writer waits for the lock
            for number in range(1, 31):
                log.log(prediction(str(number)))
        assert not log.flush(20, until="committed"), "not everything is there as a row"
        assert log.flush(20, until="committed"), "what was dropped is told once"
        stats = log.stats()
    assert stats.dropped == {"dropped_oldest": 20}
    assert (stats.logged, stats.spooled, stats.committed) == (31, 31, 11)
    ingest.only().check()
    assert ingest.images() == [str(number) for number in (0, *range(21, 31))]
    assert ingest.only().gaps == [(2, 21, 1)]
    account = ingest.headers[-1].account  # also of a stream before the second flush
    assert (account.logged, account.uptime.ToNanoseconds() > 0) == (31, True)
    assert [(entry.reason, entry.count) for entry in account.dropped] == [
        (ingest_pb2.GAP_REASON_DROPPED_OLDEST, 20)
    ]


@pytest.mark.slow
def test_a_process_that_ends_without_close_spools_what_it_can(tmp_path: Path) -> None:
    script = (
        "import sys; from sightline import Prediction, PredictionLogger;"
        "log = PredictionLogger('127.0.0.1:1', device_id='gate-1', spool_dir=sys.argv[1]);"
        "[log(Prediction(str(n), 'm')) for n in range(1000)]"
    )
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=60)
    assert time.monotonic() - begun < 30
    with logger(tmp_path) as log:
        assert log.stats().backlog == 1000


def test_logging_is_quiet_when_all_is_well(
    tmp_path: Path, ingest: FakeIngest, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), logger(tmp_path, ingest.target) as log:
        log.log(prediction(), wait="committed", timeout=20)
    assert [record.message for record in caplog.records if record.name.startswith("edge")] == []


def test_who_waits_for_the_server_does_not_wait_for_a_closed_logger(tmp_path: Path) -> None:
    log, outcomes = logger(tmp_path), list[object]()

    def flush() -> None:
        outcomes.append(log.flush(until="committed"))

    def wait() -> None:
        try:
            log.log(prediction(), wait="committed")
        except ClosedError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=body, daemon=True) for body in (wait, flush)]
    threads[0].start()
    assert eventually(lambda: log.stats().spooled == 1)
    threads[1].start()
    assert eventually(lambda: log._pipeline.progress.hurry == 2)
    assert log.close()
    for thread in threads:
        thread.join(20)
    assert sorted(map(str, outcomes)) == [
        "False",
        "the logger was closed before the prediction was committed",
    ]
    assert log.flush(until="committed") is False


def test_closing_again_says_whether_all_is_spooled_by_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logger(tmp_path)
    with failing_disk(monkeypatch):
        log.log(prediction())
        assert log.close(0.1) is False
        assert log.close(0.1) is False
    assert log.close(20) is True


def test_a_forked_process_does_not_close_what_is_the_parents(tmp_path: Path) -> None:
    log = logger(tmp_path)
    pipeline = log._pipeline
    closing_it = threading.Thread(target=pipeline.close, args=(1.0,), daemon=True)
    with pipeline._lock:  # as when the fork came while another thread held it
        pipeline._pid += 1
        closing_it.start()
        closing_it.join(20)
        assert not closing_it.is_alive()
    pipeline._pid -= 1
    assert log.close()


def test_room_and_milestone_share_one_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with logger(tmp_path, on_full="block") as log:
        add = log._pipeline.buffer.add

        def slow(*arguments: Any) -> int:
            time.sleep(0.2)
            return add(*arguments)

        left = list[float]()
        monkeypatch.setattr(log._pipeline.buffer, "add", slow)
        monkeypatch.setattr(
            log._pipeline, "wait_for_outcome", lambda _, timeout, **__: left.append(timeout)
        )
        log.log(prediction(), wait="spooled", timeout=20)
        assert left[0] <= 19.8


def test_adoption_goes_on_whatever_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left = orphans.new_fork_directory(tmp_path)
    with logger(left) as log:
        log.log(prediction("orphan"))
    monkeypatch.setattr(orphans, "_SCAN_SECONDS", 0.01)
    tries = list[bool]()

    def open_spool(folder: Path, _: object) -> Spool:
        return Spool(folder, "gate-1", QUICK.limits, lambda _: None)

    def no_shipper(*_: object) -> Any:
        tries.append(True)
        if len(tries) == 2:
            orphan_shipper.stop()
        raise RuntimeError("a bug")

    orphan_shipper = orphans.OrphanShipper(tmp_path, open_spool, no_shipper)
    orphan_shipper.run()
    assert len(tries) == 2  # the folder was let go of in between
    assert "a bug" in caplog.text
    open_spool(left, None).close()


def test_what_was_sent_again_and_what_failed_is_counted(ingest: FakeIngest, tmp_path: Path) -> None:
    gone = SightlineError(grpc.StatusCode.UNAVAILABLE, "DRAINING", "draining")
    ingest.before.extend([gone, gone])
    with logger(tmp_path, ingest.target) as log:
        log(Prediction("frame-1", "tiny"))
        assert log.flush(20, until="committed")
        stats = log.stats()
    assert (stats.sent, stats.retried, stats.failed, stats.committed) == (3, 2, 2, 1)
