"""Item 11: the database of a running service is deleted or replaced."""

import shutil
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from servicekit.errors import from_rpc_error
from tests.integration.ingest.process import PATIENCE, IngestProcess
from tests.integration.ingest.test_backup import ask, back_up
from tests.unit.edge.samples import eventually
from tests.unit.ingest_service.samples import SPOOL, header, predictions, request


def is_serving(server: IngestProcess) -> bool:
    with grpc.insecure_channel(server.address) as channel:
        request = health_pb2.HealthCheckRequest(service="sightline.ingest.v1.IngestService")
        stub = health_pb2_grpc.HealthStub(channel)
        check = stub.Check  # type: ignore[attr-defined] # published types leave it out
        answer = check(request, timeout=PATIENCE)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def delete(database: Path) -> None:
    database.unlink()


def replace(database: Path) -> None:
    shutil.copy(database, database.with_name("copy"))
    database.with_name("copy").replace(database)


def rename(database: Path) -> None:
    database.rename(database.with_name("elsewhere"))


@pytest.mark.parametrize("harm", [delete, replace, rename])
def test_a_service_that_has_lost_its_database_acknowledges_nothing(
    server: IngestProcess, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    server.log_messages(request(*predictions(1, 100), head=header()))
    harm(server.database)
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as caught:
            server.log_messages(request(*predictions(101, 200), head=header()))
        error = from_rpc_error(caught.value)
        assert (error.code.name, error.reason) == ("UNAVAILABLE", "STORE_MOVED")
        with pytest.raises(grpc.RpcError):
            server.watermark(SPOOL)
    assert eventually(lambda: not is_serving(server))
    log = server.log.read_text()
    assert log.count("nothing is committed or read") == 1
    assert "sightline backup" in log
    back_up(server, tmp_path / "saved.duckdb")
    assert ask(tmp_path / "saved.duckdb", "SELECT count(*) FROM predictions") == [(100,)]
    server.signal(15)
    assert server.wait() == 1, "a service that has lost its file must not say that all is well"


def test_it_shows_though_nobody_writes(server: IngestProcess) -> None:
    assert is_serving(server)
    server.database.rename(server.database.with_name("elsewhere"))
    assert eventually(lambda: not is_serving(server))
    server.database.with_name("elsewhere").rename(server.database)
    assert eventually(lambda: is_serving(server), 20)
    server.log_messages(request(*predictions(1, 10), head=header()))
