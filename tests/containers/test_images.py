"""The container images, built from this checkout and used as strangers use them."""

import io
import json
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToJson
from PIL import Image as Picture

from sightline import InferAnswer, InferenceClient, Prediction, PredictionLogger
from tests.compat.conftest import ROOT, require
from tests.containers.podman import Container, Image, refusal, running
from tests.integration.inference.process import ask

pytestmark = [pytest.mark.containers, pytest.mark.timeout(2400)]
SERVER = {
    "ingest": "sightline.ingest.v1.IngestService",
    "inference": "sightline.inference.v1.InferenceService",
}
SPOOL = "0d4a6f7e-6a0b-4b0e-9a53-0c5f1f1f8a01"
FACTS = """
import json, os
status = dict(line.split(":", 1) for line in open("/proc/1/status") if ":" in line)
def writable(path):
    try:
        open(path, "w").close()
    except OSError as error:
        return error.strerror
    return "written"
print(json.dumps({
    "command": open("/proc/1/cmdline").read().split(chr(0)),
    "user": status["Uid"].split()[0],
    "capabilities": [status[name].strip() for name in ("CapEff", "CapPrm", "CapBnd")],
    "root": writable("/opt/sightline/x"), "data": writable("/data/x"),
}))
"""


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def serving(image: Image, repository: Path) -> Iterator[tuple[Container, str, str]]:
    """Run a service; yield it, the address of its gRPC, and that of its metrics."""
    name, address = image.service.upper(), f"127.0.0.1:{free_port()}"
    env = {
        f"SIGHTLINE_{name}_LISTEN": address,
        f"SIGHTLINE_{name}_METRICS_LISTEN": "127.0.0.1:0",
        # What the health check in the container asks.
        f"SIGHTLINE_EDGE_{name}_TARGET": address,
    }
    begun = time.monotonic()
    with running(image, env=env, options=["-v", f"{repository}:/models:ro"]) as container:
        ready = container.ready()
        image.facts["ready in"] = f"{time.monotonic() - begun:.2f} s"
        yield container, address, ready["metrics_address"]


def grpcurl(address: str, method: str, *messages: str) -> str:
    """Call a method as somebody does who has no stubs: by reflection."""
    program = require(ROOT / ".tools/bin/grpcurl", "`make compat` builds it where Go is installed")
    words = [program, "-plaintext", *(["-d", "\n".join(messages)] if messages else [])]
    done = subprocess.run(
        [*words, address, method], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_image_says_what_it_is_and_is_no_root(image: Image) -> None:
    config = image.config["Config"]
    labels = {
        key.removeprefix("org.opencontainers.image."): v for key, v in config["Labels"].items()
    }
    assert labels["title"] == f"sightline-{image.service}"
    assert labels["licenses"] == "Apache-2.0"
    assert (
        image.python("from servicekit.distribution import version; print(version())")
        == (labels["version"])
    )
    assert config["User"] == "65532:65532"
    assert config["StopSignal"] == "SIGTERM"
    assert list(config["Volumes"]) == ["/data"]
    image.facts["size"] = f"{image.config['Size'] / 1e6:.0f} MB"
    image.facts["user"] = config["User"]


def test_an_image_has_no_pip_and_a_bill_of_materials(image: Image) -> None:
    program = """
import importlib.util, json, pathlib
bill = json.loads(pathlib.Path("/opt/sightline/sbom.cdx.json").read_text())
print(json.dumps({
    "format": bill["bomFormat"], "names": [one["name"] for one in bill["components"]],
    "pip": importlib.util.find_spec("pip") is not None,
    "files": [str(path) for top in ("/usr", "/opt") for path in pathlib.Path(top).rglob("pip*")
              if path.name in ("pip", "pip3") or path.suffix == ".whl"],
}))
"""
    found = json.loads(image.python(program))
    assert (found["pip"], found["files"]) == (False, [])
    assert found["format"] == "CycloneDX"
    need = {"ingest": "duckdb", "console": "fastapi"}.get(image.service, "onnxruntime")
    assert {"grpcio", "sightline-vision", need} <= set(found["names"])
    assert "pip" not in found["names"]
    assert "onnxruntime-gpu" not in found["names"]


def has_no_rights(facts: Mapping[str, Any]) -> bool:
    """Return True if a process has no capability, and can write to its volume only."""
    capabilities = {int(one, 16) for one in facts["capabilities"]}
    written = (facts["root"], facts["data"])
    return capabilities == {0} and written == ("Read-only file system", "written")


def test_an_image_needs_no_right_and_no_writable_root(image: Image) -> None:
    facts = json.loads(image.python(FACTS))
    assert (facts["user"], has_no_rights(facts)) == ("65532", True)
    image.facts.update({"capabilities": "none", "read-only root": "yes"})


@pytest.mark.parametrize("service", SERVER)
def test_a_service_serves_strangers(
    service: str, images: dict[str, Image], repository: Path
) -> None:
    image = images[service]
    with serving(image, repository) as (container, address, metrics):
        facts = json.loads(container.exec("python", "-c", FACTS))
        assert facts["command"][1:3] == ["-m", f"{service}_service"]
        assert (facts["user"], has_no_rights(facts)) == ("65532", True)
        assert "SERVING" in container.exec(*image.config["Healthcheck"]["Test"][1:])
        services = grpcurl(address, "list").splitlines()
        assert SERVER[service] in services
        asked = grpcurl(address, "grpc.health.v1.Health/Check")
        assert json.loads(asked) == {"status": "SERVING"}
        CALLS[service](address)
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=20) as page:
            assert "sightline_grpc_requests_total" in page.read().decode()


