"""Labels that differ between device and cloud, with a scripted gRPC server."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
import pytest
from sightline.inference.v1 import inference_pb2

from edge import assemble
from edge.cloud.client import InferenceClient
from edge.cloud.types import ModelHint, ModelInfo, ModelTask
from edge.commands.options import settings_with
from edge.decide.cloud_labels import CloudLabels
from edge.decide.coordinator import InferenceCoordinator
from edge.decide.labels import LabelRule, rename
from edge.decide.policy import Mode, Policy
from edge.detect.base import DetectorResult, Image
from edge.errors import CloudError
from edge.records import (
    Box,
    CloudReason,
    Detection,
    Keypoint,
    Mask,
    RotatedBox,
    Source,
)
from servicekit.errors import SightlineError
from servicekit.settings import SettingsError
from tests.fakes.inference import FakeInference, Refuse, Reply, scratch, serving

DIFFER = "CLOUD_LABELS_DIFFER"
COCO = ("person", "car")
PERSON = DetectorResult((Detection(0, "person", 0.5, Box(0, 0, 4, 4)),), 64, 48, "coco", "d1")
NOTHING = Reply([inference_pb2.ImageResult(image_width=64, image_height=48)])
DOWN = Refuse(SightlineError(grpc.StatusCode.UNIMPLEMENTED, "X", "an old server"))


class Coco:
    """A detector of people with a low confidence."""

    name = "coco"
    version = "d1"

    def __init__(self, labels: Sequence[str] = COCO, does: Callable[[], Any] | None = None) -> None:
        self.labels = tuple(labels)
        self.does = does or (lambda: PERSON)

    def detect(self, _image: Image) -> DetectorResult:
        result = self.does()
        assert isinstance(result, DetectorResult)
        return result


def listed(*labels: str, version: str = "3") -> inference_pb2.ModelInfo:
    return inference_pb2.ModelInfo(
        name="plates", version=version, labels=labels, default_version=True, default_model=True
    )


def new_coordinator(
    service: FakeInference,
    mode: Mode,
    detector: Coco | None = None,
    *,
    any_labels: bool = False,
    label_map: Mapping[str, str] | None = None,
) -> InferenceCoordinator:
    policy = Policy(
        mode=mode,
        timeout=5.0,
        cloud_reserve=0.5,
        backoff=lambda _: 0.01,
        takes_other_labels=any_labels,
        cloud_label_map=label_map or {},
    )
    return InferenceCoordinator(detector or Coco(), InferenceClient(service.target), policy)


def infers(service: FakeInference) -> int:
    return sum(len(seen.request.images) > 0 for seen in service.seen)


@pytest.mark.parametrize("reply", [Reply(), NOTHING], ids=["scratch", "nothing"])
def test_cascade_keeps_the_device_s_answer_and_does_not_ask(
    reply: Reply, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(reply, models=[listed("scratch", "pit")]) as service:
        with new_coordinator(service, Mode.CASCADE) as coordinator:
            answers = [coordinator.ask(b"picture") for _ in range(3)]
        assert infers(service) == 0
    for answer in answers:
        assert (answer.source, answer.detections) == (Source.DEVICE, PERSON.detections)
        assert (answer.cloud_reason, answer.cloud_error) == (CloudReason.DEVICE_UNSURE, DIFFER)
    assert caplog.text.count("has other labels than the device's") == 1
    assert "'pit', 'scratch'" in caplog.text
    assert "'car', 'person'" in caplog.text


def test_an_old_server_s_classes_are_held_against_the_device_s_labels() -> None:
    old = listed()  # without labels
    with serving(Reply(), models=[old]) as service:
        with new_coordinator(service, Mode.CASCADE) as coordinator:
            for _ in range(3):
                answer = coordinator.ask(b"picture")
                assert (answer.source, answer.cloud_error) == (Source.DEVICE, DIFFER)
                assert answer.detections == PERSON.detections
        assert infers(service) == 1  # then it is known


def test_hedged_waits_for_the_device() -> None:
    slow = threading.Event()
    detector = Coco()
    with (
        serving(Reply(), models=[listed("scratch")]) as service,
        new_coordinator(service, Mode.HEDGED, detector) as coordinator,
    ):
        for _ in range(25):  # until it is known how long the device takes
            assert coordinator.ask(b"picture").source is Source.DEVICE

        def wait() -> DetectorResult:
            slow.wait(0.5)
            return PERSON

        detector.does = wait
        answer = coordinator.ask(b"picture")
        assert (answer.source, answer.cloud_error) == (Source.DEVICE, DIFFER)
        assert answer.cloud_reason is CloudReason.DEVICE_SLOW


@pytest.mark.parametrize("mode", [Mode.CASCADE, Mode.HEDGED])
def test_a_device_that_fails_is_not_replaced_by_another_model(mode: Mode) -> None:
    def fail() -> DetectorResult:
        raise ZeroDivisionError

    with (
        serving(Reply(), models=[listed("scratch")]) as service,
        new_coordinator(service, mode, Coco(does=fail)) as coordinator,
        pytest.raises(CloudError) as caught,
    ):
        coordinator.ask(b"picture")
    assert caught.value.reason == DIFFER


def test_auto_takes_the_cloud_s_answer_under_its_own_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> DetectorResult:
        raise ZeroDivisionError

    with (
        serving(Reply(), models=[listed("scratch")]) as service,
        new_coordinator(service, Mode.AUTO, Coco(does=fail)) as coordinator,
    ):
        answer = coordinator.ask(b"picture")
        assert (answer.source, answer.model_name) == (Source.CLOUD, "plates")
        until = time.monotonic() + 5  # the labels are learnt in a thread of their own
        while "its answers have its classes" not in caplog.text:
            assert time.monotonic() < until, "there was no warning"
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("labels", "options", "name"),
    [
        (("pit", "scratch"), {}, "scratch"),  # in any order
        (COCO, {"any_labels": True}, "scratch"),
        (("flaw", "pit", "hole"), {"label_map": {"scratch": "flaw"}}, "flaw"),
    ],
)
def test_the_cloud_s_answer_is_taken_where_labels_fit_or_are_mapped_or_allowed(
    labels: tuple[str, ...], options: dict[str, Any], name: str
) -> None:
    with (
        serving(Reply(), models=[listed("scratch", "pit")]) as service,
        new_coordinator(service, Mode.CASCADE, Coco(labels), **options) as coordinator,
    ):
        answer = coordinator.ask(b"picture")
        assert (answer.source, answer.cloud_error) == (Source.CLOUD, "")
        assert [detection.class_name for detection in answer.detections] == [name]


def test_a_renamed_class_keeps_everything_else() -> None:
    parts: dict[str, Any] = {
        "rotated_box": RotatedBox(1, 2, 3, 4, 0.5),
        "keypoints": (Keypoint(1, 2, 0.5),),
        "mask": Mask([[(1, 2), (3, 4), (5, 6)]]),
    }
    found = Detection(3, "scratch", 0.5, Box(1, 2, 3, 4), 7, **parts)
    result = rename(DetectorResult((found,), 64, 48, "plates", "3"), {"scratch": "flaw"})
    assert result.detections == (Detection(3, "flaw", 0.5, Box(1, 2, 3, 4), 7, **parts),)


def test_a_model_that_becomes_the_default_meanwhile_is_noticed() -> None:
    dog = scratch()
    dog.detections[0].class_name = "dog"
    with (
        # The first step is for the list of models.
        serving(Reply(), Reply(), Reply([dog]), models=[listed("scratch", "pit")]) as service,
        new_coordinator(service, Mode.CASCADE, Coco(("scratch", "pit"))) as coordinator,
    ):
        assert coordinator.ask(b"picture").source is Source.CLOUD
        answer = coordinator.ask(b"picture")
        assert (answer.source, answer.cloud_error) == (Source.DEVICE, DIFFER)
        assert coordinator.breaker.value == "closed"


def test_labels_that_are_put_right_are_noticed_after_a_while() -> None:
    clock = [0.0]
    models = [[_info("scratch")], [_info("person", "car")]]
    rule = LabelRule(lambda: frozenset(COCO), {})
    labels = CloudLabels(
        rule,
        lambda _seconds: tuple(models.pop(0)),
        ModelHint(),
        rejects=True,
        clock=lambda: clock[0],
    )
    for clock[0] in (0.0, 29.0):
        with pytest.raises(SightlineError, match="other labels"):
            labels.check_model(1.0)
    clock[0] = 30.0
    labels.check_model(1.0)


def _info(*labels: str) -> Any:
    return ModelInfo("m", "1", ModelTask.DETECT, labels, 64, 64, "CPU", True, True)


def test_a_cloud_that_does_not_list_its_models_is_judged_by_its_answers() -> None:
    def fail(_seconds: float) -> Any:
        raise DOWN.error

    labels = CloudLabels(LabelRule(lambda: frozenset(COCO), {}), fail, ModelHint(), rejects=True)
    labels.check_model(1.0)
    labels.check_answer(PERSON)
    other = DetectorResult((Detection(0, "", 0.5),), 64, 48, "m")
    with pytest.raises(SightlineError, match="other labels"):
        labels.check_answer(other)


@pytest.mark.parametrize(
    ("cloud", "renamed", "message"),
    [
        (("person", "car"), {}, ""),
        (("car",), {}, "only the device has 'person'"),
        (("car", "person", "dog"), {}, "only the cloud has 'dog'"),
        (("human",), {"human": "person"}, ""),
        (("human", "dog"), {"human": "person"}, "only the cloud has 'dog'"),
        (tuple("abcdefg"), {"a": "car"}, "only the cloud has 'b', 'c', 'd', 'e', 'f' and 1 more"),
    ],
)
def test_differences_are_named(
    cloud: tuple[str, ...], renamed: dict[str, str], message: str
) -> None:
    assert LabelRule(lambda: frozenset(COCO), renamed).difference(cloud) == message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("car", "words like car=vehicle"),
        ("=vehicle", "words like car=vehicle"),
        ("car=", "words like car=vehicle"),
        ("car=vehicle,car=truck", "each class of the cloud once"),
    ],
)
def test_a_label_map_that_is_none_is_refused(words: str, message: str) -> None:
    with pytest.raises(SettingsError, match=f"cloud_label_map: .*{message}"):
        settings_with(cloud_label_map=words)


def test_settings_reach_the_policy() -> None:
    policy = assemble.policy(settings_with(cloud_labels="any", cloud_label_map="a=b, c=d e"))
    assert policy.takes_other_labels
    assert policy.cloud_label_map == {"a": "b", "c": "d e"}
