"""Item 20: nobody reads stderr, whose pipe is full; services and a node go on all the same."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import pytest
from sightline.ingest.v1 import ingest_service_pb2_grpc
from sightline.ingest.v1.ingest_service_pb2 import PredictionLogRequest, PredictionLogResponse

from ingest_service.store.protocol import SpoolKey
from tests.fakes.ingest import FakeIngest
from tests.faults.disks import filled, limited, small_disk
from tests.integration.auth.authority import Authority
from tests.integration.cli.terminal import SIGHTLINE, environment
from tests.integration.inference.process import InferenceStub, names
from tests.unit.edge.samples import eventually
from tests.unit.edge.sources.monitors import save_pictures
from tests.unit.inference_service.tiny_onnx import colour_model, corrupt, picture
from tests.unit.ingest_service.samples import header, predictions, request

PATIENCE = 30.0
SPOOL = SpoolKey("gate-1", "0b3f8f5c-38a4-4d8e-9a0c-5e6f3c3c8d11")


def full_pipe() -> tuple[int, int]:
    """Return both ends of a pipe that takes no further byte."""
    reading, writing = os.pipe()
    _fill(writing)
    return reading, writing


def full_socket() -> tuple[int, int]:
    """Return both ends of a socket that takes no further byte, as a journal's may be."""
    reading, writing = (one.detach() for one in socket.socketpair())
    _fill(writing)
    return reading, writing


def _fill(descriptor: int) -> None:
    os.set_blocking(descriptor, False)
    for size in (4096, 1):
        try:
            while os.write(descriptor, bytes(size)):
                pass
        except BlockingIOError:
            pass
    os.set_blocking(descriptor, True)


class Service:
    """A service whose stderr nobody reads, nor its stdout where that is the same stream."""

    def __init__(self, process: "subprocess.Popen[bytes]", reading: int, address: str) -> None:
        self.process = process
        self.address = address
        self._reading = reading

    def stop(self) -> int:
        """End it with SIGTERM and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def said(self) -> str:
        """Return its output until it has ended."""
        parts = []
        while part := os.read(self._reading, 1 << 16):
            parts.append(part)
        return b"".join(parts).decode().lstrip("\0")


@contextmanager
def unread(
    module: str,
    folder: Path,
    *flags: str,
    stuck: Callable[[], tuple[int, int]] = full_pipe,
    both: bool = False,
) -> Iterator[Service]:
    """Run a service with a full stderr; `both`: stdout is the same pipe."""
    reading, writing = stuck()
    address = f"unix:{folder}/socket" if both else "127.0.0.1:0"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SIGHTLINE_")}
    process = subprocess.Popen(
        [sys.executable, "-m", module, "--listen", address, *flags],
        stdout=writing if both else subprocess.PIPE,
        stderr=writing,
        env=clean,
        cwd=folder,
    )
    os.close(writing)
    try:
        if not both:
            assert process.stdout is not None
            address = json.loads(process.stdout.readline())["address"]
        yield Service(process, reading, address)
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
        os.close(reading)


@cache
def message(first: int, last: int) -> PredictionLogRequest:
    """Return a message of predictions: to make thousands takes longer than to send them."""
    return request(*predictions(first, last), head=header(SPOOL))


def log(address: str, first: int, last: int) -> PredictionLogResponse:
    """Log predictions, on a connection of its own."""
    with grpc.insecure_channel(address) as channel:
        stub = ingest_service_pb2_grpc.IngestServiceStub(channel)
        sent = iter([message(first, last)])
        return stub.PredictionLog(sent, timeout=PATIENCE, wait_for_ready=True)


def until_committed(address: str, first: int, last: int) -> PredictionLogResponse:
    """Log until it works, which must be soon."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return log(address, first, last)
        except grpc.RpcError:
            assert time.monotonic() < end


def failures(address: str, count: int, last: int) -> None:
    """Make a number of commits fail."""
    for _ in range(count):
        with pytest.raises(grpc.RpcError) as caught:
            log(address, 1, last)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("stuck", [full_pipe, full_socket])
