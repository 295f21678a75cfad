"""Devices of one inference replica when a second one joins it, by name and behind a real Envoy."""

import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from sightline.inference.v1.inference_service_pb2 import ListModelsRequest
from sightline.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from sightline.ingest.v1.ingest_service_pb2 import GetStatsRequest
from sightline.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub

from edge.channel import Endpoint
from edge.doctor.health import INGEST
from edge.log.logger import PredictionLogger
from edge.options import LogOptions
from edge.records import Prediction
from servicekit.server_settings import ServerSettings
from servicekit.terminal import CommandError
from sightline.cli.processes import ServiceProcess
from tests.compat import envoy
from tests.fakes.names import NameServer
from tests.unit.inference_service.tiny_onnx import colour_model

DEVICES = 200
HOSTS = ("127.0.0.1", "127.0.0.2")
AGE_SECONDS = "1"
PATIENCE = 60.0
Join = Callable[[list[str]], None]
"""Tells those who look for replicas that these are there."""


class Replica:
    """One replica of the inference service."""

    def __init__(self, service: ServiceProcess) -> None:
        self.address = service.address
        self._metrics = service.ready["metrics_address"]

    def answered(self) -> int:
        """Return how many calls of devices it has answered."""
        with urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=30) as page:
            families = text_string_to_metric_families(page.read().decode())
        return sum(
            int(sample.value)
            for family in families
            if family.name == "sightline_grpc_requests"
            for sample in family.samples
            if sample.labels.get("method") == "ListModels" and sample.labels["code"] == "OK"
        )


class Fleet:
    """Devices with a connection each, of which every one makes a call at the same time."""

    def __init__(self, target: str, replicas: tuple[Replica, Replica], stack: ExitStack) -> None:
        options = [
            # Channels of one process would share a connection to the same address.
            ("grpc.use_local_subchannel_pool", 1),
            # gRPC asks for a name every 30 s at most.
            ("grpc.dns_min_time_between_resolutions_ms", 100),
        ]
        channels = [Endpoint(target).channel(options) for _ in range(DEVICES)]
        for channel in channels:
            stack.callback(channel.close)
        self._stubs = [InferenceServiceStub(channel) for channel in channels]
        self._replicas = replicas

    def share_of_second(self) -> float:
        """Return the share of one call of each device that the second replica answers.

        Raises:
            grpc.RpcError: a call failed.
        """
        before = self._answered()
        request = ListModelsRequest()
        calls = [stub.ListModels.future(request, timeout=PATIENCE) for stub in self._stubs]
        for call in calls:
            call.result()
        deadline = time.monotonic() + PATIENCE
        while sum(after := self._answered()) < sum(before) + DEVICES:  # counted after the answer
            assert time.monotonic() < deadline, (before, after)
        return (after[1] - before[1]) / DEVICES

    def _answered(self) -> list[int]:
        return [replica.answered() for replica in self._replicas]


@contextmanager
def by_name(_program: str, _folder: Path, port: int) -> Iterator[tuple[str, Join]]:
    """Let devices find the replicas by a name, as those of a headless Service."""
    with NameServer() as names:

        def join(replicas: list[str]) -> None:
            names.addresses = tuple(one.rpartition(":")[0] for one in replicas)

        yield names.target(port), join


@contextmanager
def by_connection(program: str, folder: Path, _port: int) -> Iterator[tuple[str, Join]]:
    """Let Envoy lead each connection to a replica."""
    with envoy.running(program, "tcp", folder) as proxy:
        yield proxy.address, proxy.lead_to


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Replica, Replica]]:
    """Two replicas on one port of two addresses, as pods have them."""
    folder = tmp_path_factory.mktemp("replicas")
    colour_model(folder / "models/colours/1/model.onnx")
    flags = ["--model-repository", str(folder / "models"), "--metrics-listen", "127.0.0.1:0"]
    flags += ["--max-connection-age-seconds", AGE_SECONDS, "--log-level", "warning"]
    with ExitStack() as stack:
        yield start(flags, stack)


def start(flags: list[str], stack: ExitStack) -> tuple[Replica, Replica]:
    """Start both replicas, again if another process has taken the port of one of them."""
    for _ in range(10):
        port = free_port()
        with ExitStack() as attempt, suppress(CommandError):
            services = [
                attempt.enter_context(
                    ServiceProcess("inference_service", [*flags, "--listen", f"{host}:{port}"])
                )
                for host in HOSTS
            ]
            stack.enter_context(attempt.pop_all())
            return Replica(services[0]), Replica(services[1])
    raise AssertionError("no port was free at both addresses")


