"""Clients and servers of the contract before rotated boxes, keypoints and masks.

`contract_of_boxes.binpb` is that contract, as a `google.protobuf.FileDescriptorSet`.
"""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet
from sightline.ingest.v1 import ingest_service_pb2 as new
from sightline.ingest.v1.ingest_pb2 import PredictionFilter
from sightline.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from sightline.ingest.v1.reads_pb2 import ListDevicesRequest

from edge.log.encode import prediction_body
from edge.wire import messages, prediction_entry, sequence_field
from sightline import (
    Box,
    Detection,
    DetectionArrays,
    Keypoint,
    Mask,
    Prediction,
    PredictionLogger,
    RotatedBox,
)
from sightline.cli.processes import ServiceProcess
from tests.unit.ingest_service import samples

SERVICE = "/sightline.ingest.v1.IngestService"
BOX = Box(1, 2, 30, 40)
SHAPES: dict[str, Any] = {
    "rotated_box": RotatedBox(15, 20, 9, 4, 0.5),
    "keypoints": [Keypoint(1, 2, 0.5), Keypoint(3, 4)],
    "mask": Mask([[(1, 2), (30, 2), (30, 40)]]),
}


class OldContract:
    """The messages of the older contract."""

    def __init__(self) -> None:
        files = FileDescriptorSet.FromString(
            (Path(__file__).parent / "contract_of_boxes.binpb").read_bytes()
        )
        self._pool = DescriptorPool()
        for file in files.file:
            self._pool.Add(file)

    def message(self, name: str) -> Any:
        """Return the class of a message, such as `ingest.v1.LogHeader`."""
        return GetMessageClass(self._pool.FindMessageTypeByName(f"sightline.{name}"))


@pytest.fixture(scope="module")
def old() -> OldContract:
    return OldContract()


@pytest.fixture
def channel(ingest: ServiceProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(ingest.address) as channel:
        yield channel


def unknown(message: Message) -> list[int]:
    """Return the numbers of the fields that a message does not know."""
    fields: Any = UnknownFieldSet(message)  # whose stubs lack the iteration
    return sorted({field.field_number for field in fields})


def listed(channel: grpc.Channel, device: str, response: Any) -> list[Any]:
    """Return the predictions of a device as a client of either contract reads them."""
    call = channel.unary_unary(
        f"{SERVICE}/ListPredictions",
        request_serializer=new.ListPredictionsRequest.SerializeToString,
        response_deserializer=response.FromString,
    )
    page = call(
        new.ListPredictionsRequest(filter=PredictionFilter(device_ids=[device])), timeout=30
    )
    return [row.prediction for row in page.predictions]


def test_an_old_client_s_predictions_are_stored_and_read_by_a_new_one(
    old: OldContract, channel: grpc.Channel
) -> None:
    sent = old.message("types.v1.Prediction")()
    sent.MergeFromString(samples.prediction(1, labels={"line": "4"}).SerializeToString())
    header = {"device_id": "old-client", "spool_id": str(uuid.uuid4())}
    request = old.message("ingest.v1.PredictionLogRequest")(header=header)
    request.predictions.add().CopyFrom(sent)
    call = channel.stream_unary(
        f"{SERVICE}/PredictionLog",
        request_serializer=type(request).SerializeToString,
        response_deserializer=old.message("ingest.v1.PredictionLogResponse").FromString,
    )
    answer = call(iter([request]), timeout=30)
    assert (answer.accepted, answer.rejected, unknown(answer)) == (1, 0, [])
    (stored,) = listed(channel, "old-client", new.ListPredictionsResponse)
    assert stored.SerializeToString(deterministic=True) == sent.SerializeToString(
        deterministic=True
    )


def test_the_account_of_a_node_passes_between_the_contracts(
    old: OldContract, ingest: ServiceProcess, channel: grpc.Channel, tmp_path: Path
) -> None:
    """An old client sends none, and an old server reads all else of a header that has one."""
    header = {"device_id": "a-old", "spool_id": str(uuid.uuid4())}
    request = old.message("ingest.v1.PredictionLogRequest")(header=header)
    call = channel.stream_unary(
        f"{SERVICE}/PredictionLog",
        request_serializer=type(request).SerializeToString,
        response_deserializer=new.PredictionLogResponse.FromString,
    )
    call(iter([request]), timeout=30)
    with PredictionLogger(ingest.address, device_id="a-new", spool_dir=tmp_path / "s") as log:
        log(Prediction("image", "parts"))
        assert log.flush(30, until="committed")
    names = ListDevicesRequest(device_ids=["a-old", "a-new"])
    newer, older = IngestServiceStub(channel).ListDevices(names, timeout=30).devices
    assert not older.HasField("account")
    assert older.HasField("stream_opened_at")
    assert (newer.account.logged, newer.account.waiting_predictions) == (1, 1)
    sent = samples.header(client="camera", account=newer.account)
    read = old.message("ingest.v1.LogHeader").FromString(sent.SerializeToString())
    assert (read.device_id, read.client, unknown(read)) == ("gate-1", "camera", [7])


def test_an_old_client_reads_the_boxes_of_what_a_new_one_logs(
    old: OldContract, ingest: ServiceProcess, channel: grpc.Channel, tmp_path: Path
) -> None:
    detections = [Detection(1, "pit", 0.5, BOX, **SHAPES), Detection(2, "rod", 0.25, BOX)]
    with PredictionLogger(ingest.address, device_id="new-client", spool_dir=tmp_path / "s") as log:
        log(Prediction("image", "parts", detections=detections))
        assert log.flush(30, until="committed")
    (stored,) = listed(channel, "new-client", old.message("ingest.v1.ListPredictionsResponse"))
    with_shapes, plain = stored.detections
    assert [(d.class_name, d.box.x_max) for d in stored.detections] == [("pit", 30), ("rod", 30)]
    assert (unknown(with_shapes), unknown(plain)) == ([6, 7, 8], [])
    (stored,) = listed(channel, "new-client", new.ListPredictionsResponse)
    assert stored.detections[0].mask.polygons[0].points == [1, 2, 30, 2, 30, 40]
    assert (
        IngestServiceStub(channel)
        .GetStats(
            new.GetStatsRequest(filter=PredictionFilter(device_ids=["new-client"])), timeout=30
        )
        .total_detections
        == 2
    )


@pytest.mark.parametrize("arrays", [False, True])
def test_an_old_server_reads_the_boxes_that_a_new_client_sends(
    old: OldContract, arrays: bool
) -> None:
    shaped: Any = [Detection(1, "pit", 0.5, BOX, **SHAPES)]
    plain: Any = [Detection(1, "pit", 0.5, BOX)]
    if arrays:
        shaped = DetectionArrays(
            [[1, 2, 30, 40]],
            [0.5],
            [1],
            class_name=["pit"],
            rotated_boxes=[[15, 20, 9, 4, 0.5]],
            keypoints=[[(1, 2, 0.5), (3, 4, 1)]],
            masks=[SHAPES["mask"]],
        )
    received = []
    for detections in (shaped, plain):
        body = prediction_body(Prediction("image", "parts", detections=detections), 1.0)
        (message,) = messages(b"", [prediction_entry(sequence_field(1) + body)], 32)
        received.append(old.message("ingest.v1.PredictionLogRequest").FromString(message))
    (detection,) = received[0].predictions[0].detections
    assert unknown(detection) == [6, 7, 8]
    received[0].DiscardUnknownFields()
    assert received[0] == received[1]
