"""`sightline doctor` against real services, with one real fault at a time."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from servicekit.auth.caller import Scope
from servicekit.auth.key_file import KeyFile
from sightline.cli.app import app
from sightline.cli.processes import ServiceProcess
from tests.integration.auth.authority import Authority
from tests.integration.auth.services import ingest, serving
from tests.integration.cli.terminal import environment, sightline
from tests.unit.edge.sources.monitors import save_pictures
from tests.unit.inference_service.tiny_onnx import colour_model


@dataclass(frozen=True)
class Services:
    """Both services, and the settings of a node that reaches them."""

    ingest: ServiceProcess
    inference: ServiceProcess
    folder: Path

    def settings(self, **more: object) -> dict[str, object]:
        return {
            "ingest_target": self.ingest.address,
            "inference_target": self.inference.address,
            "device_id": "gate-1",
            "spool_dir": self.folder / "spool",
            "disk_reserve_bytes": 0,
            "spool_bytes": 1 << 20,
            **more,
        }


@contextmanager
def both(folder: Path, *flags: str) -> Iterator[Services]:
    folder.mkdir(exist_ok=True)
    colour_model(folder / "models" / "colours" / "1" / "model.onnx")
    models = ["--model-repository", str(folder / "models")]
    with (
        ingest(folder, *flags) as log,
        serving("inference_service", folder, *models, *flags) as ask,
    ):
        yield Services(log, ask, folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    with both(tmp_path_factory.mktemp("plain")) as services:
        yield services


@dataclass(frozen=True)
class Keyed:
    """Services that want a key, and keys that they know, by what they are good for."""

    services: Services
    keys: dict[str, str]


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    folder = tmp_path_factory.mktemp("keyed")
    file = KeyFile(folder / "keys.db")
    keys = {}
    for kind, device, scopes in (
        ("good", "gate-1", [Scope.LOG, Scope.INFER]),
        ("everything", "gate-1", list(Scope)),
        ("read only", "gate-1", [Scope.READ]),
        ("log only", "gate-1", [Scope.LOG]),
        ("another device", "gate-2", [Scope.LOG, Scope.INFER]),
        ("revoked", "gate-1", list(Scope)),
    ):
        keys[kind], kept = file.create(device, devices=[device], scopes=scopes)
    file.revoke(kept.id)  # the last one
    with both(folder, "--api-keys-file", str(folder / "keys.db")) as services:
        yield Keyed(services, keys)


def levels(done: Result) -> dict[str, str]:
    """Return each check's worst level."""
    found: dict[str, str] = {}
    order = ["ok", "warning", "failed"]
    for one in json.loads(done.stdout)["findings"]:
        worst = found.get(one["check"], "ok")
        found[one["check"]] = max(worst, one["level"], key=order.index)
    return found


def finding(done: Result, check: str) -> dict[str, Any]:
    (found,) = [one for one in json.loads(done.stdout)["findings"] if one["check"] == check]
    assert (found["action"] == "") == (found["level"] == "ok")
    return dict(found)


def doctor(**settings: object) -> Result:
    """Run it in this process, which saves a second."""
    mine = {name: None for name in os.environ if name.startswith("SIGHTLINE_")}
    named = {f"SIGHTLINE_EDGE_{name.upper()}": str(value) for name, value in settings.items()}
    done = CliRunner().invoke(app, ["doctor", "--json"], env={**mine, **named})
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert done.exit_code == (1 if json.loads(done.stdout)["failed"] else 0), done.stdout
    return done


def test_all_is_well(plain: Services, tmp_path: Path) -> None:
    model = colour_model(tmp_path / "colours.onnx")
    done = doctor(**plain.settings(device_model=model))
    assert done.exit_code == 0
    assert set(levels(done).values()) == {"ok"}
    assert set(levels(done)) == {
        *(
            "settings",
            "settings names",
            "machine",
            "spool",
            "spool folder",
            "disk",
            "model",
            "model run",
        ),
        *("ingest", "ingest clock", "ingest version", "ingest credential"),
        *("inference", "inference clock", "inference version", "inference credential"),
        *("inference model", "inference labels"),
    }
    assert "no credential is needed" in finding(done, "ingest credential")["message"]
    assert "colours 1 on CPUExecutionProvider" in finding(done, "inference model")["message"]
    assert "within" in finding(done, "ingest clock")["message"]


