"""An edge node with a real logger, a real ingest server and a real inference server."""

import asyncio
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from sightline.types.v1 import prediction_pb2

from edge.cloud.client import InferenceClient
from edge.decide.policy import Mode, Policy
from edge.detect.base import Detector, DetectorResult, Image
from edge.errors import ClosedError, CoordinatorClosedError, DeviceError
from edge.log.logger import PredictionLogger
from edge.node import EdgeNode
from edge.records import Box, CloudReason, Detection, Prediction, Source
from edge.settings import EdgeSettings
from edge.sources import Frame, SourceMonitor
from servicekit.errors import SightlineError
from tests.fakes.inference import Refuse, Reply, Step, serving
from tests.fakes.ingest import FakeIngest
from tests.unit.edge.running_nodes import logged
from tests.unit.edge.running_nodes import process as process

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SCRATCH = Detection(3, "scratch", 0.5, Box(1, 2, 3, 4))
DENIED = Refuse(SightlineError(grpc.StatusCode.PERMISSION_DENIED, "NOT_YOURS", "not yours"))


class Device:
    """A detector that finds one scratch, or fails on the image `b"bad"`."""

    name = "tiny"
    version = "d1"

    def detect(self, image: Image) -> DetectorResult:
        if isinstance(image, bytes) and image == b"bad":
            raise RuntimeError("CUDA error 700")
        return DetectorResult((SCRATCH,), 64, 48, self.name, self.version)


@contextmanager
def running_node(
    tmp_path: Path,
    *script: Step,
    detector: Detector | None = None,
    mode: Mode = Mode.AUTO,
    defect_classes: tuple[str, ...] = (),
) -> Iterator[tuple[EdgeNode, FakeIngest]]:
    policy = Policy(mode=mode, timeout=5.0, cloud_reserve=1.0, backoff=lambda n: 0.01)
    with FakeIngest() as ingest, serving(*script or [Reply()]) as inference:
        logger = PredictionLogger(ingest.target, device_id="gate-1", spool_dir=tmp_path / "spool")
        client = InferenceClient(inference.target)
        with EdgeNode(detector, client, logger, policy, defect_classes=defect_classes) as node:
            yield node, ingest


def test_an_answer_of_the_device_is_logged_as_it_was_given(process: Any, tmp_path: Path) -> None:
    with running_node(tmp_path, detector=Device()) as (node, ingest):
        answer = process(
            node, b"good", "frame-1", 1_700_000_000.25, {"line": "3"}, traceparent=TRACE
        )
        (entry,) = logged(node, ingest)
    assert answer.source is Source.DEVICE
    assert answer.detections == (SCRATCH,)
    assert (entry.image_id, entry.image_width, entry.image_height) == ("frame-1", 64, 48)
    assert (entry.model_name, entry.model_version) == ("tiny", "d1")
    assert entry.source == prediction_pb2.PREDICTION_SOURCE_DEVICE
    assert entry.cloud_reason == prediction_pb2.CLOUD_REASON_UNSPECIFIED
    assert entry.captured_at.ToNanoseconds() == 1_700_000_000_250_000_000
    assert 0 < entry.inference_time.ToNanoseconds() < 5e9
    assert [detection.class_name for detection in entry.detections] == ["scratch"]
    assert dict(entry.labels) == {"line": "3"}
    assert entry.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert not entry.HasField("defect_detected")


def test_the_context_goes_to_the_service_and_into_the_log(process: Any, tmp_path: Path) -> None:
    policy = Policy(mode=Mode.CLOUD, timeout=5.0)
    with FakeIngest() as ingest, serving(Reply()) as inference:
        logger = PredictionLogger(ingest.target, device_id="gate-1", spool_dir=tmp_path / "spool")
        client = InferenceClient(inference.target)
        constant = {"plant": "3", "line": "1"}
        with EdgeNode(None, client, logger, policy, context=constant) as node:
            process(node, b"a", labels={"lot": "7", "part": "own"}, context={"line": "4"})
            process(node, b"b", labels={"plant": "x"})
            with pytest.raises(SightlineError, match="context"):
                process(node, b"c", context={"": "no key"})
            first, second = logged(node, ingest)
    assert [dict(seen.request.context) for seen in inference.seen] == [
        {"plant": "3", "line": "4"},
        {"plant": "3", "line": "1"},
    ]
    assert dict(first.labels) == {"plant": "3", "line": "4", "lot": "7", "part": "own"}
    assert dict(second.labels) == {"plant": "x", "line": "1"}  # a label of the log is its own


