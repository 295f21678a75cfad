"""Tests of generic gRPC clients that use the servers' reflection only."""

import base64
import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from models.plates import make_plate, to_jpeg
from sightline.cli.processes import ServiceProcess
from tests.compat.conftest import require

Call = Callable[..., str]
"""Runs the client on a target with `list`, `describe NAME` or a method; `data` is its request."""


def run(command: list[str], data: str | None = None) -> str:
    done = subprocess.run(command, input=data, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@pytest.fixture
def with_grpcurl(grpcurl: str) -> Call:
    def call(target: str, *words: str, data: str | None = None) -> str:
        request = ["-d", "@"] if data is not None else []
        return run([grpcurl, "-plaintext", *request, target, *words], data)

    return call


@pytest.fixture
def with_buf() -> Call:
    buf = require("buf", "it is a dependency of the tests")

    def call(target: str, method: str, *, data: str) -> str:
        url = f"http://{target}/{method}"
        return run(
            [buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d", "@-", url], data
        )

    return call


def test_grpcurl_lists_and_describes_both_services(
    with_grpcurl: Call, ingest: ServiceProcess, inference: ServiceProcess
) -> None:
    assert "sightline.ingest.v1.IngestService" in with_grpcurl(ingest.address, "list").split()
    services = with_grpcurl(inference.address, "list").split()
    assert {
        "sightline.inference.v1.InferenceService",
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
    } <= set(services)
    described = with_grpcurl(ingest.address, "describe", "sightline.ingest.v1.IngestService")
    assert "rpc PredictionLog ( stream .sightline.ingest.v1.PredictionLogRequest )" in described
    described = with_grpcurl(inference.address, "describe", "sightline.inference.v1.InferRequest")
    assert "repeated .sightline.inference.v1.Image images = 1;" in described


@pytest.mark.parametrize("client", ["with_grpcurl", "with_buf"])
class TestEveryClient:
    @pytest.fixture
    def call(self, client: str, request: pytest.FixtureRequest) -> Call:
        chosen: Call = request.getfixturevalue(client)
        return chosen

    def ask(self, call: Call, service: ServiceProcess, method: str, body: object) -> Any:
        return json.loads(call(service.address, method, data=json.dumps(body)))

    def test_health(self, call: Call, ingest: ServiceProcess, inference: ServiceProcess) -> None:
        for service, name in (
            (ingest, "sightline.ingest.v1.IngestService"),
            (inference, "sightline.inference.v1.InferenceService"),
        ):
            answer = self.ask(call, service, "grpc.health.v1.Health/Check", {"service": name})
            assert answer == {"status": "SERVING"}

    def test_get_stats(self, call: Call, ingest: ServiceProcess) -> None:
        body = {"filter": {"deviceIds": ["nobody"]}}
        assert self.ask(call, ingest, "sightline.ingest.v1.IngestService/GetStats", body) == {}

    def test_infer_on_a_base64_image(self, call: Call, inference: ServiceProcess) -> None:
        plate = next(p for p in map(make_plate, range(100)) if len(p.boxes) == 1)
        body = {"images": [{"data": base64.b64encode(to_jpeg(plate.image)).decode()}]}
        answer = self.ask(call, inference, "sightline.inference.v1.InferenceService/Infer", body)
        assert answer["modelName"] == "plates"
        result = answer["results"][0]
        assert (result["imageWidth"], result["imageHeight"]) == (320, 240)
        assert result["detections"][0]["confidence"] > 0.25