def free_port() -> int:
    """Return a port that was free at both addresses a moment ago."""
    while True:
        with ExitStack() as stack, suppress(OSError):
            first = stack.enter_context(socket.create_server((HOSTS[0], 0)))
            port: int = first.getsockname()[1]
            stack.enter_context(socket.create_server((HOSTS[1], port)))
            return port


@pytest.mark.slow
@pytest.mark.parametrize("way", [by_name, by_connection])
def test_a_new_replica_gets_its_share_of_the_devices_and_no_call_fails(
    way: Callable[[str, Path, int], AbstractContextManager[tuple[str, Join]]],
    replicas: tuple[Replica, Replica],
    envoy_program: str,
    tmp_path: Path,
) -> None:
    first, second = replicas
    port = int(first.address.rpartition(":")[2])
    with ExitStack() as stack:
        target, join = stack.enter_context(way(envoy_program, tmp_path, port))
        join([first.address])
        fleet = Fleet(target, replicas, stack)
        assert fleet.share_of_second() == 0.0
        join([first.address, second.address])
        shares = [fleet.share_of_second()]
        deadline = time.monotonic() + PATIENCE
        while not 0.4 <= shares[-1] <= 0.6:
            assert time.monotonic() < deadline, shares
            shares.append(fleet.share_of_second())


@pytest.mark.slow
def test_calls_through_envoy_are_shared_and_outlive_its_connections(
    replicas: tuple[Replica, Replica], envoy_program: str, tmp_path: Path
) -> None:
    first, second = replicas
    with envoy.running(envoy_program, "http", tmp_path) as proxy, ExitStack() as stack:
        proxy.lead_to([first.address])
        fleet = Fleet(proxy.address, replicas, stack)
        assert fleet.share_of_second() == 0.0
        proxy.lead_to([first.address, second.address])
        shares = [fleet.share_of_second()]
        deadline = time.monotonic() + PATIENCE
        ended = 0
        while ended < 4 or not 0.4 <= shares[-1] <= 0.6:  # each replica's twice
            assert time.monotonic() < deadline, (ended, shares)
            shares.append(fleet.share_of_second())
            ended = proxy.counter("upstream_cx_close_notify")


@pytest.mark.slow
def test_a_node_logs_through_envoy_while_connections_end(
    envoy_program: str, tmp_path: Path
) -> None:
    flags = [
        "--listen",
        "127.0.0.1:0",
        "--max-connection-age-seconds",
        "0.2",
        "--log-level",
        "error",
    ]
    flags += ["--database", str(tmp_path / "log.duckdb")]
    options = LogOptions(batch_timeout_seconds=0.002)
    with ExitStack() as stack:
        ingest = stack.enter_context(ServiceProcess("ingest_service", flags))
        proxy = stack.enter_context(envoy.running(envoy_program, "http", tmp_path, INGEST))
        proxy.lead_to([ingest.address])
        with PredictionLogger(
            proxy.address, device_id="gate-1", spool_dir=tmp_path / "spool", options=options
        ) as log:
            deadline = time.monotonic() + PATIENCE
            while proxy.counter("upstream_cx_total") < 5:
                log.log(Prediction("a.jpg", "parts"))
                assert time.monotonic() < deadline
            assert log.flush(PATIENCE, until="committed")
            stats = log.stats()
        assert (stats.failed, stats.retried, stats.dropped) == (0, 0, {})
        with grpc.insecure_channel(proxy.address) as channel:
            stored = IngestServiceStub(channel).GetStats(GetStatsRequest(), timeout=PATIENCE)
    assert stored.total_predictions == stats.logged


def test_the_file_for_envoy_is_valid_and_a_misspelt_key_is_found(
    envoy_program: str, tmp_path: Path
) -> None:
    wrong = tmp_path / "envoy.yaml"
    wrong.write_text(envoy.FILE.read_text().replace("lb_policy:", "lb_polcy:"))
    for path, code in ((envoy.FILE, 0), (wrong, 1)):
        command = [envoy_program, "--mode", "validate", "--config-path", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr
    assert "lb_polcy" in done.stderr


def test_envoy_opens_no_more_calls_than_a_replica_takes() -> None:
    (cluster,) = yaml.safe_load(envoy.FILE.read_text())["static_resources"]["clusters"]
    (options,) = cluster["typed_extension_protocol_options"].values()
    most = options["explicit_http_config"]["http2_protocol_options"]["max_concurrent_streams"]
    assert most <= ServerSettings.model_fields["max_concurrent_streams"].default