def test_a_context_in_the_settings(tmp_path: Path) -> None:
    settings = EdgeSettings.model_validate({"context": "plant=3,part=a=b", "spool_dir": tmp_path})
    assert settings.context_labels == {"plant": "3", "part": "a=b"}
    too_many = ",".join(f"k{number}=x" for number in range(17))
    too_long = f"plant={'x' * 257}"
    for wrong in ("plant", "=3", "plant=3,plant=4", too_many, too_long, f"{'k' * 65}=x"):
        with pytest.raises(ValueError, match="context"):
            EdgeSettings.model_validate({"context": wrong, "spool_dir": tmp_path})


def test_an_answer_of_the_cloud_is_logged_with_its_reason(process: Any, tmp_path: Path) -> None:
    with running_node(tmp_path, detector=Device()) as (node, ingest):
        answer = process(node, b"bad", "frame-1")
        (entry,) = logged(node, ingest)
    assert (answer.source, answer.cloud_reason) == (Source.CLOUD, CloudReason.DEVICE_FAILED)
    assert entry.source == prediction_pb2.PREDICTION_SOURCE_CLOUD
    assert entry.cloud_reason == prediction_pb2.CLOUD_REASON_DEVICE_FAILED
    assert (entry.model_name, entry.model_version) == ("plates", "3")


def test_without_a_name_and_a_time_there_are_a_uuid_and_now(process: Any, tmp_path: Path) -> None:
    began = time.time()
    with running_node(tmp_path, detector=Device()) as (node, ingest):
        for _ in range(2):
            process(node, b"good")
        first, second = logged(node, ingest)
    assert uuid.UUID(first.image_id) != uuid.UUID(second.image_id)
    assert began <= first.captured_at.ToNanoseconds() / 1e9 <= time.time()


@pytest.mark.parametrize(
    ("defect_classes", "verdict"),
    [((), None), (("scratch", "pit"), True), (("pit",), False)],
)
def test_the_verdict_follows_the_defect_classes(
    tmp_path: Path, defect_classes: tuple[str, ...], verdict: bool | None
) -> None:
    with running_node(tmp_path, detector=Device(), defect_classes=defect_classes) as (node, ingest):
        node.process(b"good")
        (entry,) = logged(node, ingest)
    assert (entry.defect_detected if entry.HasField("defect_detected") else None) is verdict


class Labelled(Device):
    labels = ("scratch", "pit")


@pytest.mark.parametrize(
    ("defects", "renamed", "said"),
    [
        (
            ("scratch", "pitt"),
            {},
            "defect_classes: the device's model has no class 'pitt', did you mean pit",
        ),
        (
            (),
            {"hole": "piit"},
            "cloud_label_map: the device's model has no class 'piit', did you mean pit",
        ),
        (
            ("mould",),
            {},
            "defect_classes: the device's model has no class 'mould' (it has pit, scratch)",
        ),
    ],
)
def test_a_class_that_the_devices_model_lacks_is_refused(
    tmp_path: Path, defects: tuple[str, ...], renamed: dict[str, str], said: str
) -> None:
    logger = PredictionLogger("127.0.0.1:1", device_id="gate-1", spool_dir=tmp_path / "spool")

    def node(mode: Mode, *, takes_other_labels: bool = False) -> EdgeNode:
        policy = Policy(
            mode=mode, takes_other_labels=takes_other_labels, cloud_label_map=dict(renamed)
        )
        client = InferenceClient("127.0.0.1:1")
        return EdgeNode(Labelled(), client, logger, policy, defect_classes=defects)

    with pytest.raises(ValueError, match=re.escape(said)):
        node(Mode.AUTO)
    node(Mode.AUTO, takes_other_labels=True).close()
    node(Mode.CLOUD).close()