def test_for_people_each_finding_is_a_line_and_what_to_do_another(plain: Services) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, and nobody listens
        target = f"127.0.0.1:{unused.getsockname()[1]}"
        done = sightline("doctor", env=environment(**plain.settings(ingest_target=target)))
    assert done.returncode == 1
    assert f"failed  ingest                nothing listens at {target}" in done.stdout
    assert "-> Start the service there" in done.stdout
    assert done.stdout.splitlines()[-1].endswith(", 1 failed")


def test_the_two_targets_are_swapped(plain: Services) -> None:
    swapped = {
        "ingest_target": plain.inference.address,
        "inference_target": plain.ingest.address,
    }
    done = doctor(**plain.settings(**swapped))
    assert "without sightline.ingest.v1.IngestService" in finding(done, "ingest")["message"]
    assert "inference_target" in finding(done, "inference")["action"]


def test_a_port_where_something_else_listens(plain: Services) -> None:
    metrics = str(plain.ingest.ready["metrics_address"])  # HTTP
    done = doctor(**plain.settings(ingest_target=metrics))
    assert finding(done, "ingest")["level"] == "failed"
    assert "does not answer as gRPC" in finding(done, "ingest")["message"]


def test_a_model_that_the_service_does_not_have(plain: Services) -> None:
    done = doctor(**plain.settings(cloud_model="plates"))
    found = finding(done, "inference model")
    assert "has no plates (it has: colours 1)" in found["message"]
    assert "cloud_model" in found["action"]


def test_a_node_that_never_asks_the_cloud_needs_none(plain: Services, tmp_path: Path) -> None:
    model = colour_model(tmp_path / "colours.onnx")
    nowhere = {"inference_target": "127.0.0.1:1", "mode": "device", "device_model": model}
    done = doctor(**plain.settings(**nowhere))
    assert done.exit_code == 0
    assert "not used" in finding(done, "inference")["message"]


def test_labels_that_differ(plain: Services, tmp_path: Path) -> None:
    model = colour_model(tmp_path / "m.onnx", names={0: "person", 1: "car", 2: "dog"})
    given = plain.settings(device_model=model, mode="cascade")
    found = finding(doctor(**given), "inference labels")
    assert found["level"] == "warning"
    assert "only the cloud has 'blue', 'green', 'red'" in found["message"]
    assert "In mode cascade the cloud's answer is not taken" in found["message"]
    assert "cloud_label_map" in found["action"]
    auto = finding(doctor(**{**given, "mode": "auto"}), "inference labels")
    assert "In mode auto the cloud's answer has its own classes" in auto["message"]
    mapped = {**given, "cloud_label_map": "red=person,green=car,blue=dog"}
    assert finding(doctor(**mapped), "inference labels")["level"] == "ok"
    renamed = finding(doctor(**{**given, "cloud_label_map": "redd=person"}), "inference classes")
    assert renamed["level"] == "failed"
    assert "the cloud's model has no class 'redd', did you mean red?" in renamed["message"]
    allowed = finding(doctor(**{**given, "cloud_labels": "any"}), "inference labels")
    assert allowed["level"] == "ok"
    assert "as cloud_labels allows" in allowed["message"]
    same = {**given, "device_model": colour_model(tmp_path / "same.onnx")}
    assert finding(doctor(**same), "inference labels")["level"] == "ok"


def test_a_broken_model(plain: Services, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    done = doctor(**plain.settings(device_model=tmp_path / "broken.onnx"))
    assert finding(done, "model")["level"] == "failed"
    assert finding(done, "ingest")["level"] == "ok"  # the other checks go on


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("timeout_seconds", "soon", "timeout_seconds"),
        ("ingest_target", "nonsense", "ingest_target"),
        ("tls_ca_file", "/no/such/ca.pem", "tls_ca_file"),
        ("api_key_file", "/no/such/key", "api_key_file"),
    ],
)
def test_a_setting_that_cannot_be_used(setting: str, value: str, words: str) -> None:
    done = doctor(**{setting: value})
    found = [one for one in json.loads(done.stdout)["findings"] if one["level"] == "failed"]
    assert words in found[0]["message"]
    assert found[0]["action"]


