"""Following the log and SQL: each caller sees its own devices, and nobody more than its scope."""

import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from sightline.ingest.v1 import ingest_pb2, reads_pb2
from sightline.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub

from servicekit.auth.key_file import KeyFile
from servicekit.errors import SightlineError, from_rpc_error
from sightline.cli.processes import ServiceProcess
from tests.integration.auth.conftest import MakeKey
from tests.integration.auth.services import PATIENCE, Client, ingest, refusal

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


KEYS = {
    "writer": ("log", "*"),
    "gate-1": ("log", "gate-1"),
    "all": ("read", "*"),
    "own": ("read", "gate-1"),
    "some": ("read", "gate-*"),
}


@pytest.fixture
def credentials(key: MakeKey) -> dict[str, str]:
    """Keys that exist before the service starts, by name."""
    return {name: key(name, *rights) for name, rights in KEYS.items()}


@pytest.fixture
def service(tmp_path: Path, credentials: dict[str, str]) -> Iterator[ServiceProcess]:
    assert credentials
    with ingest(tmp_path, "--api-keys-file", str(tmp_path / "keys.db")) as made:
        yield made


def watch(client: Client, *devices: str) -> Iterator[reads_pb2.WatchPredictionsResponse]:
    """Follow the log; the first message has come."""
    ask = reads_pb2.WatchPredictionsRequest(
        filter=ingest_pb2.PredictionFilter(device_ids=devices), max_per_second=1000
    )
    stub = IngestServiceStub(client.channel)
    call = stub.WatchPredictions(ask, timeout=PATIENCE, metadata=tuple(client.metadata))
    try:
        yield from call
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    finally:
        call.cancel()  # type: ignore[no-untyped-call]


def query(client: Client) -> int:
    """Return the number of messages that a query answers."""
    stub = IngestServiceStub(client.channel)
    ask = reads_pb2.QueryRequest(sql="SELECT count(*) FROM predictions")
    try:
        return len(list(stub.Query(ask, timeout=PATIENCE, metadata=tuple(client.metadata))))
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


def test_a_watch_shows_the_devices_of_the_caller(
    service: ServiceProcess, credentials: dict[str, str]
) -> None:
    writer = Client(service, credentials["writer"])
    everything = watch(Client(service, credentials["all"]))
    own = watch(Client(service, credentials["own"]))
    for stream in (everything, own):
        next(stream)
    for device in ("gate-2", "gate-1"):
        writer.log(device)
    seen: list[str] = []
    while len(seen) < 2:
        seen += [row.device_id for row in next(everything).predictions]
    assert seen == ["gate-2", "gate-1"]
    assert [row.device_id for row in next(own).predictions] == ["gate-1"]


def test_the_token_of_another_caller_shows_no_more(
    service: ServiceProcess, credentials: dict[str, str]
) -> None:
    token = next(watch(Client(service, credentials["all"]))).resume_token
    own = Client(service, credentials["own"])
    ask = reads_pb2.WatchPredictionsRequest(resume_token=token)
    stub = IngestServiceStub(own.channel)
    with pytest.raises(grpc.RpcError) as caught:
        next(iter(stub.WatchPredictions(ask, timeout=PATIENCE, metadata=tuple(own.metadata))))
    assert from_rpc_error(caught.value).reason == "INVALID_RESUME_TOKEN"


def test_who_may_not_follow_or_ask(service: ServiceProcess, credentials: dict[str, str]) -> None:
    logger, own = Client(service, credentials["gate-1"]), Client(service, credentials["own"])
    some = Client(service, credentials["some"])
    for client, devices, reason in (
        (Client(service), (), "CREDENTIAL_MISSING"),
        (logger, (), "SCOPE_MISSING"),
        (own, ("gate-2",), "DEVICE_NOT_ALLOWED"),
        (some, (), "DEVICE_FILTER_REQUIRED"),
        (some, ("gate-1", "line-1"), "DEVICE_NOT_ALLOWED"),
    ):
        assert refusal(next, watch(client, *devices)).reason == reason
    for client, reason in (
        (Client(service), "CREDENTIAL_MISSING"),
        (logger, "SCOPE_MISSING"),
        (own, "DEVICE_NOT_ALLOWED"),
        (some, "DEVICE_NOT_ALLOWED"),
    ):
        assert refusal(query, client).reason == reason
    assert query(Client(service, credentials["all"])) == 2


def test_a_revoked_key_ends_its_watch(
    service: ServiceProcess, keys: KeyFile, credentials: dict[str, str]
) -> None:
    stream = watch(Client(service, credentials["all"]))
    next(stream)
    ended: list[SightlineError] = []

    def follow() -> None:
        try:
            for _ in stream:
                pass
        except SightlineError as error:
            ended.append(error)

    following = threading.Thread(target=follow)
    following.start()
    (revoked,) = (made.id for made in keys.all() if made.name == "all")
    keys.revoke(revoked)
    following.join(PATIENCE)
    assert [error.code for error in ended] == [UNAUTHENTICATED]
