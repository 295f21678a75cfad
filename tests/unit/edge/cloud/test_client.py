"""Both clients against a real gRPC server: the same calls, the same answers, the same errors."""

import asyncio
import hashlib
import platform
import time
import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest
from sightline.inference.v1 import inference_pb2
from sightline.types.v1 import prediction_pb2

from edge.channel import Endpoint
from edge.cloud.aio_client import AsyncInferenceClient
from edge.cloud.client import InferenceClient
from edge.cloud.types import ClassScore, InferAnswer, InferParameters, ModelHint, ModelTask
from edge.records import Box, Detection, Keypoint, Mask, RotatedBox
from servicekit.distribution import version
from servicekit.errors import Category, FieldViolation, SightlineError, invalid
from tests.fakes.inference import Hang, Refuse, Reply, serving

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Blocking:
    """The threaded client, with its own interface."""

    def __init__(self, endpoint: Endpoint | str, **options: Any) -> None:
        self.client = InferenceClient(endpoint, **options)

    def infer(self, *args: Any, **options: Any) -> InferAnswer:
        with self.client as client:
            return client.infer(*args, **options)

    def list_models(self, **options: Any) -> Any:
        with self.client as client:
            return client.list_models(**options)


class Awaiting:
    """The asyncio client on a separate loop, with the interface of the threaded one."""

    def __init__(self, endpoint: Endpoint | str, **options: Any) -> None:
        self.endpoint = endpoint
        self.options = options

    def infer(self, *args: Any, **options: Any) -> InferAnswer:
        async def call() -> InferAnswer:
            async with AsyncInferenceClient(self.endpoint, **self.options) as client:
                return await client.infer(*args, **options)

        return asyncio.run(call())

    def list_models(self, **options: Any) -> Any:
        async def call() -> Any:
            async with AsyncInferenceClient(self.endpoint, **self.options) as client:
                return await client.list_models(**options)

        return asyncio.run(call())


@pytest.fixture(params=[Blocking, Awaiting])
def client_class(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_an_image_is_answered(client_class: Any) -> None:
    with serving(Reply()) as fake:
        answer = client_class(fake.target).infer([b"\xff\xd8picture"], image_ids=["frame-1"])
    (result,) = answer.results
    assert result.detections == (Detection(1, "scratch", 0.75, Box(1, 2, 30.5, 40)),)
    assert (result.image_id, result.image_width, result.image_height) == ("frame-1", 64, 48)
    assert result.error is None
    assert (answer.model_name, answer.model_version) == ("plates", "3")
    assert (answer.timing.infer, answer.timing.total, answer.timing.queue) == (0.025, 0.04, 0.0)
    assert not answer.idempotent_replayed


def test_what_is_sent(client_class: Any) -> None:
    endpoint_key = "s3cret"
    with serving(Reply()) as fake:
        client_class(Endpoint(fake.target, api_key=endpoint_key)).infer(
            [b"picture"],
            model=ModelHint("plates", "3"),
            parameters=InferParameters(confidence_threshold=0.5, max_detections=7),
            traceparent=TRACE,
            context={"plant": "3"},
        )
    (seen,) = fake.seen
    (image,) = seen.request.images
    assert image.data == b"picture"
    assert image.sha256 == hashlib.sha256(b"picture").digest()
    assert (seen.request.model.name, seen.request.model.version) == ("plates", "3")
    assert seen.request.parameters.confidence_threshold == 0.5
    assert seen.request.parameters.max_detections == 7
    assert not seen.request.parameters.HasField("iou_threshold")
    assert not seen.request.parameters.HasField("top_k")
    assert dict(seen.request.context) == {"plant": "3"}
    assert seen.request.client.name == "sightline-edge"
    assert seen.request.client.version == version()
    assert seen.request.client.platform == f"{platform.system()}-{platform.machine()}".lower()
    assert seen.metadata["authorization"] == "Bearer s3cret"
    assert seen.metadata["traceparent"] == TRACE
    assert uuid.UUID(str(seen.metadata["idempotency-key"])).version == 4
    assert seen.time_remaining is not None
    assert 7.0 < seen.time_remaining < 8.5  # gRPC rounds it up on the wire


def test_without_hint_parameters_trace_and_key_none_are_sent(client_class: Any) -> None:
    with serving(Reply()) as fake:
        client_class(fake.target).infer([b"picture"])
    (seen,) = fake.seen
    assert not seen.request.HasField("model")
    assert not seen.request.HasField("parameters")
    assert "authorization" not in seen.metadata
    assert "traceparent" not in seen.metadata


def test_every_call_has_its_own_key_unless_it_is_given_one() -> None:
    key = str(uuid.uuid4())
    with serving(Reply()) as fake, InferenceClient(fake.target) as client:
        for idempotency_key in (None, None, key, key):
            client.infer([b"picture"], idempotency_key=idempotency_key)
    keys = [seen.metadata["idempotency-key"] for seen in fake.seen]
    assert len(set(keys[:2])) == 2
    assert keys[2:] == [key, key]


def test_a_replayed_answer_says_so(client_class: Any) -> None:
    with serving(Reply(replayed=True)) as fake:
        assert client_class(fake.target).infer([b"picture"]).idempotent_replayed


def test_classes_and_errors_of_single_images(client_class: Any) -> None:
    classified = inference_pb2.ImageResult(
        image_width=8,
        image_height=4,
        classes=[inference_pb2.ClassScore(class_id=2, class_name="ok", probability=0.5)],
    )
    corrupt = inference_pb2.ImageResult(
        error=inference_pb2.ImageError(code=3, reason="IMAGE_CORRUPT", message="cut off")
    )
    with serving(Reply([classified, corrupt])) as fake:
        answer = client_class(fake.target).infer([b"a", b"b"])
    good, bad = answer.results
    assert good.classes == (ClassScore(2, "ok", 0.5),)
    assert bad.error is not None
    assert (bad.error.code, bad.error.reason, bad.error.message) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "IMAGE_CORRUPT",
        "cut off",
    )


