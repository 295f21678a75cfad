"""Figures: each caller counts its own devices, and nobody without the scope."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sightline.ingest.v1 import ingest_pb2, reads_pb2
from sightline.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub

from servicekit.errors import from_rpc_error
from tests.integration.auth.conftest import MakeKey
from tests.integration.auth.services import PATIENCE, Client, ingest, logged, refusal

KEYS = {
    "writer": ("log", "*"),
    "all": ("read", "*"),
    "own": ("read", "gate-1"),
    "some": ("read", "gate-*"),
}
COUNTED: dict[str, Callable[[Any], int]] = {
    "GetSeries": lambda answer: sum(bucket.predictions for bucket in answer.buckets),
    "GetFrame": lambda answer: int(answer.predictions),
    "GetConfidence": lambda answer: sum(answer.all.current),
    "ListModelVersions": lambda answer: sum(version.predictions for version in answer.versions),
}


@pytest.fixture
def clients(tmp_path: Path, key: MakeKey) -> Iterator[dict[str, Client]]:
    """A service with a prediction of two devices, and a client for each key."""
    credentials = {name: key(name, *rights) for name, rights in KEYS.items()}
    with ingest(tmp_path, "--api-keys-file", str(tmp_path / "keys.db")) as service:
        made = {name: Client(service, credential) for name, credential in credentials.items()}
        for device in ("gate-1", "gate-2"):
            message = logged(device)
            message.predictions[0].detections.add(confidence=0.5)
            made["writer"].stream(iter([message]))
        yield {**made, "nobody": Client(service)}


def count(client: Client, method: str, *devices: str) -> int:
    """Return how many predictions (for confidences: detections) a figure counts."""
    selection = ingest_pb2.PredictionFilter(device_ids=devices)
    ask = getattr(reads_pb2, f"{method}Request")(filter=selection)
    try:
        stub = getattr(IngestServiceStub(client.channel), method)
        answer = stub(ask, timeout=PATIENCE, metadata=client.metadata)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    return COUNTED[method](answer)


def test_figures_count_the_devices_of_the_caller(clients: dict[str, Client]) -> None:
    for method in COUNTED:
        whole, own = count(clients["all"], method), count(clients["own"], method)
        assert whole == 2 * own, method
        assert own == count(clients["some"], method, "gate-1") > 0, method
        for name, devices, reason in (
            ("nobody", (), "CREDENTIAL_MISSING"),
            ("writer", (), "SCOPE_MISSING"),
            ("own", ("gate-2",), "DEVICE_NOT_ALLOWED"),
            ("own", ("gate-1", "gate-2"), "DEVICE_NOT_ALLOWED"),
            ("some", (), "DEVICE_FILTER_REQUIRED"),
            ("some", ("line-1",), "DEVICE_NOT_ALLOWED"),
        ):
            assert refusal(count, clients[name], method, *devices).reason == reason, method
