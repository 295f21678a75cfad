"""Metrics, log lines and spans of the calls of a real server."""

import hashlib
import json
import socket
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sightline.inference.v1.inference_pb2 import Client, ModelHint
from sightline.inference.v1.inference_service_pb2 import (
    InferResponse,
    UploadHeader,
    UploadImageRequest,
)

from servicekit.errors import SightlineError, from_rpc_error
from tests.integration.inference.process import (
    SERVICE,
    InferenceProcess,
    InferenceStub,
    ask,
    client,
    started,
)
from tests.unit.inference_service.tiny_onnx import picture
from tests.unit.servicekit.otlp_collector import Collector, collecting

RED = picture()
SECRET = "of thirty-two bytes and then some more"
PARENT = "b7ad6b7169203331"
Metadata = tuple[tuple[str, str], ...]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def bearer(name: str, scope: str = "infer") -> Metadata:
    claims = {"sub": name, "scope": scope, "exp": time.time() + 600}
    return (("authorization", f"Bearer {jwt.encode(claims, SECRET, algorithm='HS256')}"),)


@dataclass(frozen=True)
class ScrapedService:
    """A server, a client of it, and its collector."""

    server: InferenceProcess
    client: InferenceStub
    collector: Collector

    def infer(
        self, *images: bytes, metadata: Metadata = (), **fields: Any
    ) -> InferResponse | SightlineError:
        """Return the answer to a caller with a good token, or the error."""
        request = ask(*images, **fields)
        try:
            return self.client.stub.Infer(
                request, timeout=30, metadata=(*bearer("gate-1"), *metadata)
            )
        except grpc.RpcError as error:
            return from_rpc_error(error)

    def lines(self, trace_id: str, count: int = 1) -> list[dict[str, Any]]:
        """Return the lines about the calls of a trace, once there are so many."""
        end = time.monotonic() + 20
        while True:
            whole = self.server.log.read_text().rpartition("\n")[0].splitlines()
            lines = [json.loads(line) for line in whole]
            samples = [x for x in lines if x["event"] == "call" and x.get("trace_id") == trace_id]
            if len(samples) >= count:
                assert len(samples) == count
                return samples
            assert time.monotonic() < end, whole[-10:]
            time.sleep(0.01)

    def scrape(self) -> Samples:
        """Return the figures by name and labels."""
        url = f"http://{self.server.metrics_address}/metrics"
        with urllib.request.urlopen(url, timeout=10) as response:
            text = response.read().decode()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, colours: Path) -> Iterator[ScrapedService]:
    flags = [
        *("--model-repository", str(colours), "--default-model", "colours"),
        *("--metrics-listen", "127.0.0.1:0", "--jwt-secret", SECRET, "--max-image-bytes", "200000"),
    ]
    with collecting() as collector, pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")  # ms
        with (
            started(
                tmp_path_factory.mktemp("watched"), *flags, "--otlp-endpoint", collector.endpoint
            ) as server,
            client(server) as created,
        ):
            yield ScrapedService(server, created, collector)


def new_trace() -> tuple[str, Metadata]:
    """Return a trace id, and the metadata of a call in that trace."""
    trace_id = uuid.uuid4().hex
    return trace_id, (("traceparent", f"00-{trace_id}-{PARENT}-01"),)


def test_a_call_has_its_spans_and_its_line_in_the_callers_trace(watched: ScrapedService) -> None:
    trace_id, metadata = new_trace()
    before = time.time()
    watched.infer(RED, RED, b"no picture", metadata=metadata)
    watched.collector.wait_for(lambda spans: sum(s.trace_id == trace_id for s in spans) == 5)
    spans = watched.collector.of(trace_id)
    call = spans.pop(f"{SERVICE}/Infer")
    assert (call.parent_id, call.kind, call.error) == (PARENT, "SPAN_KIND_SERVER", False)
    assert call.attributes["rpc.response.status_code"] == "OK"
    assert call.attributes["sightline.caller"] == "jwt:gate-1"
    assert call.resource["service.name"] == "sightline-inference"
    assert sorted(spans, key=lambda name: spans[name].begun) == [
        *("queue", "decode", "infer", "post")
    ]
    for span in spans.values():
        assert span.parent_id == call.span_id
        assert before <= call.begun <= span.begun <= span.ended <= call.ended + 0.001
    (line,) = watched.lines(trace_id)
    assert line["span_id"] == call.span_id
    assert 0 < line["infer_ms"] <= line["duration_ms"] < 30_000
    expected = {
        "logger": "access",
        "service": "inference",
        "method": f"{SERVICE}/Infer",
        "code": "OK",
        "caller": "jwt:gate-1",
        "model": "colours",
        "version": "2",
        "members": 2,
        "batch": 1,
    }
    assert expected.items() <= line.items()
    assert line["request_bytes"] > 2 * len(RED)
    assert line["response_bytes"] > 0
    assert {"queue_ms", "decode_ms", "post_ms", "peer"} <= line.keys()