def test_labels_that_the_log_does_not_take_are_shortened(client_class: Any) -> None:
    prompt = "a plate of metal, " * 20
    result = inference_pb2.ImageResult(
        detections=[prediction_pb2.Detection(class_name=prompt, confidence=0.5)],
        classes=[inference_pb2.ClassScore(class_name=prompt, probability=0.5)],
    )
    with serving(Reply([result])) as fake:
        (image,) = client_class(fake.target).infer([b"picture"]).results
    for found in (image.detections[0], image.classes[0]):
        assert len(found.class_name.encode()) <= 256
        assert found.class_name.endswith("metal, ")


def test_an_error_comes_with_its_details(client_class: Any) -> None:
    refused = invalid("images[0].data", "must be a picture", reason="IMAGE_CORRUPT")
    with serving(Refuse(refused)) as fake, pytest.raises(SightlineError) as caught:
        client_class(fake.target).infer([b"not a picture"])
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.reason == "IMAGE_CORRUPT"
    assert caught.value.violations == (FieldViolation("images[0].data", "must be a picture"),)
    assert caught.value.category is Category.VALIDATION
    assert len(fake.seen) == 1


def test_the_servers_retry_delay_is_passed_on(client_class: Any) -> None:
    busy = SightlineError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "full", retry_after=0.25
    )
    with serving(Refuse(busy)) as fake, pytest.raises(SightlineError) as caught:
        client_class(fake.target).infer([b"picture"])
    assert caught.value.retry_after == 0.25
    assert caught.value.retryable
    assert len(fake.seen) == 1  # one try per call


def test_a_call_ends_at_its_timeout_and_the_server_hears_of_it(client_class: Any) -> None:
    with serving(Hang()) as fake:
        began = time.monotonic()
        with pytest.raises(SightlineError) as caught:
            client_class(fake.target).infer([b"picture"], timeout=0.3)
        assert 0.25 < time.monotonic() - began < 3.0
        assert fake.left.wait(5)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert caught.value.category is Category.TIMEOUT


