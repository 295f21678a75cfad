"""A real `python -m inference_service` on a loopback port of the kernel's choice."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sightline.inference.v1 import inference_pb2, inference_service_pb2, inference_service_pb2_grpc

from servicekit.errors import SightlineError, from_rpc_error
from tests.integration.inference import waiting_service

SERVICE = "sightline.inference.v1.InferenceService"
InferFuture: TypeAlias = "grpc.CallFuture[inference_service_pb2.InferResponse]"
_START_SECONDS = 60
_STOP_SECONDS = 30


class InferenceProcess:
    """The process; `address` and, if there is one, `metrics_address` are known once it is ready.

    Args:
        folder: where it runs and logs.
        flags: its arguments.
        clock_ahead: seconds by which its wall clock is wrong.
    """

    def __init__(self, folder: Path, *flags: str, clock_ahead: int = 0) -> None:
        self.log = folder / "stderr.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SIGHTLINE_")}
        if clock_ahead:
            environment["LD_PRELOAD"] = str(_wrong_clock(folder))
            environment["CLOCK_AHEAD"] = str(clock_ahead)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", waiting_service.MODULE, "--listen", "127.0.0.1:0", *flags],
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                env=environment,
                start_new_session=True,  # without a terminal SIGHUP reloads
            )
        self.address = ""
        self.metrics_address: str | None = None

    def wait_ready(self) -> None:
        """Wait for the ready line.

        Raises:
            AssertionError: the process ended before it, or says nothing for a minute.
        """
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], _START_SECONDS)
        line = self.process.stdout.readline() if readable else b""
        assert line, f"not ready, exit code {self.process.poll()}: {self.log.read_text()}"
        ready = json.loads(line)
        assert ready["event"] == "ready"
        self.address = ready["address"]
        self.metrics_address = ready["metrics_address"]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal the process and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(_STOP_SECONDS)
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()


def _wrong_clock(folder: Path) -> Path:
    """Return a library that sets a process's wall clock; skip the test without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("a wrong clock needs Linux and a C compiler")
    created, source = folder / "wrong_clock.so", Path(__file__).with_name("wrong_clock.c")
    if not created.exists():
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O2", "-o", str(created), str(source), "-ldl"],
            check=True,
        )
    return created


@contextmanager
def started(folder: Path, *flags: str, clock_ahead: int = 0) -> Iterator[InferenceProcess]:
    """Yield a server that is ready, and ended afterwards."""
    server = InferenceProcess(folder, *flags, clock_ahead=clock_ahead)
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop(signal.SIGKILL)


class InferenceStub:
    """Calls a server as any client would."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        if credentials:
            self.channel = grpc.secure_channel(address, credentials)
        else:
            self.channel = grpc.insecure_channel(address)
        self.stub = inference_service_pb2_grpc.InferenceServiceStub(self.channel)
        # Bytes in, bytes out.
        self.raw = self.channel.unary_unary(f"/{SERVICE}/Infer", None, None)

    def infer(
        self, *images: bytes | inference_pb2.Image, timeout: float | None = 30, **fields: Any
    ) -> inference_service_pb2.InferResponse:
        return self.stub.Infer(ask(*images, **fields), timeout=timeout)

    def refusal(
        self, *images: bytes | inference_pb2.Image, timeout: float | None = 30, **fields: Any
    ) -> SightlineError:
        """Return the error that the call fails with."""
        return failure(lambda: self.infer(*images, timeout=timeout, **fields))

    def health(self, service: str = SERVICE) -> str:
        request = health_pb2.HealthCheckRequest(service=service)
        check = health_pb2_grpc.HealthStub(self.channel).Check  # type: ignore[attr-defined]
        answer = check(request, timeout=10)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


@contextmanager
def client(
    server: InferenceProcess, credentials: grpc.ChannelCredentials | None = None
) -> Iterator[InferenceStub]:
    created = InferenceStub(server.address, credentials)
    with created.channel:
        yield created


def failure(call: Any) -> SightlineError:
    """Return the error that a call fails with."""
    try:
        answer = call()
    except grpc.RpcError as error:
        return from_rpc_error(error)
    raise AssertionError(f"did not fail but answered {answer}")


def failures(calls: Sequence[InferFuture]) -> list[SightlineError]:
    """Wait for the calls and return the errors of those that failed."""
    errors = [call.exception() for call in calls]
    return [from_rpc_error(error) for error in errors if isinstance(error, grpc.RpcError)]


def ask(*images: bytes | inference_pb2.Image, **fields: Any) -> inference_service_pb2.InferRequest:
    """Return a request for pictures."""
    return inference_service_pb2.InferRequest(
        images=[inference_pb2.Image(data=i) if isinstance(i, bytes) else i for i in images],
        **fields,
    )


def names(result: inference_pb2.ImageResult) -> Sequence[str]:
    return [detection.class_name for detection in result.detections]