def test_a_slip_in_a_variables_name(plain: Services) -> None:
    done = doctor(**plain.settings(device="gate-1"))
    assert done.exit_code == 1
    found = finding(done, "settings")
    assert found["level"] == "failed"
    assert "did you mean SIGHTLINE_EDGE_DEVICE_ID?" in found["message"]


def test_a_good_key(keyed: Keyed, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(keyed.keys["good"])
    done = doctor(**keyed.services.settings(api_key_file=tmp_path / "key"))
    assert done.exit_code == 0
    assert "may log as gate-1 and not read" in finding(done, "ingest credential")["message"]
    assert "accepted: may infer" in finding(done, "inference credential")["message"]
    done = doctor(**keyed.services.settings(api_key=keyed.keys["everything"]))
    assert "may log as gate-1 and read" in finding(done, "ingest credential")["message"]


def test_no_key_where_one_is_needed(keyed: Keyed) -> None:
    done = doctor(**keyed.services.settings())
    for check in ("ingest credential", "inference credential"):
        assert "CREDENTIAL_MISSING" in finding(done, check)["message"]
        assert "SIGHTLINE_EDGE_API_KEY_FILE" in finding(done, check)["action"]


@pytest.mark.parametrize(
    ("kind", "check", "reason", "action"),
    [
        ("revoked", "ingest credential", "API_KEY_REVOKED", "keys create gate-1"),
        ("read only", "ingest credential", "SCOPE_MISSING", "--scope log"),
        ("log only", "inference credential", "SCOPE_MISSING", "--scope infer"),
        ("another device", "ingest credential", "DEVICE_NOT_ALLOWED", "correct device_id"),
    ],
)
def test_a_key_that_may_not(keyed: Keyed, kind: str, check: str, reason: str, action: str) -> None:
    found = finding(doctor(**keyed.services.settings(api_key=keyed.keys[kind])), check)
    assert found["level"] == "failed"
    assert reason in found["message"]
    assert action in found["action"]


@contextmanager
def secured(
    folder: Path, authority: Authority, *flags: str, **issue: Any
) -> Iterator[Callable[..., Result]]:
    """An ingest service with TLS; yields what runs the doctor on it."""
    certificate, key = authority.issue("server", **issue)
    (folder / "ca.pem").write_bytes(authority.pem)
    (folder / "server.pem").write_bytes(certificate)
    (folder / "server.key").write_bytes(key)
    tls = ["--tls-cert-file", str(folder / "server.pem"), "--tls-key-file"]
    with ingest(folder, *tls, str(folder / "server.key"), *flags) as service:

        def ask(**more: object) -> Result:
            where = {"ingest_target": service.address, "inference_target": "127.0.0.1:1"}
            return doctor(**where, spool_dir=folder / "spool", **more)

        yield ask


def test_certificates(tmp_path: Path) -> None:
    authority, other = Authority(), Authority()
    (tmp_path / "other.pem").write_bytes(other.pem)
    with secured(tmp_path, authority, lasts=timedelta(days=300)) as ask:
        done = ask(tls_ca_file=tmp_path / "ca.pem")
        assert finding(done, "ingest tls")["level"] == finding(done, "ingest")["level"] == "ok"
        assert "trusted until" in finding(done, "ingest tls")["message"]
        done = ask(tls_ca_file=tmp_path / "other.pem")
        assert "not trusted" in finding(done, "ingest tls")["message"]
        assert "other.pem" in finding(done, "ingest tls")["action"]
        assert finding(done, "ingest")["level"] == "failed"
        done = ask()
        assert "speaks TLS" in finding(done, "ingest")["message"]
        assert "TLS_CA_FILE" in finding(done, "ingest")["action"]


@pytest.mark.parametrize(
    ("issue", "level", "words"),
    [
        ({"lasts": timedelta(days=1)}, "warning", "ends on"),
        ({"lasts": timedelta(days=-1)}, "failed", "expired"),
        ({"address": "127.0.0.9"}, "failed", "mismatch"),
    ],
)
def test_a_certificate_to_do_something_about(
    tmp_path: Path, issue: Any, level: str, words: str
) -> None:
    with secured(tmp_path, Authority(), **issue) as ask:
        found = finding(ask(tls_ca_file=tmp_path / "ca.pem"), "ingest tls")
    assert found["level"] == level
    assert words in found["message"]


def test_a_server_without_tls(plain: Services, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(Authority().pem)
    done = doctor(**plain.settings(tls_ca_file=tmp_path / "ca.pem"))
    assert "does not speak TLS" in finding(done, "ingest tls")["message"]


def test_a_server_that_wants_to_know_its_clients(tmp_path: Path) -> None:
    authority = Authority()
    certificate, key = authority.issue("gate-1")
    (tmp_path / "gate.pem").write_bytes(certificate)
    (tmp_path / "gate.key").write_bytes(key)
    demand = ["--tls-client-ca-file", str(tmp_path / "ca.pem")]
    with secured(tmp_path, authority, *demand, lasts=timedelta(days=300)) as ask:
        done = ask(tls_ca_file=tmp_path / "ca.pem")
        assert "a certificate of its clients" in finding(done, "ingest tls")["message"]
        assert "tls_cert_file" in finding(done, "ingest tls")["action"]
        own = {"tls_cert_file": tmp_path / "gate.pem", "tls_key_file": tmp_path / "gate.key"}
        done = ask(tls_ca_file=tmp_path / "ca.pem", **own)
        assert finding(done, "ingest tls")["level"] == finding(done, "ingest")["level"] == "ok"


def test_services_on_unix_sockets(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with ingest(tmp_path, "--listen", f"unix:{path}"):
        done = doctor(
            ingest_target=f"unix:{path}", spool_dir=tmp_path / "spool", device_id="gate-1"
        )
        assert finding(done, "ingest")["level"] == "ok"
    assert "nothing listens" in finding(doctor(ingest_target=f"unix:{path}"), "ingest")["message"]


def test_a_name_that_is_no_setting_is_not_also_called_known() -> None:
    done = doctor(device="gate-1")
    assert "SIGHTLINE_EDGE_DEVICE is not a setting" in finding(done, "settings")["message"]
    assert set(levels(done)) == {"settings"}


@pytest.mark.parametrize(
    ("words", "wrong", "right"),
    [
        (["stats", "--ingest", "{inference}"], "ingest", "--ingest"),
        (["backup", "--to", "{folder}/b.db", "--target", "{inference}"], "ingest", "--ingest"),
        (["models", "ls", "--address", "{ingest}"], "inference", "--inference"),
        (["infer", "{image}", "--target", "{ingest}"], "inference", "inference_target"),
    ],
)
def test_swapped_addresses_are_named(
    plain: Services, tmp_path: Path, words: list[str], wrong: str, right: str
) -> None:
    folder = save_pictures(tmp_path / "pictures", "a.jpg")
    places = {"ingest": plain.ingest.address, "inference": plain.inference.address}
    given = [word.format(**places, folder=tmp_path, image=folder / "a.jpg") for word in words]
    done = sightline(*given, env=environment(spool_dir=tmp_path / "spool"))
    assert done.returncode == 1
    answering = places["inference" if wrong == "ingest" else "ingest"]
    assert f"{answering} answers, but is not the {wrong} service" in done.stderr
    assert f"set {right} to the {wrong} service" in done.stderr


def test_a_log_sent_to_the_inference_service_has_that_as_its_last_error(
    plain: Services, tmp_path: Path
) -> None:
    folder = save_pictures(tmp_path / "pictures", "a.jpg")
    model = colour_model(tmp_path / "colours.onnx")
    flags = ["--ingest", plain.inference.address, "--model", model, "--wait", "5"]
    env = environment(spool_dir=tmp_path / "spool", device_id="gate-1")
    done = sightline("log", folder, *flags, env=env)
    assert done.returncode == 1
    (line,) = [one for one in done.stdout.splitlines() if one.startswith("Last error")]
    assert f"{plain.inference.address} answers, but is not the ingest service" in line
    assert "set ingest_target (--ingest) to the ingest service" in line
