"""Tests of the examples in Go and Node, built from proto/ as by a user, against real services."""

import json
import subprocess
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import duckdb
import grpc
import pytest
from sightline.inference.v1 import inference_pb2, inference_service_pb2

from models.plates import make_plate, to_jpeg
from servicekit.auth.caller import Scope
from servicekit.auth.key_file import KeyFile
from sightline.cli.processes import ServiceProcess
from tests.compat.conftest import ROOT, require

EXAMPLES = ROOT / "examples"
_HOW = "`make compat` builds it where {} is installed"
Done = subprocess.CompletedProcess[str]


@pytest.fixture(params=["go", "node"])
def camera(request: pytest.FixtureRequest) -> list[str]:
    """Return the command that starts the example."""
    if request.param == "go":
        return [require(EXAMPLES / "go/bin/camera", _HOW.format("Go"))]
    node = require("node", "install Node.js 20 or newer")
    built = (EXAMPLES / "node/gen/.built").is_file()  # touched last
    return [require(node if built else "node example", _HOW.format("Node")), "camera.js"]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "part.jpg"
    path.write_bytes(to_jpeg(make_plate(2).image))
    return path


def run(camera: list[str], *words: object) -> Done:
    return subprocess.run(
        [*camera, *map(str, words)],
        cwd=EXAMPLES / "node",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_predictions_are_logged_once(camera: list[str], tmp_path: Path) -> None:
    database = tmp_path / "log.duckdb"
    flags = ["--listen", "127.0.0.1:0", "--database", str(database)]
    spool = str(uuid.uuid4())
    answers = []
    with ServiceProcess("ingest_service", flags) as service:
        for count in (100, 150, 150):
            same = ["--target", service.address, "--device", "gate-9", "--spool", spool]
            done = run(camera, "log", *same, "--count", count)
            assert done.returncode == 0, done.stderr
            answers.append(json.loads(done.stdout))
    assert [answer["committedThrough"] for answer in answers] == ["100", "150", "150"]
    assert [answer["accepted"] for answer in answers] == ["100", "50", "0"]
    with duckdb.connect(str(database), read_only=True) as connection:
        rows = connection.execute(
            "SELECT count(*), count(DISTINCT sequence), max(sequence), "
            "bool_and(detections[1].class_name = 'pit') "
            "FROM predictions WHERE device_id = 'gate-9'"
        ).fetchone()
    assert rows == (150, 150, 150, True)


def test_an_image_is_answered_for_who_has_a_key(
    camera: list[str], picture: Path, tmp_path: Path
) -> None:
    key, _ = KeyFile(tmp_path / "keys.db").create("gate", devices=["*"], scopes=[Scope.INFER])
    (tmp_path / "key").write_text(key)
    flags = ["--listen", "127.0.0.1:0", "--model-repository", str(ROOT / "models/repository")]
    with ServiceProcess(
        "inference_service", [*flags, "--api-keys-file", str(tmp_path / "keys.db")]
    ) as service:
        target = ["--target", service.address]
        done = run(camera, "infer", *target, "--api-key-file", tmp_path / "key", picture)
        refused = run(camera, "infer", *target, picture)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["modelName"] == "plates"
    (result,) = answer["results"]
    assert result["imageId"] == "part.jpg"
    assert result["detections"]
    assert all(0 < detection["confidence"] <= 1 for detection in result["detections"])
    assert refused.returncode == 1
    assert "the call has no credential" in refused.stderr


class AwayAtFirst:
    """A service that is unavailable for the first try, and records every try."""

    def __init__(self) -> None:
        self.tries: list[tuple[dict[str, str | bytes], float, inference_pb2.Image]] = []
        self._lock = threading.Lock()

    def infer(
        self, request: inference_service_pb2.InferRequest, context: "grpc.ServicerContext"
    ) -> inference_service_pb2.InferResponse:
        with self._lock:
            metadata = dict(context.invocation_metadata())
            self.tries.append((metadata, context.time_remaining(), request.images[0]))
            first = len(self.tries) == 1
        if first:
            context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        context.set_trailing_metadata((("idempotent-replayed", "true"),))
        return inference_service_pb2.InferResponse(model_name="plates", model_version="7")


@pytest.fixture
def away_at_first() -> Iterator[tuple[AwayAtFirst, str]]:
    service = AwayAtFirst()
    server = grpc.server(ThreadPoolExecutor(2))
    method = grpc.unary_unary_rpc_method_handler(
        service.infer,
        request_deserializer=inference_service_pb2.InferRequest.FromString,
        response_serializer=inference_service_pb2.InferResponse.SerializeToString,
    )
    name = "sightline.inference.v1.InferenceService"
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(name, {"Infer": method})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield service, f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_retry_has_the_key_of_the_first_try(
    camera: list[str], picture: Path, away_at_first: tuple[AwayAtFirst, str]
) -> None:
    service, target = away_at_first
    done = run(camera, "infer", "--target", target, picture)
    assert done.returncode == 0, done.stderr
    assert "answered by plates 7 (a replay of" in done.stderr
    keys = {metadata["idempotency-key"] for metadata, _, _ in service.tries}
    assert len(service.tries) == 2
    assert [uuid.UUID(str(key)).version for key in keys] == [4]
    for _, remaining, image in service.tries:
        assert 0 < remaining <= 8
        assert image.sha256 == sha256(picture.read_bytes()).digest()