def test_a_failure_is_raised_and_counted_and_not_logged(process: Any, tmp_path: Path) -> None:
    with running_node(tmp_path, DENIED, detector=Device()) as (node, ingest):
        with pytest.raises(SightlineError, match="NOT_YOURS"):
            process(node, b"bad")
        with pytest.raises(SightlineError, match="traceparent"):
            process(node, b"good", traceparent="nonsense")
        process(node, b"good", "frame-3")
        assert [entry.image_id for entry in logged(node, ingest)] == ["frame-3"]
        pictures = node.stats().pictures
    assert pictures.failed == {"NOT_YOURS": 1, "INVALID_FIELD": 1}
    assert pictures.by_device == 1


def test_a_run_names_its_images_and_sources_in_text_and_says_what_it_skips(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "shift-\udcff"
    folder.mkdir()
    for name in ("a-\udcfe.jpg", "b.heic"):
        (folder / name).write_bytes(b"good")
    with running_node(tmp_path, detector=Device()) as (node, ingest):
        (outcome,) = node.run(folder)
        assert outcome.error is None
        (entry,) = logged(node, ingest)
    assert entry.image_id == "a-\\xfe.jpg"
    assert entry.labels["source"] == f"{tmp_path}/shift-\\xff"
    assert f"{tmp_path}/shift-\\xff: skipped 1 file without the suffix of an image (.heic)" in (
        caplog.messages
    )


class OddlyNamed:
    """A source of a user's own, whose names the log would not take."""

    name, live = "belt-\udcff" + "x" * 1100, False

    def frames(self, monitor: SourceMonitor) -> Iterator[Frame]:
        monitor.found()
        yield Frame(b"good", "part-\udcfe" + "x" * 600)


def test_names_of_any_source_are_made_to_fit_the_log(tmp_path: Path) -> None:
    with running_node(tmp_path, detector=Device()) as (node, ingest):
        assert [outcome.error for outcome in node.run(OddlyNamed())] == [None]
        (entry,) = logged(node, ingest)
    assert len(entry.image_id) == 512
    assert len(entry.labels["source"]) == 1024


def test_a_failing_device_alone_is_counted_by_its_error(tmp_path: Path) -> None:
    with running_node(tmp_path, detector=Device(), mode=Mode.DEVICE) as (node, _):
        with pytest.raises(DeviceError, match="CUDA error 700"):
            node.process(b"bad")
        assert node.stats().pictures.failed == {"DEVICE_FAILED": 1}


async def test_threads_and_tasks_use_one_node_at_once(tmp_path: Path) -> None:
    with running_node(tmp_path, detector=Device()) as (node, ingest):
        kinds = [b"good", b"bad"] * 20
        await asyncio.gather(
            *(node.aprocess(kind, f"task-{n}") for n, kind in enumerate(kinds)),
            *(asyncio.to_thread(node.process, kind, f"thread-{n}") for n, kind in enumerate(kinds)),
        )
        entries = await asyncio.to_thread(logged, node, ingest)
        stats = node.stats()
    names = {f"{kind}-{n}" for kind in ("task", "thread") for n in range(40)}
    assert {entry.image_id for entry in entries} == names
    assert len(entries) == 80
    assert stats.pictures.by_device == 40
    assert stats.pictures.by_cloud == {CloudReason.DEVICE_FAILED: 40}
    assert stats.pictures.fallback_rate == 0.5
    total = stats.pictures.total_milliseconds
    assert total.p50 is not None
    assert total.p95 is not None
    assert total.p99 is not None
    assert 0 < total.p50 <= total.p95 <= total.p99
    assert stats.logger.logged == 80


async def test_a_cancelled_image_is_neither_logged_nor_a_failure(tmp_path: Path) -> None:
    slow = threading.Event()

    class Slow(Device):
        def detect(self, image: Image) -> DetectorResult:
            slow.wait(30)
            return super().detect(image)

    with running_node(tmp_path, detector=Slow()) as (node, _):
        task = asyncio.create_task(node.aprocess(b"good"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        slow.set()
        stats = node.stats()
    assert (stats.pictures.by_device, stats.pictures.failed, stats.logger.logged) == (0, {}, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": {"a": 1}}, "labels"),
        ({"captured_at": "yesterday"}, "captured_at"),
        ({"image_id": 7}, "image_id"),
    ],
)
def test_what_cannot_be_logged_is_refused_before_anybody_works_for_it(
    process: Any, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    class Counting(Device):
        seen = 0

        def detect(self, image: Image) -> DetectorResult:
            Counting.seen += 1
            return super().detect(image)

    with running_node(tmp_path, detector=Counting()) as (node, _):
        with pytest.raises(ValueError, match=message):
            process(node, b"good", **options)
        assert Counting.seen == 0
        assert node.stats().pictures.failed == {"ValueError": 1}


def test_an_image_in_hand_when_the_log_is_closed_fails_as_the_node_closed(
    process: Any, tmp_path: Path
) -> None:
    class Closing(Device):
        def detect(self, image: Image) -> DetectorResult:
            node.logger.close()
            return super().detect(image)

    with running_node(tmp_path, detector=Closing()) as (node, _):
        with pytest.raises(CoordinatorClosedError):
            process(node, b"good")
        assert node.stats().pictures.failed == {"NODE_CLOSED": 1}


def test_closing_goes_on_after_a_part_that_cannot_be_closed(tmp_path: Path) -> None:
    class Stuck(Device):
        def close(self) -> None:
            raise RuntimeError("the driver is gone")

    with FakeIngest() as ingest, serving(Reply()) as inference:
        logger = PredictionLogger(ingest.target, device_id="gate-1", spool_dir=tmp_path / "spool")
        client = InferenceClient(inference.target)
        node = EdgeNode(Stuck(), client, logger, Policy())
        with pytest.raises(RuntimeError, match="the driver is gone"):
            node.close()
        with pytest.raises(ClosedError):
            logger.log(Prediction("frame-1", "tiny"))
        with pytest.raises(SightlineError, match="CLIENT_CLOSED"):
            client.infer([b"picture"])


async def test_a_log_that_waits_for_the_disk_does_not_hold_up_the_loop(tmp_path: Path) -> None:
    with FakeIngest() as ingest:
        logger = PredictionLogger(
            ingest.target, device_id="gate-1", spool_dir=tmp_path / "spool", on_full="block"
        )
        assert logger.blocks
        log, threads = logger.log, list[str]()

        def noted(*args: Any, **options: Any) -> Any:
            threads.append(threading.current_thread().name)
            return log(*args, **options)

        logger.log = noted  # type: ignore[method-assign] # of this one alone
        async with EdgeNode(Device(), None, logger, Policy(mode=Mode.DEVICE)) as node:
            await node.aprocess(b"good")
    assert threads
    assert threads[0] != threading.main_thread().name


async def test_a_node_is_an_async_context_manager_and_closes_its_parts(tmp_path: Path) -> None:
    with FakeIngest() as ingest, serving(Reply()) as inference:
        logger = PredictionLogger(ingest.target, device_id="gate-1", spool_dir=tmp_path / "spool")
        client = InferenceClient(inference.target)
        policy = Policy(backoff=lambda n: 0.0)
        async with EdgeNode(None, client, logger, policy) as node:
            await node.aprocess(b"picture", "frame-1")
        assert ingest.images() == ["frame-1"]
        with pytest.raises(Exception, match="closed"):
            logger.log(Prediction("frame-2", "tiny"))
        with pytest.raises(SightlineError, match="CLIENT_CLOSED"):
            client.infer([b"picture"])
