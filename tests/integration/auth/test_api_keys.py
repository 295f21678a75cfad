"""API keys on real services, while keys come and go."""

import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from sightline.ingest.v1 import ingest_service_pb2
from sightline.openinference.v2 import open_inference_pb2, open_inference_pb2_grpc

from servicekit.auth.key_file import KeyFile
from servicekit.errors import SightlineError
from sightline.cli.processes import ServiceProcess
from tests.integration.auth.conftest import MakeKey
from tests.integration.auth.services import (
    PATIENCE,
    Client,
    ingest,
    logged,
    refusal,
    serving,
    stored,
)
from tests.unit.edge.samples import eventually

INGEST = "sightline.ingest.v1.IngestService"
DENIED = grpc.StatusCode.PERMISSION_DENIED


def outcome(client: Client, device: str) -> str:
    try:
        client.log(device)
    except SightlineError as error:
        return error.reason
    return "logged"


def test_who_may_log_as_which_device(tmp_path: Path, key: MakeKey) -> None:
    gate, line = key("gate-1"), key("line", devices="line-* spare")
    reader = key("reader", "read", "*")
    with ingest(tmp_path, "--api-keys-file", str(tmp_path / "keys.db")) as service:
        nobody = Client(service)
        for call in (nobody.log, nobody.watermark, nobody.stats, nobody.listed):
            error = refusal(call, "gate-1")
            assert error.code is grpc.StatusCode.UNAUTHENTICATED
            assert error.reason == "CREDENTIAL_MISSING"
        assert refusal(Client(service, "slk_" + "0" * 56).log, "gate-1").reason == "API_KEY_UNKNOWN"

        for credential, own, others in (
            (gate, ["gate-1"], ["gate-2", "gate-10", "line-1"]),
            (line, ["line-1", "spare"], ["line", "spare-1", "gate-1"]),
        ):
            client = Client(service, credential)
            for device in own:
                assert client.log(device).accepted == 1
                assert client.watermark(device) == 0
            for device in others:
                for call in (client.log, client.watermark):
                    error = refusal(call, device)
                    assert (error.code, error.reason) == (DENIED, "DEVICE_NOT_ALLOWED")
                    assert error.metadata["device_id"] == device
            assert refusal(client.stats).reason == "SCOPE_MISSING"
        assert refusal(Client(service, reader).log, "gate-1").reason == "SCOPE_MISSING"
        assert Client(service, reader).stats() == {"gate-1": 1, "line-1": 1, "spare": 1}
    assert set(stored(tmp_path)) == {"gate-1", "line-1", "spare"}


def check_records(service: ServiceProcess, own: str, line: str) -> None:
    """Check who may read which devices, spools, gaps, rejections and sequences."""
    methods = {
        "ListDevices": "devices",
        "GetLedger": "entries",
        "ListGaps": "gaps",
        "ListRejections": "rejections",
    }
    client = Client(service, own)
    for method, field in methods.items():
        mine = {entry.device_id for entry in getattr(client.records(method), field)}
        assert mine <= {"a", "b"}
        assert mine or method in ("ListGaps", "ListRejections")
        assert refusal(client.records, method, "a", "c").reason == "DEVICE_NOT_ALLOWED"
        unnamed = refusal(Client(service, line).records, method)
        assert unnamed.reason == "DEVICE_FILTER_REQUIRED"
        assert [violation.field for violation in unnamed.violations] == ["device_ids"]
    assert client.records("GetLedger").total.accepted == 2
    entries = client.records("GetLedger").entries
    for entry in entries:
        assert client.found(entry.device_id, entry.spool_id).HasField("prediction")
    error = refusal(client.found, "c", entries[0].spool_id)
    assert (error.code, error.reason) == (DENIED, "DEVICE_NOT_ALLOWED")
    token = client.records("ListDevices", page_size=1).next_page_token
    with pytest.raises(SightlineError, match="page_token must be used"):
        Client(service, line).records("ListDevices", "line-1", page_token=token)


def test_who_may_read_what(tmp_path: Path, key: MakeKey) -> None:
    writer = key("writer", "log", "*")
    own, line = key("own", "read", "a b"), key("line", "read", "line-*")
    with ingest(tmp_path, "--api-keys-file", str(tmp_path / "keys.db")) as service:
        for device in ("a", "b", "c", "line-1"):
            Client(service, writer).log(device)
        client = Client(service, own)
        assert client.stats() == {"a": 1, "b": 1}
        assert client.stats("a") == {"a": 1}
        assert {found.device_id for found in client.listed().predictions} == {"a", "b"}
        for call in (client.stats, client.listed):
            assert refusal(call, "a", "c").reason == "DEVICE_NOT_ALLOWED"
        page = client.listed(page_size=1)
        rest = client.listed(page_size=1, page_token=page.next_page_token)
        assert {p.device_id for p in (*page.predictions, *rest.predictions)} == {"a", "b"}
        assert rest.next_page_token == ""

        check_records(service, own, line)
        client = Client(service, line)
        assert client.stats("line-1") == {"line-1": 1}
        assert refusal(client.stats).reason == "DEVICE_FILTER_REQUIRED"
        with pytest.raises(
            SightlineError, match="page_token must be used"
        ):  # of what another may see
            client.listed("line-1", page_token=page.next_page_token)


