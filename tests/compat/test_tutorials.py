"""Tests of the tutorials, run as they are printed in a fresh checkout.

docs: tutorials/laptop.md and tutorials/fallback.md.
"""

import json
import os
import re
import shutil
import signal
import site
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compat.conftest import ROOT
from tests.default_ports import NOBODY
from tests.pages import blocks

YOLO = Path(os.environ.get("SIGHTLINE_TEST_MODELS", "")) / "yolov8n_int8.onnx"
LAPTOP = "tutorials/laptop.md"
FALLBACK = "tutorials/fallback.md"
OWN = "--device laptop --model yolov8n"
SIX = "6 answered by the device"


def checkout(folder: Path) -> Path:
    """Copy the files of the repository, uncommitted changes included."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in listed.stdout.split("\0"):
        if (ROOT / name).is_file() and not name.startswith(("tests/", ".tools")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


class Reader:
    """A reader with a checkout, a terminal for commands and one for the services."""

    def __init__(self, folder: Path, path: str) -> None:
        self.folder = folder
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SIGHTLINE_", "PYTHON", "VIRTUAL_ENV"))
        }
        self.env = {
            **clean,
            "PATH": path,
            "COLUMNS": "100",
            "SIGHTLINE_EDGE_SPOOL_DIR": str(folder / "spool"),
            # Services at the default ports must not be reached.
            "SIGHTLINE_EDGE_INGEST_TARGET": NOBODY,
            "SIGHTLINE_EDGE_INFERENCE_TARGET": NOBODY,
        }
        self._up: subprocess.Popen[str] | None = None

    def type(self, block: str, code: int = 0, **env: str) -> str:
        """Run a block, and return the output of both streams."""
        done = subprocess.run(
            ["bash", "-c", f"set -e\n{block}"],
            cwd=self.folder,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=110,
        )
        assert done.returncode == code, f"{block}\n{done.stdout}"
        return done.stdout

    def start(self, block: str) -> None:
        """Run `sightline up` on free ports."""
        ports = "--ingest-listen 127.0.0.1:0 --inference-listen 127.0.0.1:0"
        listen = f"{ports} --console-listen ''"
        self._up = subprocess.Popen(
            ["bash", "-c", f"exec {block.strip()} {listen}"],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._up.stdout
        for _ in range(2):
            ready = json.loads(self._up.stdout.readline())
            self.env[f"SIGHTLINE_EDGE_{ready['service'].upper()}_TARGET"] = ready["address"]

    def ctrl_c(self) -> None:
        """End the services with Ctrl-C."""
        if self._up is not None:
            self._up.send_signal(signal.SIGINT)
            self._up.wait(40)
            assert self._up.stdout
            self._up.stdout.close()
            self._up = None


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """Yield a reader with the environment of this test."""
    program = tmp_path / "bin" / "sightline"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom sightline.cli.app import main\nmain()\n")
    program.chmod(0o755)
    (tmp_path / "python").symlink_to(sys.executable)
    reader = Reader(
        tmp_path, f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    reader.env["PYTHONPATH"] = f"{ROOT}:{ROOT / 'generated'}"
    for name in ("models", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    yield reader
    reader.ctrl_c()


def stats(reader: Reader, flags: str = "") -> dict[str, dict[str, int]]:
    """Return the counts of `sightline stats`: predictions by device, model, source and class."""
    stats = json.loads(reader.type(f"sightline stats {flags} --json"))
    return {
        key: {row["key"]: row["count"] for row in rows}
        for key, rows in stats.items()
        if key.startswith("by_")
    }


@pytest.mark.timeout(300)
def test_the_first_ten_minutes_of_a_stranger(tmp_path: Path) -> None:
    """Install, log the sample images and one's own, cut the network, and query the database."""
    install, up, log, see, defects, own, see_own, unplugged, spools, again, ask = blocks(LAPTOP)
    reader = Reader(checkout(tmp_path), os.environ["PATH"])
    # The packages that pip would fetch are installed already; fetching them is not the test.
    there = f"import site; site.addsitedir({site.getsitepackages()[0]!r})"
    make, activate, pip = install.strip().splitlines()
    reader.type(make)
    (packages,) = tmp_path.glob(".venv/lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(f"{there}\n")
    reader.type(f"{activate}\n{pip}", PIP_DISABLE_PIP_VERSION_CHECK="1")
    reader.env["PATH"] = f"{tmp_path / '.venv/bin'}:{reader.env['PATH']}"
    where = reader.type("cd / && python -c 'import sightline; print(sightline.__file__)'")
    assert where.startswith(str(packages)), "the checkout's own code would be tried"
    try:
        reader.start(up)
        assert SIX in reader.type(log)
        assert re.search(r"predictions\W+6\b", reader.type(see))
        counted = stats(reader)
        assert counted["by_device"] == {"laptop": 6}
        assert set(counted["by_class"]) == {"scratch", "pit", "stain"}
        assert re.search(r"predictions with a defect\W+- \(", reader.type(see))
        assert re.search(r"predictions with a defect\W+[1-6] of 6 with", reader.type(defects))
        with_own = YOLO.is_file()
        if with_own:  # his own photographs, and his own model
            shutil.copytree(ROOT / "examples/pictures", tmp_path / "my-photographs")
            shutil.copy(YOLO, tmp_path / "yolov8n.onnx")
            assert SIX in reader.type(own)
            assert re.search(r"predictions\W+6\b", reader.type(see_own))
            models = {flags: set(stats(reader, flags)["by_model"]) for flags in ("", OWN)}
            assert models == {"": {"model", "yolov8n"}, OWN: {"yolov8n"}}
            assert see_own.strip() == f"sightline stats {OWN}"
        reader.ctrl_c()
        nobody = {f"SIGHTLINE_EDGE_{name}_TARGET": NOBODY for name in ("INGEST", "INFERENCE")}
        output = reader.type(unplugged, code=1, **nobody)
        assert re.search(r"6 (of them )?not (yet )?committed", output)
        assert re.search(r"laptop\W+6\b", reader.type(spools))
        reader.start(up)
        assert re.search(r"laptop\W+empty\b", reader.type(again))
        reader.ctrl_c()
        rows = re.findall(r"plate-\d\.jpg\W+(\w+)\W+(\d+)", reader.type(ask))
        expected = [("model", "4")] * 6 + [("yolov8n", "1")] * 6 * with_own
        assert sorted(rows) == expected
    finally:
        reader.ctrl_c()


def test_the_cloud_answers_where_the_device_does_not(reader: Reader) -> None:
    up, no_model, program, unsure, who = blocks(FALLBACK)
    (fallback,) = blocks(FALLBACK, "python")
    reader.start(up)
    assert "6 by the cloud" in reader.type(no_model)
    for default, part in (("127.0.0.1:50052", "INFERENCE"), ("127.0.0.1:50051", "INGEST")):
        assert default in fallback
        fallback = fallback.replace(default, reader.env[f"SIGHTLINE_EDGE_{part}_TARGET"])
    spool = f'device_id="gate-3", spool_dir="{reader.folder / "gate-3"}"'
    assert 'device_id="gate-3"' in fallback
    (reader.folder / "fallback.py").write_text(fallback.replace('device_id="gate-3"', spool))
    lines = reader.type(program).splitlines()
    assert [line.split()[1] for line in lines] == ["device", "cloud"] * 3
    assert all("device_failed" in line.lower() for line in lines[1::2])
    assert "export" not in unsure, "a later command of the reader would use the band as well"
    reader.env["SIGHTLINE_EDGE_SPOOL_DIR"] = str(reader.folder / "gate-4")
    reader.type(unsure)
    assert re.search(r"predictions\W+18\b", reader.type(who))
    assert stats(reader, "--device gate-3")["by_source"] == {"device": 3, "cloud": 3}
    assert stats(reader, "--device gate-4")["by_source"]["cloud"] > 0