def test_context_and_client_are_in_the_line_and_the_span(watched: ScrapedService) -> None:
    trace_id, metadata = new_trace()
    context = {"plant": "3", "duration_ms": "no fact of ours"}
    client = Client(name="inspector", version="1.4", platform="linux-aarch64")
    watched.infer(RED, metadata=metadata, context=context, client=client)
    expected = {
        "context.plant": "3",
        "context.duration_ms": "no fact of ours",
        "client.name": "inspector",
        "client.version": "1.4",
        "client.platform": "linux-aarch64",
    }
    (line,) = watched.lines(trace_id)
    assert expected.items() <= line.items()
    assert line["duration_ms"] > 0
    call = f"{SERVICE}/Infer"
    watched.collector.wait_for(lambda _: call in watched.collector.of(trace_id))
    attributes = watched.collector.of(trace_id)[call].attributes
    assert {f"sightline.{name}": value for name, value in expected.items()}.items() <= (
        attributes.items()
    )


def test_a_replay_says_so_and_runs_nothing(watched: ScrapedService) -> None:
    key = str(uuid.uuid4())
    first, again = new_trace(), new_trace()
    for _, metadata in (first, again):
        watched.infer(RED, metadata=(*metadata, ("idempotency-key", key)))
    (line,), (replay,) = watched.lines(first[0]), watched.lines(again[0])
    assert (line["replayed"], replay["replayed"]) == (False, True)
    assert line["idempotency_key"] == replay["idempotency_key"] == key[:8]
    assert "infer_ms" in line
    assert "infer_ms" not in replay
    assert "model" not in replay  # which may be gone by now
    watched.collector.wait_for(lambda spans: any(s.trace_id == again[0] for s in spans))
    (span,) = watched.collector.of(again[0]).values()
    assert span.attributes["sightline.replayed"] is True


def test_refusals_have_a_line_with_who_why_and_no_credential(watched: ScrapedService) -> None:
    trace_id, metadata = new_trace()
    tokens = [(), bearer("gate-1", scope="log"), (("authorization", "Bearer hunter2"),)]
    for token in tokens:
        with pytest.raises(grpc.RpcError):
            watched.client.stub.Infer(ask(RED), timeout=30, metadata=(*token, *metadata))
    watched.infer(RED, model=ModelHint(name="nothing"), metadata=metadata)
    lines = watched.lines(trace_id, count=4)
    assert [(line["caller"], line["code"], line["reason"]) for line in lines] == [
        ("none", "UNAUTHENTICATED", "CREDENTIAL_MISSING"),
        ("jwt:gate-1", "PERMISSION_DENIED", "SCOPE_MISSING"),
        ("none", "UNAUTHENTICATED", "TOKEN_MALFORMED"),
        ("jwt:gate-1", "NOT_FOUND", "MODEL_NOT_FOUND"),
    ]
    text = watched.server.log.read_text()
    assert "hunter2" not in text
    assert "eyJ" not in text  # as every token begins


def test_health_is_not_logged(watched: ScrapedService) -> None:
    assert watched.client.health() == "SERVING"
    trace_id, metadata = new_trace()
    watched.infer(RED, metadata=metadata)
    watched.lines(trace_id)
    assert "grpc.health" not in watched.server.log.read_text()


