"""Runs over sources on a real node: every frame has one outcome, and the counts add up."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edge.decide.answer import Answer
from edge.decide.policy import Mode, Policy
from edge.detect.base import DetectorResult, Image
from edge.errors import CoordinatorClosedError
from edge.log.logger import PredictionLogger
from edge.node import EdgeNode
from edge.records import Source
from edge.run import NodeRun
from edge.sources import Frame, SourceMonitor, VideoFile
from edge.sources.counts import SourceCounts, SourceState
from servicekit.errors import SightlineError
from tests.fakes.ingest import FakeIngest
from tests.unit.edge.sources.monitors import save_pictures, save_video

LONG = 10.0


class Device:
    name, version = "tiny", "1"

    def __init__(self, before: Callable[[Image], None] = lambda image: None) -> None:
        self._before = before

    def detect(self, image: Image) -> DetectorResult:
        self._before(image)
        return DetectorResult((), 64, 48, self.name, self.version)


class Camera:
    """A live source of `count` frames, which then waits for the stop signal."""

    name, live = "cam", True

    def __init__(self, count: int, after_first: threading.Event | None = None) -> None:
        self._count = count
        self._after_first = after_first
        self.delivered = threading.Event()
        self.ended = threading.Event()

    def frames(self, monitor: SourceMonitor) -> Iterator[Frame]:
        monitor.found()
        for number in range(self._count):
            yield Frame(b"x", f"cam-{number}", 1_700_000_000.0 + number)
            if number == 0 and self._after_first:
                self._after_first.wait(LONG)
        self.delivered.set()
        while not monitor.wait(LONG):
            pass
        self.ended.set()


@contextmanager
def running_node(
    tmp_path: Path, device: Device | None = None
) -> Iterator[tuple[EdgeNode, FakeIngest]]:
    with FakeIngest() as ingest:
        logger = PredictionLogger(ingest.target, device_id="gate-1", spool_dir=tmp_path / "spool")
        with EdgeNode(device or Device(), None, logger, Policy(mode=Mode.DEVICE)) as node:
            yield node, ingest


def test_every_frame_of_files_is_answered_and_logged_with_its_source(tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / "pictures", "a.jpg", "b.jpg", "c.jpg")
    video = save_video(tmp_path / "line.mp4", frames=10)
    with running_node(tmp_path) as (node, ingest):
        outcomes = list(node.run(folder, str(video)))
        assert node.logger.flush(LONG, until="committed")
        logged = ingest.only().predictions.values()
        stats = node.stats()
    names = ["a.jpg", "b.jpg", "c.jpg", *(f"line.mp4#{n:06d}" for n in range(10))]
    assert sorted(outcome.frame.image_id for outcome in outcomes) == names
    assert all(outcome.answer and outcome.answer.source is Source.DEVICE for outcome in outcomes)
    assert {entry.image_id: dict(entry.labels)["source"] for entry in logged} == {
        name: str(folder if name.endswith(".jpg") else video) for name in names
    }
    assert stats.sources[str(video)].read == stats.sources[str(video)].by_device == 10
    assert stats.sources[str(folder)].state is SourceState.ENDED
    assert stats.pictures.by_device == 13


def test_one_worker_keeps_the_order(tmp_path: Path) -> None:
    video = save_video(tmp_path / "line.mp4", frames=30)
    with running_node(tmp_path) as (node, _):
        names = [outcome.frame.image_id for outcome in node.run(video, workers=1)]
    assert names == [f"line.mp4#{n:06d}" for n in range(30)]


def test_sampling_applies_to_words_and_counts_what_was_passed_over(tmp_path: Path) -> None:
    video = save_video(tmp_path / "line.mp4", frames=30, fps=10)
    with running_node(tmp_path) as (node, _):
        assert len(list(node.run(video, every=10))) == 3
        assert node.stats().sources[str(video)].skipped == 27
        assert len(list(node.run(video, every_seconds=1.0))) == 3
        stats = node.stats().sources[str(video)]
    assert (stats.read, stats.skipped, stats.by_device, stats.waiting) == (60, 54, 6, 0)


def test_a_frame_that_fails_is_an_outcome_with_its_error(tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / "pictures", "a.jpg", "b.jpg")

    def fail(image: Image) -> None:
        if isinstance(image, Path) and image.name == "a.jpg":
            raise RuntimeError("CUDA error 700")

    with running_node(tmp_path, Device(fail)) as (node, _):
        first, second = sorted(node.run(folder), key=lambda outcome: outcome.frame.image_id)
        stats = node.stats()
    assert first.answer is None
    assert "CUDA error 700" in str(first.error)
    assert second.error is None
    counts = stats.sources[str(folder)]
    assert (counts.failed, counts.by_device) == (1, 1)
    assert sum(stats.pictures.failed.values()) == 1


def test_leaving_the_loop_ends_the_reading_and_the_counts_add_up(tmp_path: Path) -> None:
    camera = Camera(100)
    with running_node(tmp_path) as (node, _):
        for _ in node.run(camera, queue_size=2):
            break
        assert camera.ended.wait(LONG)
        stats = node.stats()
    counts = stats.sources["cam"]
    assert counts.state is SourceState.ENDED
    assert counts.waiting == 0
    assert counts.read == counts.dropped + counts.by_device
    assert stats.pictures.by_device == counts.by_device >= 1


def test_a_slow_device_costs_a_camera_its_old_frames_only(tmp_path: Path) -> None:
    busy, go = threading.Event(), threading.Event()
    camera = Camera(100, after_first=busy)

    def work(image: Image) -> None:
        busy.set()
        go.wait(LONG)

    with running_node(tmp_path, Device(work)) as (node, _):
        outcomes = node.run(camera, workers=1, queue_size=3)
        first = threading.Thread(target=next, args=(outcomes,))
        first.start()
        assert camera.delivered.wait(LONG)
        go.set()
        first.join(LONG)
        rest = [next(outcomes).frame.image_id for _ in range(3)]
        counts = node.stats().sources["cam"]
        outcomes.close()  # type: ignore[attr-defined]
    assert rest == ["cam-97", "cam-98", "cam-99"]
    assert counts.dropped == 96
    assert counts.read == 100


async def test_asyncio_iterates_over_the_same(tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / "pictures", "a.jpg", "b.jpg", "c.jpg")
    with running_node(tmp_path) as (node, _):
        names = {outcome.frame.image_id async for outcome in node.arun(folder)}
    assert names == {"a.jpg", "b.jpg", "c.jpg"}


async def test_a_cancelled_task_ends_its_run(tmp_path: Path) -> None:
    camera = Camera(1)

    async def follow(node: EdgeNode) -> None:
        async for _ in node.arun(camera):
            pass

    with running_node(tmp_path) as (node, _):
        task = asyncio.create_task(follow(node))
        await asyncio.to_thread(camera.delivered.wait, LONG)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(camera.ended.wait, LONG)


async def test_tasks_that_follow_quiet_cameras_leave_the_loops_threads_alone(
    tmp_path: Path,
) -> None:
    class Quiet(Camera):
        def __init__(self, number: int) -> None:
            super().__init__(0)
            self.name = f"cam-{number}"

    async def follow(node: EdgeNode, camera: Camera) -> None:
        async for _ in node.arun(camera):
            pass

    cameras = [Quiet(number) for number in range(40)]  # more than the loop's pool has threads
    with running_node(tmp_path) as (node, _):
        tasks = [asyncio.create_task(follow(node, camera)) for camera in cameras]
        await asyncio.sleep(0.1)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 42), LONG) == 42
        for task in tasks:
            task.cancel()
        async with asyncio.timeout(LONG):
            await asyncio.gather(*tasks, return_exceptions=True)
        assert all(camera.ended.is_set() for camera in cameras)


def test_even_an_exit_while_answering_is_one_frames_failure(tmp_path: Path) -> None:
    def exit_worker(source: str, frame: Frame) -> Answer:
        raise SystemExit(3)

    counts = SourceCounts()
    video = VideoFile(save_video(tmp_path / "line.mp4", frames=3))
    run = NodeRun({video: counts}, exit_worker, workers=1, queue_size=1)
    errors = [outcome.error for outcome in run]
    assert [type(error) for error in errors] == [RuntimeError] * 3
    assert counts.stats().failed == 3


def test_a_closed_node_runs_nothing(tmp_path: Path) -> None:
    with running_node(tmp_path) as (node, _):
        pass
    with pytest.raises(CoordinatorClosedError):
        node.run(Camera(1))


@pytest.mark.slow
def test_of_file_after_file_only_the_last_are_remembered(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    names = [f"{number:03d}.jpg" for number in range(300)]
    save_pictures(folder, *names)
    with running_node(tmp_path) as (node, _):
        for name in names:
            assert len(list(node.run(folder / name))) == 1
        sources = node.stats().sources
        with pytest.raises(ValueError, match="workers"):
            node.run(Camera(1), workers=0)
        assert "cam" not in node.stats().sources
    assert len(sources) == 256
    assert str(folder / names[-1]) in sources


def test_closing_the_node_ends_its_runs(tmp_path: Path) -> None:
    camera = Camera(1)
    with running_node(tmp_path) as (node, _):
        outcomes = node.run(camera)
        assert next(outcomes).answer is not None
    assert camera.ended.wait(LONG)
    assert list(outcomes) == []


@pytest.mark.slow
def test_many_cameras_that_hang_hold_up_the_end_no_longer_than_one(tmp_path: Path) -> None:
    release = threading.Event()

    class Hanging(Camera):
        live = True

        def __init__(self, number: int) -> None:
            super().__init__(0)
            self.name = f"cam-{number}"

        def frames(self, monitor: SourceMonitor) -> Iterator[Frame]:
            release.wait(30)
            yield from ()

    cameras = [Hanging(number) for number in range(8)]
    video = VideoFile(save_video(tmp_path / "line.mp4", frames=1))
    with running_node(tmp_path) as (node, _):
        outcomes = node.run(video, *cameras)
        next(outcomes)
        began = time.monotonic()
        outcomes.close()  # type: ignore[attr-defined]
        assert time.monotonic() - began < 4
        release.set()


def test_a_run_that_is_never_begun_reads_nothing(tmp_path: Path) -> None:
    camera = Camera(1)
    with running_node(tmp_path) as (node, _):
        node.run(camera)
        assert node.stats().sources["cam"].read == 0
    assert not camera.delivered.is_set()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers must be 1 to 1024, got 0"),
        ({"queue_size": 0}, "queue_size must be 1 to 1024, got 0"),
        ({"every": 0}, "every must be >= 1"),
        ({"every_seconds": -1.0}, "every_seconds must be above 0"),
    ],
)
def test_numbers_out_of_range_are_refused_at_once(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with running_node(tmp_path) as (node, _), pytest.raises(ValueError, match=message):
        node.run(Camera(1), **options)


def test_sources_must_be_there_and_differ(tmp_path: Path) -> None:
    video = VideoFile(save_video(tmp_path / "line.mp4", frames=1))
    with running_node(tmp_path) as (node, _):
        with pytest.raises(ValueError, match="sources must be at least one"):
            node.run()
        with pytest.raises(ValueError, match="have different names"):
            node.run(video, str(tmp_path / "line.mp4"))
        with pytest.raises(SightlineError, match="source must name at least one image"):
            node.run(tmp_path / "missing.jpg")
