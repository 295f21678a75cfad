"""Pictures in, answers out, over a real socket; and everything that can be wrong with a picture."""

import hashlib
import io

import grpc
import pytest
from PIL import Image
from sightline.inference.v1 import inference_pb2, inference_service_pb2

from tests.integration.inference.process import InferenceStub, failure, names
from tests.unit.inference_service.tiny_onnx import bomb, corrupt, picture

RED, BLUE = picture((255, 0, 0)), picture((0, 0, 255), size=(256, 128), kind="JPEG")


def test_one_image(quick: InferenceStub) -> None:
    digest = hashlib.sha256(BLUE).digest()
    answer = quick.infer(inference_pb2.Image(image_id="b", data=BLUE, sha256=digest))
    (result,) = answer.results
    assert names(result) == ["blue"]
    assert (result.image_id, result.image_width, result.image_height) == ("b", 256, 128)
    box = result.detections[0].box
    assert [box.x_min, box.y_min, box.x_max, box.y_max] == pytest.approx([64, 32, 192, 96])
    assert (answer.model_name, answer.model_version) == ("colours", "2")


def test_every_stage_is_timed(quick: InferenceStub) -> None:
    timing = quick.infer(RED, BLUE).timing
    stages = [timing.validate, timing.queue, timing.decode, timing.infer, timing.post]
    assert all(stage.ToNanoseconds() > 0 for stage in stages)
    longest = max(stage.ToNanoseconds() for stage in stages)
    assert timing.total.ToNanoseconds() > longest / 2  # two pictures side by side


def test_answers_come_in_the_order_of_the_images(quick: InferenceStub) -> None:
    answer = quick.infer(BLUE, RED, BLUE)
    assert [names(result) for result in answer.results] == [["blue"], ["red"], ["blue"]]


def test_a_caller_may_choose_model_version_and_thresholds(quick: InferenceStub) -> None:
    hint = inference_pb2.ModelHint(name="colours", version="1")
    assert quick.infer(RED, model=hint).model_version == "1"
    assert quick.infer(RED, model=inference_pb2.ModelHint(name="other")).model_name == "other"
    half = picture((140, 0, 0))
    for threshold, expected in ((0.4, ["red"]), (0.6, [])):
        message = inference_pb2.InferParameters(confidence_threshold=threshold)
        assert names(quick.infer(half, parameters=message).results[0]) == expected


def test_one_bad_image_of_several_fails_alone(quick: InferenceStub) -> None:
    torn = inference_pb2.Image(data=corrupt(), image_id="torn")
    first, second, third, fourth = quick.infer(RED, b"no picture", torn, BLUE).results
    assert (names(first), names(fourth)) == (["red"], ["blue"])
    assert not first.HasField("error")
    assert (second.error.code, second.error.reason) == (3, "IMAGE_TYPE_UNSUPPORTED")
    assert (third.error.code, third.error.reason) == (3, "IMAGE_CORRUPT")
    assert third.image_id == "torn"
    assert (third.image_width, third.image_height) == (0, 0)
    assert "images[2]" in third.error.message


@pytest.mark.parametrize(
    ("image", "reason", "field"),
    [
        (b"", "IMAGE_EMPTY", "images[0].data"),
        (b"<html>", "IMAGE_TYPE_UNSUPPORTED", "images[0].data"),
        (RED + bytes(200_000), "IMAGE_TOO_LARGE", "images[0].data"),
        (bomb(), "IMAGE_DIMENSIONS_TOO_LARGE", "images[0].data"),
        (bomb(1001, 1000), "IMAGE_DIMENSIONS_TOO_LARGE", "images[0].data"),
        (bomb(1000, 1000), "IMAGE_CORRUPT", "images[0].data"),
        (corrupt(), "IMAGE_CORRUPT", "images[0].data"),
        (
            inference_pb2.Image(data=RED, sha256=bytes(32)),
            "IMAGE_HASH_MISMATCH",
            "images[0].sha256",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_image_that_is_refused(
    quick: InferenceStub, image: bytes | inference_pb2.Image, reason: str, field: str
) -> None:
    error = quick.refusal(image)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == reason
    assert [violation.field for violation in error.violations] == [field]
    assert not error.retryable


def test_all_images_corrupt_is_a_failed_call(quick: InferenceStub) -> None:
    error = quick.refusal(corrupt(), corrupt())
    assert error.reason == "IMAGE_CORRUPT"
    assert [v.field for v in error.violations] == ["images[0].data", "images[1].data"]


def test_a_request_that_is_refused_whole(quick: InferenceStub) -> None:
    assert [v.field for v in quick.refusal().violations] == ["images"]
    assert [v.field for v in quick.refusal(*[RED] * 5).violations] == ["images"]
    message = inference_pb2.InferParameters(iou_threshold=2)
    error = quick.refusal(RED, parameters=message)
    assert [v.field for v in error.violations] == ["parameters.iou_threshold"]


def test_unknown_models(quick: InferenceStub) -> None:
    error = quick.refusal(RED, model=inference_pb2.ModelHint(name="nobody"))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    error = quick.refusal(RED, model=inference_pb2.ModelHint(version="7"))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_VERSION_NOT_FOUND")


def test_a_message_over_the_limit_is_refused_before_it_is_read(quick: InferenceStub) -> None:
    assert quick.refusal(bytes(1_000_001)).code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_bytes_that_are_no_request_do_no_harm(quick: InferenceStub) -> None:
    error = failure(lambda: quick.raw(b"\xff\xff no request", timeout=10))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")
    assert names(quick.infer(RED).results[0]) == ["red"]


def test_list_models(quick: InferenceStub) -> None:
    listed = quick.stub.ListModels(inference_service_pb2.ListModelsRequest(), timeout=10).models
    assert [(m.name, m.version) for m in listed] == [
        ("colours", "1"),
        ("colours", "2"),
        ("other", "1"),
    ]
    assert [m.default_version for m in listed] == [False, True, True]
    assert [m.default_model for m in listed] == [True, True, False]
    for model in listed:
        assert model.task == inference_pb2.MODEL_TASK_DETECT
        assert list(model.labels) == ["red", "green", "blue"]
        assert (model.input_width, model.input_height) == (64, 64)
        assert model.provider == "CPUExecutionProvider"


def test_an_image_is_looked_at_upright(quick: InferenceStub) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    buffer = io.BytesIO()
    Image.new("RGB", (256, 128), (0, 0, 255)).save(buffer, "JPEG", exif=exif)
    (result,) = quick.infer(buffer.getvalue()).results
    assert (result.image_width, result.image_height) == (128, 256)
    box = result.detections[0].box
    assert [box.x_min, box.y_min, box.x_max, box.y_max] == pytest.approx([0, 96, 128, 160])
