"""Every task through the cloud's door, compared with ultralytics' own answers on the same files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import numpy as np
import pytest
from sightline.openinference.v2 import open_inference_pb2 as oip
from sightline.openinference.v2 import open_inference_pb2_grpc

from edge.cloud.client import InferenceClient
from edge.cloud.types import InferAnswer, InferParameters, ModelHint, ModelTask
from edge.records import Detection, Mask
from tests.integration.inference.process import InferenceProcess, started
from tests.integration.vision import test_ultralytics_tasks as exports
from tests.integration.vision.export_list import CONFIDENCE, EXPORTS, FAST, MORE, SLOW
from vision import (
    Detections,
    OnnxYolo,
    PolygonMask,
    RleMask,
    decode_image,
)

pytestmark = exports.pytestmark
shared, picture = exports.shared, exports.picture


@pytest.fixture(scope="module")
def fast_service(
    shared: Path, picture: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[InferenceProcess]:
    yield from service(tmp_path_factory.mktemp("fast"), shared, picture, list(FAST))


@pytest.fixture(scope="module")
def slow_service(
    shared: Path, picture: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[InferenceProcess]:
    yield from service(tmp_path_factory.mktemp("slow"), shared, picture, list(SLOW))


@pytest.fixture(scope="module")
def more_service(
    shared: Path, picture: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[InferenceProcess]:
    yield from service(tmp_path_factory.mktemp("more"), shared, picture, list(MORE))


def service(
    folder: Path, shared: Path, picture: Path, names: Sequence[str]
) -> Iterator[InferenceProcess]:
    """Serve the exports with these names."""
    models = folder / "models"
    for name in names:
        path, _ = exports.answers(shared, picture, name)
        (models / name / "1").mkdir(parents=True)
        (models / name / "1" / "model.onnx").symlink_to(path)
    flags = [
        *("--model-repository", str(models), "--default-model", names[0]),
        *("--max-batch-size", "4", "--batch-wait-seconds", "0.05"),
    ]
    with started(folder, *flags) as process:
        yield process


def ask(
    process: InferenceProcess,
    picture: Path,
    name: str,
    parameters: InferParameters | None = None,
) -> InferAnswer:
    with InferenceClient(process.address, timeout=60.0) as client:
        return client.infer(
            [picture],
            model=ModelHint(name),
            parameters=parameters or InferParameters(CONFIDENCE, mask_format="rle"),
        )


def arrays(detections: Sequence[Detection]) -> Detections:
    """Return the records of an answer as arrays."""
    boxes = [d.box for d in detections if d.box is not None]
    turned = [d.rotated_box for d in detections if d.rotated_box is not None]
    masks = [d.mask for d in detections if d.mask is not None]
    points = [
        [(p.x, p.y) if p.confidence is None else (p.x, p.y, p.confidence) for p in d.keypoints]
        for d in detections
        if d.keypoints
    ]
    return Detections(
        np.array([(b.x_min, b.y_min, b.x_max, b.y_max) for b in boxes], np.float32),
        np.array([d.confidence for d in detections], np.float32),
        np.array([d.class_id for d in detections]),
        rotated=np.array(
            [(b.center_x, b.center_y, b.width, b.height, b.angle) for b in turned], np.float32
        )
        if turned
        else None,
        keypoints=np.array(points, np.float32) if points else None,
        masks=tuple(map(mask_of, masks)) if masks else None,
    )


def mask_of(mask: Mask) -> RleMask | PolygonMask:
    if mask.rle:
        return RleMask(mask.height, mask.width, mask.rle)
    return PolygonMask(tuple(np.reshape(ring, (-1, 2)) for ring in mask.polygons))


def check(process: InferenceProcess, shared: Path, picture: Path, name: str) -> None:
    _, theirs = exports.answers(shared, picture, name)
    answer = ask(process, picture, name)
    (result,) = answer.results
    assert (result.image_width, result.image_height) == exports.PICTURE
    assert answer.model_name == name
    assert answer.timing.post > 0
    if "probabilities" in theirs:
        assert len(result.classes) == 5
        for score in result.classes:
            expected = float(theirs["probabilities"][score.class_id])
            assert score.probability == pytest.approx(expected, abs=1e-5)
        return
    ours = arrays(result.detections)
    for key, part in (("rotated", ours.rotated), ("keypoints", ours.keypoints)):
        assert (part is None) == (key not in theirs)
    assert (ours.masks is None) == ("masks" not in theirs)
    exports.compare(ours, theirs)


@pytest.mark.parametrize("name", FAST)
def test_the_cloud_answers_as_ultralytics(
    fast_service: InferenceProcess, shared: Path, picture: Path, name: str
) -> None:
    check(fast_service, shared, picture, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_the_cloud_answers_as_ultralytics_for_every_family(
    slow_service: InferenceProcess, shared: Path, picture: Path, name: str
) -> None:
    check(slow_service, shared, picture, name)


@pytest.mark.soak
@pytest.mark.parametrize("name", MORE)
def test_the_cloud_answers_as_ultralytics_for_more_exports(
    more_service: InferenceProcess, shared: Path, picture: Path, name: str
) -> None:
    check(more_service, shared, picture, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v8-segment-dynamic", "v8-pose-dynamic", "v8-obb-dynamic"])
def test_images_of_one_run_get_their_own_answers(
    slow_service: InferenceProcess, picture: Path, name: str
) -> None:
    pixels = decode_image(picture.read_bytes())
    images = [pixels, np.ascontiguousarray(pixels[::-1]), pixels // 2, pixels[:100]]
    parameters = InferParameters(CONFIDENCE, mask_format="rle")
    with InferenceClient(slow_service.address, timeout=60.0, array_format="png") as client:
        together = client.infer(images, model=ModelHint(name), parameters=parameters)
        single = [
            client.infer([image], model=ModelHint(name), parameters=parameters).results[0]
            for image in images
        ]
    assert len({result.detections for result in together.results}) == len(images)
    for one, other in zip(together.results, single, strict=True):
        assert len(one.detections) == len(other.detections)
        ours, theirs = arrays(one.detections), arrays(other.detections)
        assert np.abs(ours.xyxy - theirs.xyxy).max(initial=0) <= 0.1


def test_models_are_listed_with_their_tasks_and_keypoints(fast_service: InferenceProcess) -> None:
    with InferenceClient(fast_service.address) as client:
        models = {model.name: model for model in client.list_models()}
    assert set(models) == set(FAST)
    for name, model in models.items():
        task = next((task for task in exports.TASKS if task in name), "detect")
        assert model.task is ModelTask(task)
        points = (EXPORTS[name].changes.get("kpt_shape") or (17, 3))[0]
        assert len(model.keypoint_names) == (points if task == "pose" else 0)


@pytest.mark.parametrize("tolerance", [0.0, 3.0])
def test_masks_come_in_the_form_that_is_asked_for(
    fast_service: InferenceProcess, shared: Path, picture: Path, tolerance: float
) -> None:
    name = "v8-segment"
    path, _ = exports.answers(shared, picture, name)
    exact = OnnxYolo.load(path).detect(
        decode_image(picture.read_bytes()),
        confidence=CONFIDENCE,
        mask_format="polygon",
        tolerance=tolerance,
    )
    parameters = InferParameters(CONFIDENCE, mask_format="polygon", polygon_tolerance=tolerance)
    (result,) = ask(fast_service, picture, name, parameters).results
    assert exact.masks is not None
    for detection, mask in zip(result.detections, exact.masks, strict=True):
        assert isinstance(mask, PolygonMask)
        assert (detection.mask is None) == (not mask.rings)
        if detection.mask is not None:
            found = [np.reshape(ring, (-1, 2)).tolist() for ring in detection.mask.polygons]
            assert found == [ring.tolist() for ring in mask.rings]


def test_the_open_inference_protocol_has_all_outputs_of_a_model(
    fast_service: InferenceProcess, shared: Path, picture: Path
) -> None:
    path, _ = exports.answers(shared, picture, "v8-segment")
    model = OnnxYolo.load(path)
    batch, _ = model.prepare(decode_image(picture.read_bytes()))
    expected = model.session.run(batch)
    request = oip.ModelInferRequest(model_name="v8-segment")
    tensor = request.inputs.add(name="images", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(picture.read_bytes())
    with grpc.insecure_channel(fast_service.address) as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        listed = stub.ModelMetadata(oip.ModelMetadataRequest(name="v8-segment"), timeout=30)
        answer = stub.ModelInfer(request, timeout=30)
    assert [output.name for output in listed.outputs] == ["output0", "output1"]
    assert [list(output.shape) for output in answer.outputs] == [
        list(output.shape) for output in expected
    ]
    for content, output in zip(answer.raw_output_contents, expected, strict=True):
        assert np.frombuffer(content, np.float32) == pytest.approx(output.ravel(), abs=1e-4)


def test_masks_can_be_turned_off_and_are_polygons_by_default(
    fast_service: InferenceProcess, picture: Path
) -> None:
    off = ask(fast_service, picture, "v8-segment", InferParameters(mask_format="off")).results[0]
    assert off.detections
    assert all(detection.mask is None for detection in off.detections)
    default = ask(fast_service, picture, "v8-segment", InferParameters()).results[0]
    assert any(detection.mask is not None for detection in default.detections)
    assert not any(detection.mask and detection.mask.rle for detection in default.detections)
