"""The server's disk is full, again and again, while a node streams."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from servicekit.terminal import CommandError
from tests.faults.auditor import Audit
from tests.faults.campaign import Campaign
from tests.faults.disks import filled, limited, small_disk
from tests.faults.nodes import running
from tests.faults.world import WORLDS, World, campaign, several
from tests.unit.edge.samples import eventually

pytestmark = pytest.mark.timeout(600)  # for a machine that does other things as well
Report = Callable[[Campaign], None]
SOAK = [pytest.mark.soak, pytest.mark.timeout(7200)]
SERVICE = "sightline.ingest.v1.IngestService"
PATIENCE = 60.0
"""How long readiness may take to change, s: a node may wait 15 s for its next try."""


def is_serving(made: World) -> bool:
    """Says whether the server is ready."""
    with grpc.insecure_channel(made.ingest.target) as channel:
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        return bool(check(request, timeout=10).status == health_pb2.HealthCheckResponse.SERVING)


@contextmanager
def full_disk(made: World, folder: Path, *, is_mounted: bool) -> Iterator[None]:
    """Keeps the server from writing more than a little."""
    spare = made.chance.choice([0, 0, 100, 5_000, 50_000])
    with ExitStack() as stack:
        if is_mounted:
            stack.enter_context(filled(folder, spare))
        else:
            stack.enter_context(limited(made.ingest.pid, folder, spare))
        yield


def start_on_a_full_disk(made: World) -> None:
    """Kills the server and starts it where it may not be able to."""
    made.ingest.kill()
    with suppress(CommandError):
        made.ingest.start()
        time.sleep(made.chance.uniform(0.0, 1.0))
    made.ingest.kill()


def fill(made: World, runs: int, *, mounts: bool) -> Audit:
    """Fills the disk so often; the server must say so, and go on by itself when there is room."""
    folder = made.ingest.database.parent
    with ExitStack() as stack:
        is_mounted = mounts and stack.enter_context(small_disk(folder, 64))
        made.ingest.start()
        with running(made.spec("node", pause=0.02)):
            for number in range(runs):
                made.wait_for_commit()
                with full_disk(made, folder, is_mounted=is_mounted):
                    assert eventually(lambda: not is_serving(made), PATIENCE)
                    if is_mounted and number % 5 == 4:
                        start_on_a_full_disk(made)
                if not made.ingest.is_running:
                    made.ingest.start()
                assert eventually(lambda: is_serving(made), PATIENCE)
        return made.finish()


@pytest.mark.parametrize("runs", [WORLDS, pytest.param(80, marks=SOAK)])
def test_the_disk_of_the_server(tmp_path: Path, report: Report, runs: int) -> None:
    """A small tmpfs, where one may be mounted, and files that may not grow."""
    mounts = [True, False] * (WORLDS // 2)
    audits = several(lambda made, n: fill(made, n, mounts=mounts.pop()), tmp_path, runs)
    assert sum(one.gap_sequences for one in audits) == 0
    report(campaign("full disk of the server", runs, audits))