def test_the_console_shows_what_is_logged(images: dict[str, Image], repository: Path) -> None:
    with serving(images["ingest"], repository) as (_, target, _):
        _log_and_count(target)
        image, address = images["console"], f"127.0.0.1:{free_port()}"
        env = {
            "SIGHTLINE_CONSOLE_LISTEN": address,
            "SIGHTLINE_CONSOLE_METRICS_LISTEN": "127.0.0.1:0",
            "SIGHTLINE_CONSOLE_INGEST_TARGET": target,
        }
        begun = time.monotonic()
        with running(image, env=env) as container:
            ready = container.ready()
            image.facts["ready in"] = f"{time.monotonic() - begun:.2f} s"
            check = image.config["Healthcheck"]["Test"][1:]
            port = ready["metrics_address"].rpartition(":")[2]
            container.exec(*(word.replace(":9464/", f":{port}/") for word in check))
            for path, found in (("stats", b'"by_edge_device":{"gate-1":1}'), ("", b"<title>")):
                with urllib.request.urlopen(f"http://{address}/{path}", timeout=20) as page:
                    assert found in page.read()
            code, seconds = container.terminate()
        assert code == 0
        image.facts["drain in"] = f"{seconds:.2f} s"


def _log_and_count(address: str) -> None:
    header = {"header": {"deviceId": "gate-1", "spoolId": SPOOL, "client": "grpcurl"}}
    one = {
        "sequence": 1,
        "imageId": "part-1",
        "modelName": "plates",
        "source": "PREDICTION_SOURCE_DEVICE",
        "capturedAt": "2026-11-22T08:00:00Z",
    }
    method = f"{SERVER['ingest']}/PredictionLog"
    answer = json.loads(
        grpcurl(address, method, json.dumps(header), json.dumps({"predictions": [one]}))
    )
    assert (answer["committedThrough"], answer["accepted"]) == ("1", "1")
    counts = json.loads(grpcurl(address, f"{SERVER['ingest']}/GetStats", "{}"))
    assert counts["totalPredictions"] == "1"


def _infer(address: str) -> None:
    request = MessageToJson(ask(_red()), indent=None)
    answer = json.loads(grpcurl(address, f"{SERVER['inference']}/Infer", request))
    (result,) = answer["results"]
    assert [one["className"] for one in result["detections"]] == ["red"]


CALLS: Mapping[str, Callable[[str], None]] = {"ingest": _log_and_count, "inference": _infer}


def test_ingest_drains_under_load_and_keeps_what_it_confirmed(
    images: dict[str, Image], repository: Path, tmp_path: Path
) -> None:
    image = images["ingest"]
    with (
        serving(image, repository) as (container, address, _),
        PredictionLogger(address, device_id="gate-1", spool_dir=tmp_path / "spool") as log,
    ):
        stop = threading.Event()
        logged: list[str] = []
        loader = threading.Thread(target=lambda: _log_until(stop, log, logged))
        loader.start()
        try:
            wait_for(lambda: log.stats().committed > 1000)
            code, seconds = container.terminate()
        finally:
            stop.set()
            loader.join()
        assert code == 0
        image.facts["drain in"] = f"{seconds:.2f} s"
        container.restart()
        assert log.flush(60, until="committed"), log.stats()
        counts = json.loads(grpcurl(address, f"{SERVER['ingest']}/GetStats", "{}"))
        assert counts["totalPredictions"] == str(len(logged))


