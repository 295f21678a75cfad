"""TLS of the console, and to the services: nobody is answered in the console's name."""

import http.client
import json
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from servicekit.auth.caller import Scope
from servicekit.auth.key_file import KeyFile
from sightline.cli.processes import ServiceProcess
from tests.integration.auth.authority import Authority
from tests.integration.auth.services import ingest
from tests.integration.console.conftest import targets

MakeConsole = Callable[..., ServiceProcess]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Paths of certificates: of an authority, of a server, and of the console."""
    authority = Authority()
    made = {"ca": authority.pem}
    made["cert"], made["key"] = authority.issue("server")
    made["own_cert"], made["own_key"] = authority.issue("*")
    for name, pem in made.items():
        (tmp_path / f"{name}.pem").write_bytes(pem)
    return {name: str(tmp_path / f"{name}.pem") for name in made}


def flags(files: dict[str, str], **named: str) -> list[str]:
    pairs = [(f"--{flag.replace('_', '-')}", files[name]) for flag, name in named.items()]
    return [word for pair in pairs for word in pair]


class SecureBrowser:
    """A client over HTTPS that trusts one authority."""

    def __init__(self, address: str, authority: str) -> None:
        self._address = address
        self._context = ssl.create_default_context(cafile=authority)

    def send(self, method: str, path: str, body: object = None, **headers: str) -> Any:
        """Return the status, the headers and the JSON of an answer."""
        connection = http.client.HTTPSConnection(self._address, context=self._context, timeout=30)
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, response.headers, json.loads(content) if content else None


SERVER = {"tls_cert_file": "cert", "tls_key_file": "key"}
MUTUAL = {**SERVER, "tls_client_ca_file": "ca"}
BACKEND = {"backend_tls_ca_file": "ca"}
OWN = {**BACKEND, "backend_tls_cert_file": "own_cert", "backend_tls_key_file": "own_key"}


def test_https_all_the_way_and_a_secure_cookie(
    tmp_path: Path, files: dict[str, str], make_console: MakeConsole
) -> None:
    keys = KeyFile(tmp_path / "keys.db")
    key, _ = keys.create("reader", devices=["*"], scopes=[Scope.READ])
    asks = ["--api-keys-file", str(tmp_path / "keys.db")]
    with ingest(tmp_path, *flags(files, **SERVER), *asks) as log:
        made = make_console(*targets(log.address), *flags(files, **SERVER, **BACKEND))
        browser = SecureBrowser(made.address, files["ca"])
        status, headers, _ = browser.send("POST", "/session", {"credential": key})
        assert status == 204
        assert headers["set-cookie"].endswith("; HttpOnly; SameSite=Strict; Secure")
        cookie = headers["set-cookie"].partition(";")[0]
        assert browser.send("GET", "/stats", Cookie=cookie)[0] == 200
        assert browser.send("GET", "/stats")[0] == 401


def test_with_mutual_tls_nobody_is_answered_as_the_console(
    tmp_path: Path, files: dict[str, str], make_console: MakeConsole
) -> None:
    """A service that takes certificates would answer anybody who reaches the console."""
    keys = KeyFile(tmp_path / "keys.db")
    key, _ = keys.create("reader", devices=["*"], scopes=[Scope.READ])
    for asks, expected in (
        (["--api-keys-file", str(tmp_path / "keys.db")], {"": 401, "Bearer x": 401, key: 200}),
        ([], {"": 401, "Bearer x": 400, key: 400}),
    ):
        trust = ["--no-tls-client-is-device"]
        with ingest(tmp_path, *flags(files, **MUTUAL), *asks, *trust) as log:
            made = make_console(*targets(log.address), *flags(files, **OWN))
            for credential, status in expected.items():
                shown = credential if " " in credential else f"Bearer {credential}"
                headers = {"Authorization": shown} if credential else {}
                for path in ("/stats", "/live"):
                    found = _status(made.address, path, headers)
                    assert found[0] == status, (path, credential, found)
                    if status == 400:
                        assert found[1] == "SERVICE_TAKES_CERTIFICATES_ONLY"


def _status(address: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request("GET", path, None, headers)
        response = connection.getresponse()
        if response.status == 200:  # which may be events without an end
            return 200, ""
        return response.status, json.loads(response.read())["reason"]
    finally:
        connection.close()


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path, files: dict[str, str]) -> None:
    (tmp_path / "cert.pem").write_text("nonsense")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "console_service", "--listen", "127.0.0.1:0"),
            *flags(files, **SERVER),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "tls_cert_file" in done.stderr
    assert "must be a certificate" in done.stderr


SERVE = """
import asyncio, sys
from prometheus_client import CollectorRegistry
from console_service.server import serve
from console_service.settings import ConsoleSettings
from servicekit.settings import load
from servicekit.telemetry import logs

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"1"})

logs.configure(service="console")
settings = load(ConsoleSettings, sys.argv[1:], prog="console")
asyncio.run(serve(settings, app, CollectorRegistry(), asyncio.Event()))
"""


def test_a_new_certificate_is_used_for_new_connections(
    tmp_path: Path, files: dict[str, str]
) -> None:
    other = Authority("other")
    (tmp_path / "other.pem").write_bytes(other.pem)
    command = [sys.executable, "-c", SERVE, "--listen", "127.0.0.1:0", *flags(files, **SERVER)]
    with (
        (tmp_path / "console.log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["address"]
        old = SecureBrowser(address, files["ca"])
        new = SecureBrowser(address, str(tmp_path / "other.pem"))
        assert old.send("GET", "/")[2] == 1
        cert, key = other.issue("server")
        Path(files["cert"]).write_bytes(cert)  # and not its key yet
        for _ in range(2):
            assert old.send("GET", "/")[2] == 1
        Path(files["key"]).write_bytes(key)
        assert new.send("GET", "/")[2] == 1
        with pytest.raises(ssl.SSLCertVerificationError):
            old.send("GET", "/")
        process.terminate()
        assert process.wait(30) == 0
    said = (tmp_path / "console.log").read_text()
    assert said.count("the last certificate stays in use") == 1
    assert said.count("new connections get the certificate") == 1
