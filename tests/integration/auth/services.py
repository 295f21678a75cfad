"""Both services as real processes, and clients that show any credential."""

import os
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sightline.inference.v1 import inference_pb2, inference_service_pb2, inference_service_pb2_grpc
from sightline.ingest.v1 import (
    ingest_pb2,
    ingest_service_pb2,
    ingest_service_pb2_grpc,
    reads_pb2,
)
from sightline.types.v1 import prediction_pb2

from servicekit.errors import SightlineError, from_rpc_error
from sightline.cli.processes import ServiceProcess
from tests.unit.inference_service.tiny_onnx import picture

PATIENCE = 30.0
"""How long what must happen may take, s."""
RED = picture()


@contextmanager
def serving(module: str, folder: Path, *flags: str) -> Iterator[ServiceProcess]:
    """A service that is ready; its log is stderr.log, its metrics are on."""
    # The default is a file in the current folder, which is the repository's.
    assert module != "ingest_service" or "--database" in flags
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SIGHTLINE_")}
    arguments = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", *flags]
    with (folder / "stderr.log").open("w") as log:
        made = ServiceProcess(module, arguments, env=environment, stderr=log)
    with made:
        yield made


@contextmanager
def ingest(folder: Path, *flags: str) -> Iterator[ServiceProcess]:
    """The ingest service on log.duckdb."""
    database = ["--database", str(folder / "log.duckdb")]
    with serving("ingest_service", folder, *database, *flags) as made:
        yield made


def answered(service: ServiceProcess, method: str) -> dict[str, int]:
    """Returns how many calls of a method ended, by code, as the service's metrics say."""
    url = f"http://{service.ready['metrics_address']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as response:
        text = response.read().decode()
    counts: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "sightline_grpc_requests_total" and sample.labels["method"] == method:
                counts[sample.labels["code"]] += int(sample.value)  # of every class of caller
    return counts


class Client:
    """Calls either service, with a credential or none."""

    def __init__(
        self,
        service: ServiceProcess,
        credential: str | None = None,
        trust: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.metadata = [("authorization", f"Bearer {credential}")] if credential else []
        self.channel = (
            grpc.secure_channel(service.address, trust)
            if trust
            else grpc.insecure_channel(service.address)
        )
        self._ingest = ingest_service_pb2_grpc.IngestServiceStub(self.channel)
        self._inference = inference_service_pb2_grpc.InferenceServiceStub(self.channel)

    def _use(self, method: Any, request: Any, **more: Any) -> Any:
        try:
            return method(request, timeout=PATIENCE, metadata=self.metadata, **more)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def log(self, device: str, *, messages: int = 1) -> ingest_service_pb2.PredictionLogResponse:
        """Logs one prediction a message, of a new spool."""
        first = logged(device)
        return self.stream(iter([first, *(logged(None, n) for n in range(2, messages + 1))]))

    def stream(
        self, requests: Iterator[ingest_service_pb2.PredictionLogRequest]
    ) -> ingest_service_pb2.PredictionLogResponse:
        answer: ingest_service_pb2.PredictionLogResponse = self._use(
            self._ingest.PredictionLog, requests
        )
        return answer

    def watermark(self, device: str) -> int:
        request = ingest_service_pb2.GetWatermarkRequest(
            device_id=device, spool_id=str(uuid.uuid4())
        )
        return int(self._use(self._ingest.GetWatermark, request).committed_through)

    def stats(self, *devices: str) -> dict[str, int]:
        """Returns how many predictions each device has."""
        which = ingest_pb2.PredictionFilter(device_ids=devices)
        request = ingest_service_pb2.GetStatsRequest(filter=which)
        found = self._use(self._ingest.GetStats, request)
        return {entry.key: entry.count for entry in found.by_device}

    def listed(self, *devices: str, **fields: Any) -> ingest_service_pb2.ListPredictionsResponse:
        which = ingest_pb2.PredictionFilter(device_ids=devices)
        request = ingest_service_pb2.ListPredictionsRequest(filter=which, **fields)
        answer: ingest_service_pb2.ListPredictionsResponse = self._use(
            self._ingest.ListPredictions, request
        )
        return answer

    def records(self, method: str, *devices: str, **fields: Any) -> Any:
        """Calls a method of `IngestService` that takes `device_ids`."""
        request = getattr(reads_pb2, f"{method}Request")(device_ids=devices, **fields)
        return self._use(getattr(self._ingest, method), request)

    def found(self, device: str, spool: str, sequence: int = 1) -> Any:
        request = reads_pb2.GetPredictionRequest(
            device_id=device, spool_id=spool, sequence=sequence
        )
        return self._use(self._ingest.GetPrediction, request)

    def infer(self, key: str | None = None) -> bool:
        """Asks for a picture; returns whether the answer was a replay."""
        request = inference_service_pb2.InferRequest(images=[inference_pb2.Image(data=RED)])
        metadata = (*self.metadata, *([("idempotency-key", key)] if key else []))
        try:
            _, done = self._inference.Infer.with_call(request, timeout=PATIENCE, metadata=metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return ("idempotent-replayed", "true") in (done.trailing_metadata() or ())

    def models(self) -> Sequence[str]:
        found = self._use(self._inference.ListModels, inference_service_pb2.ListModelsRequest())
        return [model.name for model in found.models]


def logged(device: str | None, sequence: int = 1) -> ingest_service_pb2.PredictionLogRequest:
    """Returns a message with one prediction; with a device: the first one, of a new spool."""
    prediction = prediction_pb2.Prediction(
        sequence=sequence,
        image_id="i",
        model_name="m",
        source=prediction_pb2.PREDICTION_SOURCE_DEVICE,
    )
    prediction.captured_at.GetCurrentTime()
    request = ingest_service_pb2.PredictionLogRequest(predictions=[prediction])
    if device is not None:
        header = ingest_pb2.LogHeader(device_id=device, spool_id=str(uuid.uuid4()))
        request.header.CopyFrom(header)
    return request


def refusal(call: Any, *arguments: Any) -> SightlineError:
    """Returns what a call fails with."""
    with pytest.raises(SightlineError) as caught:
        call(*arguments)
    return caught.value


def stored(folder: Path, name: str = "log.duckdb") -> dict[str, tuple[int, int]]:
    """Returns rows and distinct (spool, sequence) by device; the service must have ended."""
    with duckdb.connect(str(folder / name), read_only=True) as database:
        unbalanced = database.execute("SELECT * FROM ledger WHERE NOT balanced").fetchall()
        assert unbalanced == []
        rows = database.execute(
            "SELECT device_id, count(*), count(DISTINCT (spool_id, sequence)) FROM predictions"
            " GROUP BY device_id"
        ).fetchall()
    return {device: (count, distinct) for device, count, distinct in rows}
