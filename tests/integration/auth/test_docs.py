"""The commands of docs/how-to/secure.md, run as they stand, one after the other."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.plates import make_plate, to_jpeg
from tests.default_ports import NOBODY, moved
from tests.integration.auth.services import stored
from tests.pages import blocks, section, text

ROOT = Path(__file__).parents[3]
PAGE = text("reference/errors.md")
BLOCKS = blocks("how-to/secure.md")


def test_the_device_of_the_page_has_logged_in_no_tutorial() -> None:
    """Its spool would know the tutorials' database, and declare gaps to that of this page."""
    own = set(re.findall(r"--device-id (\S+)", text("how-to/secure.md")))
    tutorials = [text(f"tutorials/{page}.md") for page in ("camera", "fallback", "laptop")]
    assert own == {"dock-1"}
    assert not own & set(re.findall(r"""[\w-]+""", "".join(tutorials)))


class Shell:
    """A folder with pictures and a model, and `sightline` on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "pictures").mkdir()
        (folder / "pictures" / "part.jpg").write_bytes(to_jpeg(make_plate(3).image))
        shutil.copy(ROOT / "models/repository/plates/1/model.onnx", folder / "model.onnx")
        bin_ = folder / "bin"
        bin_.mkdir()
        program = bin_ / "sightline"
        program.write_text(f"#!{sys.executable}\nfrom sightline.cli.app import main\nmain()\n")
        program.chmod(0o755)
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SIGHTLINE_")}
        self._env = {
            **clean,
            "PATH": f"{bin_}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "SIGHTLINE_INGEST_LISTEN": "127.0.0.1:0",
            "SIGHTLINE_EDGE_SPOOL_DIR": str(folder / "spool"),
            # Whoever is at the default ports must not be met.
            "SIGHTLINE_EDGE_INGEST_TARGET": NOBODY,
            "SIGHTLINE_EDGE_INFERENCE_TARGET": NOBODY,
        }
        self._service: subprocess.Popen[str] | None = None

    def run(self, block: str) -> str:
        """Runs a block; one that serves goes on running, until the next of its kind."""
        if "sightline serve" in block:
            self._serve(block)
            return ""
        done = subprocess.run(
            ["bash", "-euc", moved(block)],
            cwd=self.folder,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _serve(self, block: str) -> None:
        self.stop()
        self._service = subprocess.Popen(
            ["bash", "-euc", block.replace("sightline serve", "exec sightline serve")],
            cwd=self.folder,
            env=self._env,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._service.stdout
        ready = self._service.stdout.readline()
        assert ready, f"{block}\ndid not start"
        self._env["SIGHTLINE_EDGE_INGEST_TARGET"] = json.loads(ready)["address"]

    def stop(self) -> None:
        if self._service is not None:
            self._service.terminate()
            assert self._service.wait(30) == 0
            assert self._service.stdout
            self._service.stdout.close()
            self._service = None


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    made = Shell(tmp_path)
    yield made
    made.stop()


def test_every_command_works(shell: Shell) -> None:
    assert shutil.which("openssl"), "the commands need openssl"
    said = [shell.run(block) for block in BLOCKS]
    assert sum("sightline serve" in block for block in BLOCKS) == 4
    assert any("dock-1" in one and "line-4-*" in one for one in said)  # keys list
    keys = json.loads(shell.run("sightline keys list --json"))
    status = {key["name"]: key["status"] for key in keys}
    assert status == {"dock-1": "active", "line-4": "active", "dashboard": "revoked"}
    shell.stop()
    (key,) = json.loads((shell.folder / "jwks.json").read_text())["keys"]
    assert key["kid"] == "december"
    assert any("notAfter=" in one for one in said)
    # A picture by key, one by token, one by certificate, and one by a key that was replaced.
    assert stored(shell.folder, "sightline.duckdb") == {"dock-1": (4, 4)}


def test_every_reason_is_on_the_page() -> None:
    places = [
        *(ROOT / "servicekit/auth").glob("*.py"),
        ROOT / "servicekit/calls/limits.py",
        ROOT / "ingest_service/read/visible.py",
        ROOT / "edge/channel.py",
    ]
    code = "\n".join(place.read_text() for place in places)
    reasons = set(re.findall(r'"([A-Z]+(?:_[A-Z]+)+)"', code))
    assert len(reasons) >= 20
    assert {reason for reason in reasons if f"`{reason}`" not in PAGE} == set()


def test_a_reason_of_the_page_is_a_reason_of_the_code() -> None:
    table = section("reference/errors.md", "Credentials and limits")
    code = "".join(
        path.read_text()
        for part in ("servicekit", "ingest_service", "edge")
        for path in (ROOT / part).rglob("*.py")
    )
    for reason in re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", table):
        assert f'"{reason}"' in code, reason
