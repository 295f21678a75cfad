"""Tests with a server's disk that is repeatedly full while a node streams."""

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

pytestmark = pytest.mark.timeout(600)  # generous, for a machine under other load
Report = Callable[[Campaign], None]
SOAK = [pytest.mark.soak, pytest.mark.timeout(7200)]
SERVICE = "sightline.ingest.v1.IngestService"
PATIENCE = 60.0
"""Maximum time until readiness changes, s: a node may wait 15 s for its next try."""


def is_serving(world: World) -> bool:
    """Return True if the server is ready."""
    with grpc.insecure_channel(world.ingest.target) as channel:
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        return bool(check(request, timeout=10).status == health_pb2.HealthCheckResponse.SERVING)


@contextmanager
def full_disk(world: World, folder: Path, *, is_mounted: bool) -> Iterator[None]:
    """Limit the server's writes to a few bytes, within the block."""
    spare = world.chance.choice([0, 0, 100, 5_000, 50_000])
    with ExitStack() as stack:
        if is_mounted:
            stack.enter_context(filled(folder, spare))
        else:
            stack.enter_context(limited(world.ingest.pid, folder, spare))
        yield


def start_on_a_full_disk(world: World) -> None:
    """Kill the server and start it on a full disk, where the start may fail."""
    world.ingest.kill()
    with suppress(CommandError):
        world.ingest.start()
        time.sleep(world.chance.uniform(0.0, 1.0))
    world.ingest.kill()


def fill(world: World, runs: int, *, mounts: bool) -> Audit:
    """Fill the disk this many times; the server must report it, and recover by itself."""
    folder = world.ingest.database.parent
    with ExitStack() as stack:
        is_mounted = mounts and stack.enter_context(small_disk(folder, 64))
        world.ingest.start()
        with running(world.spec("node", pause=0.02)):
            for number in range(runs):
                world.wait_for_commit()
                with full_disk(world, folder, is_mounted=is_mounted):
                    assert eventually(lambda: not is_serving(world), PATIENCE)
                    if is_mounted and number % 5 == 4:
                        start_on_a_full_disk(world)
                if not world.ingest.is_running:
                    world.ingest.start()
                assert eventually(lambda: is_serving(world), PATIENCE)
        return world.finish()


@pytest.mark.parametrize("runs", [WORLDS, pytest.param(80, marks=SOAK)])
def test_the_disk_of_the_server(tmp_path: Path, report: Report, runs: int) -> None:
    """Fill a small tmpfs, if one can be mounted, and limit the size of files."""
    mounts = [True, False] * (WORLDS // 2)
    audits = several(lambda world, n: fill(world, n, mounts=mounts.pop()), tmp_path, runs)
    assert sum(audit.gap_sequences for audit in audits) == 0
    report(campaign("full disk of the server", runs, audits))