def test_the_figures_are_exact(watched: ScrapedService) -> None:
    before = watched.scrape()
    key = (("idempotency-key", str(uuid.uuid4())),)
    for _ in range(3):
        watched.infer(RED, metadata=key)
    error = watched.infer(RED, RED, metadata=key)
    assert isinstance(error, SightlineError)
    assert error.reason == "IDEMPOTENCY_KEY_REUSED"
    watched.infer(RED, RED, b"no picture")
    watched.infer(RED, model=ModelHint(name="nothing"))
    with pytest.raises(grpc.RpcError):
        watched.client.stub.Infer(ask(RED), timeout=30)
    header = UploadHeader(sha256=hashlib.sha256(RED).digest(), size_bytes=len(RED))
    parts = [UploadImageRequest(header=header), UploadImageRequest(chunk=RED)]
    watched.client.stub.UploadImage(iter(parts), timeout=30, metadata=bearer("gate-1"))
    service, model = {"service": SERVICE, "method": "Infer"}, {"model": "colours"}
    after = watched.scrape()

    def more(name: str, **labels: str) -> float:
        at = (f"sightline_{name}", frozenset(labels.items()))
        return after.get(at, 0.0) - before.get(at, 0.0)

    end = time.monotonic() + 30
    while (
        more("grpc_request_seconds_count", **service) < 7
        or more("inference_stage_seconds_count", model="", stage="upload") < 1
        or after["sightline_inference_running", frozenset()]
    ):  # a call may be counted after its answer was sent
        assert time.monotonic() < end, after
        after = watched.scrape()

    def calls(code: str, caller: str) -> float:
        return more("grpc_requests_total", **service, code=code, caller=caller)

    assert calls("OK", "jwt") == 4
    assert calls("FAILED_PRECONDITION", "jwt") == 1
    assert calls("NOT_FOUND", "jwt") == 1
    assert calls("UNAUTHENTICATED", "none") == 1
    assert more("grpc_request_seconds_count", **service) == 7
    assert more("inference_idempotency_total", event="hit") == 2
    assert more("inference_idempotency_total", event="mismatch") == 1
    assert more("inference_request_seconds_count", **model) == 2
    for stage in ("queue", "decode", "infer", "post"):
        assert more("inference_stage_seconds_count", **model, stage=stage) == 3
    assert more("inference_stage_seconds_count", model="", stage="upload") == 1
    assert more("inference_batch_rows_sum", **model) == 3
    assert after["sightline_inference_queue_depth", frozenset()] == 0
    assert after["sightline_inference_running", frozenset()] == 0
    infos = [dict(labels) for name, labels in after if name == "sightline_inference_model_info"]
    assert {(info["model"], info["version"], info["provider"]) for info in infos} == {
        ("colours", "1", "CPUExecutionProvider"),
        ("colours", "2", "CPUExecutionProvider"),
        ("other", "1", "CPUExecutionProvider"),
    }


def test_what_callers_send_makes_no_new_series(watched: ScrapedService) -> None:
    def names() -> set[tuple[str, frozenset[tuple[str, str]]]]:
        return {key for key in watched.scrape() if "python" not in key[0]}

    def send(select: Sequence[int]) -> None:
        for i in select:
            watched.infer(RED, model=ModelHint(name=f"model-{i}", version=f"{i}"))
            watched.client.stub.Infer(ask(RED), timeout=30, metadata=bearer(f"caller-{i}"))

    send(range(1))
    known = names()
    send(range(1, 20))
    assert names() == known


def test_the_last_spans_are_sent_before_the_end(tmp_path: Path, colours: Path) -> None:
    flags = ["--model-repository", str(colours), "--default-model", "colours"]
    with collecting() as collector:
        flags += ["--otlp-endpoint", collector.endpoint]
        with started(tmp_path, *flags) as server, client(server) as one:
            trace_id, metadata = new_trace()
            one.stub.Infer(ask(RED), timeout=30, metadata=metadata)
            assert server.stop() == 0
        assert len(collector.of(trace_id)) == 5


def test_a_collector_that_is_away_delays_neither_calls_nor_the_end(
    tmp_path: Path, colours: Path
) -> None:
    flags = ["--model-repository", str(colours), "--default-model", "colours"]
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        flags += ["--otlp-endpoint", endpoint, "--grace-seconds", "1"]
        with started(tmp_path, *flags) as server, client(server) as one:
            slowest = 0.0
            for _ in range(300):
                begun = time.monotonic()
                one.infer(RED)
                slowest = max(slowest, time.monotonic() - begun)
            assert slowest < 2
            begun = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - begun < 1 + 4  # the grace, and a busy machine
            text = server.log.read_text()
    assert "Traceback" not in text
    assert text.count('"event": "call"') == 300  # the last lines are there as well