def _log_until(stop: threading.Event, log: PredictionLogger, logged: list[str]) -> None:
    while not stop.wait(0.001):
        log(Prediction(f"part-{len(logged)}", "plates"))
        logged.append("")


def test_inference_drains_under_load(images: dict[str, Image], repository: Path) -> None:
    image = images["inference"]
    with serving(image, repository) as (container, address, _), InferenceClient(address) as client:
        answered: list[InferAnswer] = []
        refused: list[Exception] = []
        stop = threading.Event()

        def call() -> None:
            while not stop.is_set():
                try:
                    answered.append(client.infer([_red()], timeout=5))
                except Exception as error:  # noqa: BLE001 - the server ends while it is called
                    refused.append(error)

        callers = [threading.Thread(target=call) for _ in range(3)]
        for one in callers:
            one.start()
        try:
            wait_for(lambda: len(answered) > 20)
            before = len(refused)
            code, seconds = container.terminate()
        finally:
            stop.set()
            for one in callers:
                one.join()
        assert (code, before) == (0, 0)
        image.facts["drain in"] = f"{seconds:.2f} s"


def test_a_node_logs_images_of_a_folder(
    images: dict[str, Image], repository: Path, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        (pictures / f"{number}.png").write_bytes(_red())
    tmp_path.chmod(0o755)
    with serving(images["ingest"], repository) as (_, address, _):
        env = {
            "SIGHTLINE_EDGE_DEVICE_ID": "gate-7",
            "SIGHTLINE_EDGE_INGEST_TARGET": address,
            "SIGHTLINE_EDGE_MODE": "device",
            "SIGHTLINE_EDGE_METRICS_LISTEN": "127.0.0.1:0",
            "SIGHTLINE_EDGE_DEVICE_MODEL": "/models/colours/1/model.onnx",
        }
        mounts = ["-v", f"{repository}:/models:ro", "-v", f"{pictures}:/pictures:ro"]
        image = images["edge"]
        code, text = refusal(image, env, "log", "/pictures", "--json", options=mounts)
        assert code == 0, text
        counts = json.loads(grpcurl(address, f"{SERVER['ingest']}/GetStats", "{}"))
        assert counts["totalPredictions"] == "3"


@pytest.mark.parametrize(
    ("service", "env", "said"),
    [
        ("ingest", {"SIGHTLINE_INGEST_LISTN": "x"}, "did you mean SIGHTLINE_INGEST_LISTEN?"),
        ("ingest", {"SIGHTLINE_INGEST_GRACE_SECONDS": "-1"}, "grace_seconds: "),
        ("ingest", {"SIGHTLINE_INGEST_DATABASE": "/opt/x.duckdb"}, "/opt/x.duckdb"),
        ("inference", {"SIGHTLINE_INFERENCE_MODEL_REPOSITORY": "/none"}, "/none"),
        ("inference", {"SIGHTLINE_INFERENCE_WORKERS": "no"}, "workers: "),
        ("edge", {"SIGHTLINE_EDGE_MODE": "cloudy"}, "mode: "),
    ],
)
def test_wrong_settings_end_with_one_sentence(
    service: str, env: dict[str, str], said: str, images: dict[str, Image]
) -> None:
    arguments = ["log", "/pictures"] if service == "edge" else []
    code, text = refusal(images[service], env, *arguments)
    assert code in (1, 2), text
    assert said in text
    assert "Traceback" not in text
    sentences = [line for line in text.splitlines() if said in line]
    assert len(sentences) == 1, text


def test_a_secret_comes_from_a_file_and_is_never_printed(
    images: dict[str, Image], tmp_path: Path
) -> None:
    (tmp_path / "sightline_inference_upload_secret").write_text("too-short-a-secret")
    tmp_path.chmod(0o755)
    env = {"SIGHTLINE_SECRETS_DIR": "/run/secrets"}
    mount = ["-v", f"{tmp_path}:/run/secrets:ro"]
    code, text = refusal(images["inference"], env, options=mount)
    assert code == 2
    assert "upload_secret: must be at least 32 bytes" in text
    assert "too-short-a-secret" not in text


def _red() -> bytes:
    file = io.BytesIO()
    Picture.new("RGB", (64, 64), (255, 0, 0)).save(file, "PNG")
    return file.getvalue()


def wait_for(happened: Callable[[], bool]) -> None:
    """Return when it has happened; fail after a minute."""
    ends_at = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < ends_at
        time.sleep(0.01)