def test_the_writer_commits_again_when_there_is_room(
    tmp_path: Path, stuck: Callable[[], tuple[int, int]]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    database = disk / "sightline.duckdb"
    with ExitStack() as stack:
        mounted = stack.enter_context(small_disk(disk, 32))
        service = stack.enter_context(
            unread("ingest_service", tmp_path, "--database", str(database), stuck=stuck)
        )
        assert until_committed(service.address, 1, 1).committed_through == 1
        with filled(disk, 0) if mounted else limited(service.process.pid, disk, 0):
            failures(service.address, 30, 9_000)
        answer = until_committed(service.address, 1, 9_000)
        assert answer.committed_through == 9_000
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < 10


def test_a_failure_that_repeats_is_told_once_with_a_count(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    database = disk / "sightline.duckdb"
    with ExitStack() as stack:
        mounted = stack.enter_context(small_disk(disk, 32))
        service = stack.enter_context(
            unread("ingest_service", tmp_path, "--database", str(database), stuck=os.pipe)
        )
        assert until_committed(service.address, 1, 1).committed_through == 1
        with filled(disk, 0) if mounted else limited(service.process.pid, disk, 0):
            failures(service.address, 20, 9_000)
        until_committed(service.address, 1, 9_000)
        assert service.stop() == 0
        lines = [json.loads(line) for line in service.said().splitlines()]
    told = [line for line in lines if line["event"].startswith("the store failed")]
    assert sum("exception" in line for line in told) <= 3, "one for each kind of error"
    assert sum(line.get("repeated", 1) for line in told) >= 20


@pytest.mark.parametrize("both", [False, True])
def test_ingest_starts_serves_and_ends(tmp_path: Path, both: bool) -> None:
    flags = ["--database", str(tmp_path / "sightline.duckdb")]
    with unread("ingest_service", tmp_path, *flags, both=both) as service:
        assert until_committed(service.address, 1, 3).committed_through == 3
        assert service.stop() == 0


@pytest.mark.parametrize("both", [False, True])
def test_inference_starts_serves_and_ends(tmp_path: Path, both: bool) -> None:
    colour_model(tmp_path / "models" / "colours" / "1" / "model.onnx")
    flags = ["--model-repository", str(tmp_path / "models"), "--log-level", "debug"]
    with unread("inference_service", tmp_path, *flags, both=both) as service:
        client = InferenceStub(service.address)
        with client.channel:
            grpc.channel_ready_future(client.channel).result(PATIENCE)
            # It listens before it has loaded its models.
            assert eventually(lambda: client.health() == "SERVING", PATIENCE)
            for _ in range(50):
                assert client.refusal(corrupt()).reason == "IMAGE_CORRUPT"
            assert names(client.infer(picture()).results[0]) == ["red"]
        assert service.stop() == 0


@pytest.mark.parametrize("stuck", [full_pipe, full_socket])
def test_native_lines_do_not_stop_the_service(
    tmp_path: Path, stuck: Callable[[], tuple[int, int]]
) -> None:
    """gRPC writes a line of its own for each handshake that fails."""
    authority = Authority()
    certificate, private = authority.issue("server")
    (tmp_path / "cert.pem").write_bytes(certificate)
    (tmp_path / "key.pem").write_bytes(private)
    flags = [
        *("--database", str(tmp_path / "sightline.duckdb")),
        *(
            "--tls-cert-file",
            str(tmp_path / "cert.pem"),
            "--tls-key-file",
            str(tmp_path / "key.pem"),
        ),
    ]
    with unread("ingest_service", tmp_path, *flags, stuck=stuck) as service:
        host, _, port = service.address.rpartition(":")
        for _ in range(200):
            with closing(socket.create_connection((host, int(port)), PATIENCE)) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
                stranger.shutdown(socket.SHUT_WR)
                while stranger.recv(4096):
                    pass
        trust = grpc.ssl_channel_credentials(authority.pem)
        with grpc.secure_channel(service.address, trust) as channel:
            stub = ingest_service_pb2_grpc.IngestServiceStub(channel)
            sent = request(*predictions(1, 3), head=header(SPOOL))
            assert stub.PredictionLog(iter([sent]), timeout=PATIENCE).committed_through == 3
        assert service.stop() == 0


def test_a_node_logs_on_when_nobody_reads_what_it_says(tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / "pictures", *(f"{n}.jpg" for n in range(30)))
    (folder / "bad.jpg").write_bytes(b"no picture")
    model = colour_model(tmp_path / "colours.onnx")
    with FakeIngest() as ingest:
        env = environment(
            ingest_target=ingest.target, device_id="gate-1", spool_dir=tmp_path / "spool"
        )
        reading, writing = full_pipe()
        words = ["log", str(folder), "--model", str(model), "--mode", "device", "--json"]
        process = subprocess.Popen(
            [*SIGHTLINE, *words], env=env, stdout=subprocess.PIPE, stderr=writing, text=True
        )
        os.close(writing)
        try:
            out, _ = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
            os.close(reading)
        stats: dict[str, Any] = json.loads(out)
        assert stats["logger"]["committed"] == 30
        assert len(ingest.images()) == 30
