"""`sightline doctor --bundle` beside real services and a real node, with secrets of every kind."""

import json
import os
import secrets
import stat
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import jwt
import pytest
from typer.testing import CliRunner, Result

from edge.doctor import bundle
from edge.doctor.log_tail import LogFileError, tail
from servicekit.auth.caller import Scope
from servicekit.auth.key_file import KeyFile
from servicekit.settings import PARTS
from sightline import Prediction, PredictionLogger
from sightline.cli.app import app
from tests.default_ports import NOBODY
from tests.faults.disks import limited
from tests.integration.auth.authority import Authority
from tests.integration.auth.services import ingest, serving
from tests.integration.cli.terminal import environment
from tests.unit.edge.test_run import running_node
from tests.unit.inference_service.tiny_onnx import colour_model

MEMBERS = {
    *("README.txt", "findings.json", "settings.json", "versions.json", "machine.json"),
    *("disks.json", "health.json", "spools.json"),
}


def secret(name: str) -> str:
    return f"{name}-{secrets.token_urlsafe(24)}"


@dataclass(frozen=True)
class Made:
    """A bundle, the run that made it, and what must not be in it by name."""

    file: Path
    done: Result
    hidden: dict[str, str]

    def text(self, name: str) -> str:
        with tarfile.open(self.file) as archive:
            file = archive.extractfile(f"sightline-bundle/{name}")
            assert file
            return file.read().decode()

    def names(self) -> set[str]:
        with tarfile.open(self.file) as archive:
            return {name.removeprefix("sightline-bundle/") for name in archive.getnames()}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Made]]:
    """Two bundles of one site: settings that are right, and an address with a password in it."""
    folder = tmp_path_factory.mktemp("site")
    hidden = {name: secret(name) for name in ("jwt-secret", "upload-secret", "otlp", "camera")}
    hidden |= {name: secret(name) for name in ("query", "label", "image-id", "foreign")}
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Bearer%20{hidden['otlp']}")
        env = _start(stack, folder, hidden)
        _spool_something(folder / "spool", hidden)
        logs = _logs(folder, hidden)
        made = {}
        for kind, changes in (
            ("right", {}),
            ("refused", {"SIGHTLINE_EDGE_INGEST_TARGET": f"tcp://a:{hidden['camera']}@b:1"}),
        ):
            file = folder / f"{kind}.tar.gz"
            words = ["doctor", "--bundle", file, *(f"--log={log}" for log in logs)]
            words += ["--metrics", NOBODY, "--api-key", hidden["api-key"]]
            done = CliRunner().invoke(app, list(map(str, words)), env={**env, **changes})
            made[kind] = Made(file, done, hidden)
        yield made


def _start(stack: ExitStack, folder: Path, hidden: dict[str, str]) -> dict[str, str]:
    """Start both services and a node, and return the environment of the doctor beside them."""
    authority = Authority()
    certificate, key = authority.issue("server")
    hidden["tls-key"] = key.decode().splitlines()[1]
    for name, content in (("ca", authority.pem), ("server", certificate), ("private", key)):
        (folder / f"{name}.pem").write_bytes(content)
    hidden["tls-key-path"] = str(folder / "private.pem")
    hidden["api-key"], _ = KeyFile(folder / "keys.db").create(
        "gate-1", devices=["gate-1"], scopes=list(Scope)
    )
    hidden["token"] = jwt.encode({"sub": "gate-1"}, hidden["jwt-secret"], algorithm="HS256")
    (folder / "secrets").mkdir()
    (folder / "secrets/sightline_inference_upload_secret").write_text(hidden["upload-secret"])
    (folder / "sightline.toml").write_text(
        f'[ingest]\njwt_secret = "{hidden["jwt-secret"]}"\ndatabase = "{folder}/log.duckdb"\n'
    )
    colour_model(folder / "models/colours/1/model.onnx")
    tls = ["--tls-cert-file", f"{folder}/server.pem", "--tls-key-file", f"{folder}/private.pem"]
    known = ["--api-keys-file", f"{folder}/keys.db", "--jwt-secret", hidden["jwt-secret"]]
    models = ["--model-repository", f"{folder}/models", "--upload-secret", hidden["upload-secret"]]
    spans = ["--otlp-endpoint", f"http://{NOBODY}"]
    log = stack.enter_context(ingest(folder, *tls, *known, *spans))
    (folder / "inference").mkdir()
    ask = stack.enter_context(
        serving("inference_service", folder / "inference", *tls, *known, *models)
    )
    node, _ = stack.enter_context(running_node(folder / "node"))
    url = f"rtsp://operator:{hidden['camera']}@{NOBODY}/live?token={hidden['query']}"
    metrics = node.serve_metrics("127.0.0.1:0")
    threading.Thread(target=lambda: list(node.run(url)), daemon=True).start()
    while not (sources := node.stats().sources) or not next(iter(sources.values())).last_error:
        time.sleep(0.01)
    settings = environment(
        ingest_target=log.address,
        inference_target=ask.address,
        device_id="gate-1",
        spool_dir=folder / "spool",
        disk_reserve_bytes=0,
        spool_bytes=1 << 20,
        tls_ca_file=folder / "ca.pem",
        context=f"plant={hidden['label']}",
        metrics_listen=metrics,
    )
    return settings | {
        "SIGHTLINE_CONFIG": str(folder / "sightline.toml"),
        "SIGHTLINE_SECRETS_DIR": str(folder / "secrets"),
        "SIGHTLINE_INGEST_METRICS_LISTEN": str(log.ready["metrics_address"]),
        "SIGHTLINE_INGEST_TLS_CERT_FILE": f"{folder}/server.pem",
        "SIGHTLINE_INGEST_TLS_KEY_FILE": f"{folder}/private.pem",
        "SIGHTLINE_INFERENCE_METRICS_LISTEN": str(ask.ready["metrics_address"]),
    }


