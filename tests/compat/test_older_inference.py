"""Clients and servers of the inference contract before rotated boxes, keypoints and masks."""

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest

from edge.cloud.client import InferenceClient
from edge.cloud.types import InferAnswer, InferParameters, ModelHint, ModelTask
from edge.records import Box, Detection
from models.plates import make_plate, to_jpeg
from sightline.cli.processes import ServiceProcess
from tests.compat.test_older_contract import OldContract, unknown
from tests.integration.edge_ask.task_models import TASKS, save_models

SERVICE = "sightline.inference.v1.InferenceService"
IMAGE = to_jpeg(make_plate(3).image)
MASKS = InferParameters(mask_format="rle", polygon_tolerance=2.0)


@pytest.fixture(scope="module")
def old() -> OldContract:
    return OldContract()


@pytest.fixture(scope="module")
def inference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    models = tmp_path_factory.mktemp("models")
    save_models(models)
    flags = ["--listen", "127.0.0.1:0", "--model-repository", str(models)]
    with ServiceProcess("inference_service", [*flags, "--default-model", "segment"]) as service:
        yield service


def called(old: OldContract, target: str, method: str, request: Any) -> Any:
    """Call a method with messages of the older contract."""
    metadata = (("idempotency-key", str(uuid.uuid4())),)
    with grpc.insecure_channel(target) as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=old.message(f"inference.v1.{method}Response").FromString,
        )
        return call(request, timeout=30, metadata=metadata)


@pytest.mark.parametrize("task", TASKS)
def test_an_old_client_gets_the_boxes_of_every_task(
    old: OldContract, inference: ServiceProcess, task: str
) -> None:
    request = old.message("inference.v1.InferRequest")(model={"name": task})
    request.images.add(data=IMAGE)
    (result,) = called(old, inference.address, "Infer", request).results
    with InferenceClient(inference.address) as client:
        (expected,) = client.infer([IMAGE], model=ModelHint(task)).results
    assert [(d.class_name, d.confidence, d.box.x_min) for d in result.detections] == [
        (d.class_name, d.confidence, d.box and d.box.x_min) for d in expected.detections
    ]
    number = {"obb": 6, "pose": 7, "segment": 8}[task]
    assert [unknown(detection) for detection in result.detections] == [[number]] * 2


def test_an_old_client_lists_models_of_new_tasks(
    old: OldContract, inference: ServiceProcess
) -> None:
    request = old.message("inference.v1.ListModelsRequest")()
    models = called(old, inference.address, "ListModels", request).models
    assert [(model.name, model.task, model.labels[0]) for model in models] == [
        ("obb", 5, "plate"),
        ("pose", 4, "plate"),
        ("segment", 3, "plate"),
    ]


@contextmanager
def serving_old(old: OldContract, answers: dict[str, Callable[[Any], Any]]) -> Iterator[str]:
    """Serve methods with messages of the older contract; yield the address."""
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            lambda request, _context, answer=answer: answer(request),
            request_deserializer=old.message(f"inference.v1.{name}Request").FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )
        for name, answer in answers.items()
    }
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_an_old_server_answers_a_new_client_that_asks_for_masks(old: OldContract) -> None:
    seen: list[Any] = []

    def infer(request: Any) -> Any:
        seen.append(request)
        response = old.message("inference.v1.InferResponse")(model_name="plates")
        found = response.results.add(image_width=4, image_height=3).detections.add(class_id=1)
        found.box.x_max = found.box.y_max = 2
        return response

    def list_models(_request: Any) -> Any:
        response = old.message("inference.v1.ListModelsResponse")()
        response.models.add(name="plates", task=1)
        return response

    with (
        serving_old(old, {"Infer": infer, "ListModels": list_models}) as target,
        InferenceClient(target) as client,
    ):
        answer: InferAnswer = client.infer([np.zeros((3, 4, 3), np.uint8)], parameters=MASKS)
        (model,) = client.list_models()
    assert answer.results[0].detections == (Detection(1, "", 0.0, Box(0, 0, 2, 2)),)
    assert (model.task, model.keypoint_names) == (ModelTask.DETECT, ())
    assert unknown(seen[0].parameters) == [5, 6]
    assert unknown(seen[0]) == [5]  # the client