def test_nobody_listening_is_unavailable(client_class: Any) -> None:
    with serving(Reply()) as fake:
        pass
    with pytest.raises(SightlineError) as caught:
        client_class(fake.target).infer([b"picture"], timeout=2.0)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"images": []}, "images"),
        ({"images": b"a picture, not a list"}, "images"),
        ({"images": [b""]}, "images[0]"),
        ({"images": [b"x", 3]}, "images[1]"),
        ({"images": [Path("no/such/file.jpg")]}, "images[0]"),
        ({"images": ["with\0nul"]}, "images[0]"),
        ({"image_ids": ["a", "b"]}, "image_ids"),
        (
            {"parameters": InferParameters(confidence_threshold=1.01)},
            "parameters.confidence_threshold",
        ),
        (
            {"parameters": InferParameters(confidence_threshold=float("nan"))},
            "parameters.confidence_threshold",
        ),
        ({"parameters": InferParameters(iou_threshold=-0.1)}, "parameters.iou_threshold"),
        ({"parameters": InferParameters(max_detections=0)}, "parameters.max_detections"),
        ({"parameters": InferParameters(max_detections=10_001)}, "parameters.max_detections"),
        ({"parameters": InferParameters(top_k=1001)}, "parameters.top_k"),
        (
            {"parameters": InferParameters(polygon_tolerance=100.1)},
            "parameters.polygon_tolerance",
        ),
        (
            {"parameters": InferParameters(polygon_tolerance=float("nan"))},
            "parameters.polygon_tolerance",
        ),
        (
            {"parameters": InferParameters(mask_format="bitmap")},  # type: ignore[arg-type]
            "parameters.mask_format",
        ),
        ({"timeout": 0.0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": 3601.0}, "timeout"),
        ({"idempotency_key": "frame-1"}, "idempotency_key"),
        ({"idempotency_key": str(uuid.uuid1())}, "idempotency_key"),
        ({"traceparent": "00-xyz"}, "traceparent"),
        ({"context": {str(n): "" for n in range(17)}}, "context"),
        ({"context": {"k" * 65: "x"}}, "context"),
        ({"context": {"": "x"}}, "context"),
        ({"context": {3: "x"}}, "context"),
        ({"context": {"\ud800": "x"}}, "context"),
        ({"context": {"line": "v" * 257}}, "context['line']"),
        ({"context": {"line": 4}}, "context['line']"),
        ({"context": {"line": "\ud800"}}, "context['line']"),
    ],
)
def test_a_bad_request_is_refused_by_name_before_anything_is_sent(
    client_class: Any, options: dict[str, Any], field: str
) -> None:
    arguments = {"images": [b"picture"], **options}
    with serving(Reply()) as fake, pytest.raises(SightlineError) as caught:
        client_class(fake.target).infer(**arguments)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in caught.value.violations] == [field]
    assert fake.seen == []


def test_bounds_themselves_are_allowed() -> None:
    with serving(Reply()) as fake, InferenceClient(fake.target) as client:
        for parameters in (
            InferParameters(0.0, 0.0, 1, 1, "off", 0.0),
            InferParameters(1.0, 1.0, 10_000, 1000, "rle", 100.0),
        ):
            client.infer([b"picture"], parameters=parameters)
    first, second = (seen.request.parameters for seen in fake.seen)
    assert (first.mask_format, second.mask_format) == (1, 3)
    assert (first.polygon_tolerance, second.polygon_tolerance) == (0.0, 100.0)
    assert first.HasField("polygon_tolerance")


def answered(*detections: prediction_pb2.Detection) -> Reply:
    return Reply(
        [inference_pb2.ImageResult(image_width=64, image_height=48, detections=detections)]
    )


def test_every_part_of_a_detection_is_read(client_class: Any) -> None:
    rle = prediction_pb2.Mask(width=4, height=2, rle="2113")
    outlines = prediction_pb2.Mask(polygons=[prediction_pb2.Polygon(points=[1, 2, 3, 2, 3, 4.5])])
    points = [
        prediction_pb2.Keypoint(x=-1, y=2, confidence=0),
        prediction_pb2.Keypoint(x=3, y=4.5),
    ]
    turned = prediction_pb2.RotatedBox(center_x=1, center_y=2, width=3, height=4, angle=0.5)
    reply = answered(
        prediction_pb2.Detection(confidence=0.5, mask=rle, keypoints=points),
        prediction_pb2.Detection(confidence=0.25, mask=outlines, rotated_box=turned),
    )
    with serving(reply) as fake:
        (result,) = client_class(fake.target).infer([b"picture"]).results
    assert result.detections == (
        Detection(
            0,
            "",
            0.5,
            mask=Mask(rle="2113", width=4, height=2),
            keypoints=(Keypoint(-1, 2, 0.0), Keypoint(3, 4.5)),
        ),
        Detection(
            0,
            "",
            0.25,
            mask=Mask(polygons=[[(1, 2), (3, 2), (3, 4.5)]]),
            rotated_box=RotatedBox(1, 2, 3, 4, 0.5),
        ),
    )