def _spool_something(folder: Path, hidden: dict[str, str]) -> None:
    with PredictionLogger(NOBODY, device_id="gate-1", spool_dir=folder) as log:
        log(Prediction(hidden["image-id"], "plates", labels={"who": hidden["label"]}))
        assert log.flush(30, until="spooled")


def _logs(folder: Path, hidden: dict[str, str]) -> list[Path]:
    """Return the logs of the services, and one of a program that is not careful."""
    careless = folder / f"careless-{hidden['otlp']}.log"
    careless.write_text(
        f"open rtsp://operator:{hidden['camera']}@10.0.0.7/live?token={hidden['query']}\n"
        f'{{"headers": {{"Authorization": "Bearer {hidden["token"]}"}}}}\n'
        f"GET / x-api-key: {hidden['foreign']}\nkey {hidden['api-key']} {hidden['otlp']}\n"
        f"secret {hidden['jwt-secret']} and {hidden['upload-secret']}\n"
        f"{(folder / 'private.pem').read_text()}\nthe last line\n"
    )
    return [careless, folder / "stderr.log", folder / "inference/stderr.log"]


@pytest.mark.parametrize("kind", ["right", "refused"])
def test_no_secret_is_in_the_archive_or_on_the_terminal(site: dict[str, Made], kind: str) -> None:
    made = site[kind]
    with tarfile.open(made.file) as archive:
        whole = str(archive.getmembers())
    whole += "".join(made.text(name) for name in made.names())
    whole += made.done.stdout + made.done.stderr
    assert "the last line" in whole
    kept = {name for name, value in made.hidden.items() if value in whole}
    assert kept == set()
    half = {name for name, value in made.hidden.items() if value[len(value) // 2 :] in whole}
    assert half == set()


def test_the_bundle_says_what_is_in_it(site: dict[str, Made]) -> None:
    made = site["right"]
    ports = {"edge", "ingest", "inference", "port-1"}
    scraped = {f"{path}/{name}.txt" for path in ("metrics", "readyz") for name in ports}
    logs = {"logs/1-careless-***.log", "logs/2-stderr.log", "logs/3-stderr.log"}
    assert made.names() == MEMBERS | scraped | logs
    readme = made.text("README.txt")
    assert {name for name in made.names() if name not in readme} == {"README.txt"}
    assert {name for name in made.names() if name not in made.done.stdout} == set()


def test_the_bundle_has_what_helps(site: dict[str, Made]) -> None:
    made = site["right"]
    settings = json.loads(made.text("settings.json"))
    assert set(settings) == {*PARTS, "variables"}
    assert settings["edge"]["given"]["api_key"] == "***"
    assert settings["edge"]["given"]["context"] == ["plant=***"]
    assert settings["ingest"]["given"]["jwt_secret"] == "***"
    assert settings["ingest"]["given"]["tls_key_file"].startswith("*** (")
    assert settings["ingest"]["given"]["tls_cert_file"].endswith("server.pem")
    assert settings["ingest"]["defaults"]["group_bytes"] == 8 << 20
    assert settings["inference"]["given"]["upload_secret"] == "***"
    assert "OTEL_EXPORTER_OTLP_HEADERS" in settings["variables"]
    findings = {one["check"]: one["level"] for one in json.loads(made.text("findings.json"))}
    assert findings["ingest"] == findings["inference credential"] == "ok", findings
    assert {one["status"] for one in json.loads(made.text("health.json")).values()} == {"SERVING"}
    (spool,) = json.loads(made.text("spools.json"))
    assert (spool["pending"], spool["predictions"], spool["gaps"]) == (1, 1, {})
    assert json.loads(made.text("versions.json"))["packages"]["grpcio"]
    assert json.loads(made.text("machine.json"))["cpus"]["usable"] >= 1
    disks = json.loads(made.text("disks.json"))
    assert disks["ingest.database"]["bytes"] > 0
    assert disks["edge.spool_dir"]["disk_free_bytes"] > 0
    assert "sightline_ingest_predictions_total" in made.text("metrics/ingest.txt")
    assert "127.0.0.1:1/live" in made.text("metrics/edge.txt")
    assert made.text("readyz/inference.txt") == "ready\n"
    assert made.text("metrics/port-1.txt").startswith("error: ")
    assert "loaded model colours" in made.text("logs/3-stderr.log")


def test_a_setting_that_is_refused_prevents_no_bundle(site: dict[str, Made]) -> None:
    made = site["refused"]
    assert made.done.exit_code == 1
    settings = json.loads(made.text("settings.json"))
    assert "ingest_target" in settings["edge"]["error"]
    assert settings["inference"]["given"]["upload_secret"] == "***"
    assert json.loads(made.text("health.json")) is None
    assert "sightline_ingest_predictions_total" in made.text("metrics/ingest.txt")


def test_only_its_owner_may_read_it_and_nothing_is_left_beside_it(site: dict[str, Made]) -> None:
    file = site["right"].file
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.glob("*partial*")] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bundle", "there.tar.gz"], "there.tar.gz exists already"),
        (["--bundle", "no/such/b.tar.gz"], "there is no folder no/such"),
        (["--bundle", "b.tar.gz", "--log", "gone.log"], "gone.log is not a file"),
        (["--bundle", "b.tar.gz", "--log", "packed.log.gz"], "packed.log.gz is no text"),
        (["--bundle", "b.tar.gz", "--metrics", "http://u:p@h:1/"], "must be host:port"),
        (["--log", "gone.log"], "give --bundle FILE.tar.gz as well"),
    ],
)
def test_what_cannot_be_bundled_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.tar.gz").write_text("mine")
    (tmp_path / "packed.log.gz").write_bytes(b"\x1f\x8bpacked")
    done = CliRunner().invoke(app, ["doctor", *words])
    assert done.exit_code != 0
    assert message in f"{done.output}{done.exception}"
    assert (tmp_path / "there.tar.gz").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed.log.gz", "there.tar.gz"]