def test_a_running_server_takes_new_keys_and_drops_revoked_ones(
    tmp_path: Path, keys: KeyFile, key: MakeKey
) -> None:
    with ingest(tmp_path, "--api-keys-file", str(tmp_path / "keys.db")) as service:
        first = Client(service, key("gate-1"))
        began = time.monotonic()
        assert eventually(lambda: outcome(first, "gate-1") == "logged")
        assert time.monotonic() - began < 10  # half a second, on a machine that is not loaded
        (made,) = [one.id for one in keys.all() if one.name == "gate-1"]
        keys.revoke(made)
        began = time.monotonic()
        assert eventually(lambda: outcome(first, "gate-1") == "API_KEY_REVOKED")
        assert time.monotonic() - began < 10
        assert service.process.poll() is None


def test_health_and_reflection_stay_open(tmp_path: Path, keys: KeyFile) -> None:
    with ingest(tmp_path, "--api-keys-file", str(tmp_path / "keys.db")) as service:
        channel = Client(service).channel
        check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined] # published types leave it out
        assert check(health_pb2.HealthCheckRequest(service=INGEST), timeout=10).status == 1
        assert INGEST in ProtoReflectionDescriptorDatabase(channel).get_services()


def test_the_inference_service_asks_for_the_same_keys(
    tmp_path: Path, colours: Path, key: MakeKey
) -> None:
    one, two, log = key("one", "infer"), key("two", "infer"), key("log")
    flags = ["--model-repository", str(colours), "--api-keys-file", str(tmp_path / "keys.db")]
    with serving("inference_service", tmp_path, *flags) as service:
        nobody = Client(service)
        for call in (nobody.infer, nobody.models):
            assert refusal(call).reason == "CREDENTIAL_MISSING"
        assert refusal(Client(service, log).infer).reason == "SCOPE_MISSING"
        assert Client(service, one).models() == ["colours"]

        # A caller never gets what another one was answered.
        question = str(uuid.uuid4())
        for caller in (one, two):
            assert [Client(service, caller).infer(question) for _ in range(2)] == [False, True]

        protocol = open_inference_pb2_grpc.GRPCInferenceServiceStub(nobody.channel)
        assert protocol.ServerLive(open_inference_pb2.ServerLiveRequest(), timeout=10).live
        assert protocol.ServerReady(open_inference_pb2.ServerReadyRequest(), timeout=10).ready
        with pytest.raises(grpc.RpcError) as caught:
            protocol.ModelReady(open_inference_pb2.ModelReadyRequest(name="colours"), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_without_keys_everyone_may_do_everything_and_the_log_says_so(tmp_path: Path) -> None:
    with ingest(tmp_path) as service:
        client = Client(service, "what nobody asked for")
        assert client.log("any").accepted == 1
        assert client.stats() == {"any": 1}
    log = (tmp_path / "stderr.log").read_text()
    assert log.count("no credentials are configured") == 1
    assert f"whoever reaches {service.address} may do everything" in log


def test_a_stream_ends_when_its_key_is_revoked(tmp_path: Path, keys: KeyFile, key: MakeKey) -> None:
    credential, reader, done = key("gate-1"), key("reader", "read", "*"), threading.Event()
    (made,) = [one.id for one in keys.all() if one.name == "gate-1"]
    with ingest(tmp_path, "--api-keys-file", str(tmp_path / "keys.db")) as service:
        client = Client(service, credential)

        def messages() -> Iterator[ingest_service_pb2.PredictionLogRequest]:
            yield logged("gate-1")
            done.wait(PATIENCE)  # and does not end

        with ThreadPoolExecutor(1) as caller:
            call = caller.submit(client.stream, messages())
            assert eventually(lambda: Client(service, reader).stats() == {"gate-1": 1})
            keys.revoke(made)
            error = call.exception(PATIENCE)
            done.set()
        assert isinstance(error, SightlineError)
        assert error.reason == "API_KEY_REVOKED"
    assert stored(tmp_path) == {"gate-1": (1, 1)}  # what it sent before counts