@pytest.mark.parametrize(
    "mask",
    [
        prediction_pb2.Mask(),
        prediction_pb2.Mask(rle="11", polygons=[prediction_pb2.Polygon(points=[1, 2] * 3)]),
        prediction_pb2.Mask(polygons=[prediction_pb2.Polygon(points=[1, 2, 3])]),
        prediction_pb2.Mask(polygons=[prediction_pb2.Polygon(points=[1, float("nan")] * 3)]),
    ],
)
def test_an_answer_that_breaks_a_rule_is_an_error_of_the_service(
    client_class: Any, mask: prediction_pb2.Mask
) -> None:
    reply = answered(prediction_pb2.Detection(confidence=0.5, mask=mask))
    with serving(reply) as fake, pytest.raises(SightlineError) as caught:
        client_class(fake.target).infer([b"picture"])
    assert caught.value.code is grpc.StatusCode.DATA_LOSS
    assert caught.value.reason == "ANSWER_INVALID"
    assert "images[0]" in caught.value.message


def test_models_have_their_task_and_their_keypoints(client_class: Any) -> None:
    listed = [
        inference_pb2.ModelInfo(name=name, task=task, keypoint_names=["tip"] * (name == "pose"))  # type: ignore[arg-type]
        for name, task in [("segment", 3), ("pose", 4), ("obb", 5), ("later", 99)]
    ]
    with serving(Reply()) as fake:
        fake.models = listed
        models = client_class(fake.target).list_models()
    assert [model.task for model in models] == ["segment", "pose", "obb", "unspecified"]
    assert [model.keypoint_names for model in models] == [(), ("tip",), (), ()]


def test_after_an_outage_the_next_connection_is_tried_inside_a_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # gRPC takes the first of two values of one option, so there must be only one.
    passed: list[tuple[str, object]] = []

    def record(target: str, options: list[tuple[str, object]]) -> grpc.Channel:
        passed.extend(options)
        return connect(target, options)

    connect = grpc.insecure_channel
    monkeypatch.setattr(grpc, "insecure_channel", record)
    with InferenceClient("127.0.0.1:1"):
        pass
    waits = [value for name, value in passed if name == "grpc.max_reconnect_backoff_ms"]
    assert waits == [1000]


def test_a_client_refuses_a_bad_default_timeout(client_class: Any) -> None:
    with pytest.raises(SightlineError, match="timeout"):
        client_class("127.0.0.1:1", timeout=-1.0).infer([b"picture"])


def test_models_are_listed(client_class: Any) -> None:
    with serving(Reply()) as fake:
        (model,) = client_class(Endpoint(fake.target, api_key="s3cret")).list_models()
    assert (model.name, model.version, model.task) == ("plates", "3", ModelTask.DETECT)
    assert model.labels == ("scratch", "pit")
    assert (model.input_width, model.input_height) == (320, 256)
    assert (model.provider, model.default_version, model.default_model) == (
        "CPUExecutionProvider",
        True,
        False,
    )
    (seen,) = fake.seen
    assert seen.metadata["authorization"] == "Bearer s3cret"
    assert seen.time_remaining is not None
    assert seen.time_remaining < 8.5  # gRPC rounds it up on the wire


def test_listing_models_fails_as_a_sightline_error(client_class: Any) -> None:
    denied = SightlineError(grpc.StatusCode.UNAUTHENTICATED, "NO_KEY", "no key")
    with serving(Refuse(denied)) as fake, pytest.raises(SightlineError) as caught:
        client_class(fake.target).list_models(timeout=2.0)
    assert (caught.value.code, caught.value.reason) == (denied.code, "NO_KEY")