def test_a_bundle_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    files = [bundle.Member("README.txt", "", "x")]
    file = tmp_path / "b.tar.gz"
    bundle.write(file, files)
    before = file.read_bytes()
    with pytest.raises(FileExistsError):
        bundle.write(file, files)
    with limited(os.getpid(), tmp_path, -1), pytest.raises(OSError, match="File too large"):
        bundle.write(tmp_path / "c.tar.gz", files)
    assert (file.read_bytes(), list(tmp_path.iterdir())) == (before, [file])


@pytest.mark.parametrize(
    ("content", "size", "shown"),
    [
        (b"", 8, ""),
        (b"a\nb\n", 8, "a\nb\n"),
        (b"first\nsecond\n", 7, "second\n"),
        (b"token=first\nsecond\n", 9, "second\n"),  # not `st`, the end of a secret
        (b"one line that is too long", 8, ""),
        (b"\xff\n", 8, "\ufffd\n"),
    ],
)
def test_a_tail_has_whole_lines(tmp_path: Path, content: bytes, size: int, shown: str) -> None:
    (tmp_path / "log").write_bytes(content)
    assert tail(tmp_path / "log", size) == shown


def test_a_log_in_two_byte_characters_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("password=a", encoding="utf-16")
    with pytest.raises(LogFileError, match="no text"):
        tail(tmp_path / "log")
