"""`sightline spool` as a person uses it, beside a node that runs, is killed and is repaired."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from sightline.types.v1 import prediction_pb2
from typer.testing import CliRunner

from edge.log.logger import PredictionLogger
from edge.options import LogOptions
from edge.records import Prediction
from edge.spool.directories import fork_directories
from sightline.cli.app import app
from tests.integration.edge_log.ingest import serving
from tests.pages import blocks

ROOT = Path(__file__).parents[3]
SIGHTLINE = [sys.executable, "-c", "from sightline.cli.app import main; main()"]
EDGE = [sys.executable, "-m", "edge"]
NODE = Path(__file__).with_name("node.py")


def environment(**settings: object) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SIGHTLINE_")}
    named = {f"SIGHTLINE_EDGE_{name.upper()}": str(value) for name, value in settings.items()}
    return {**clean, "COLUMNS": "200", **named}


def spool(
    *words: object, by: list[str] = SIGHTLINE, **settings: object
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*by, "spool", *map(str, words)],
        env=environment(**settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


@dataclass(frozen=True)
class Node:
    folder: Path
    process: "subprocess.Popen[str]"

    def spooled(self) -> int:
        assert self.process.stdout
        return int(self.process.stdout.readline())


@contextmanager
def running(folder: Path) -> Iterator[Node]:
    """A node that is killed at the end."""
    with subprocess.Popen(
        [sys.executable, str(NODE), str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        node = Node(folder, process)
        try:
            assert node.spooled() == 10
            yield node
        finally:
            process.send_signal(signal.SIGKILL)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with running(tmp_path / "spool") as found:
        yield found


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a killed node leaves it; not to be changed."""
    folder = tmp_path_factory.mktemp("killed") / "spool"
    with running(folder) as node:
        while node.spooled() < 100:
            pass
    return folder


@pytest.fixture
def folder(killed: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    subprocess.run(["cp", "-a", str(killed), str(tmp_path / "spool")], check=True)
    return tmp_path / "spool"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".db-shm"}


def wipe_schema(folder: Path) -> None:
    """Writes the log into the file, and makes that unreadable."""
    for name in ("spool.db", "spool.db-wal"):
        path = folder / name
        data = path.read_bytes() if path.exists() else b""
        path.write_bytes(data.replace(b"CREATE TABLE predictions", b"CREATE TABLE predicti*ns"))


def test_ls_says_which_spools_are_empty(tmp_path: Path) -> None:
    for name, count in (("new", 0), ("waiting", 2)):
        with PredictionLogger("127.0.0.1:1", device_id=name, spool_dir=tmp_path / name) as log:
            for number in range(count):
                log(Prediction(f"part-{number}", "m"))
            assert log.flush(60)
    done = CliRunner().invoke(app, ["spool", "ls", str(tmp_path)], env={"COLUMNS": "200"})
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in done.stdout.splitlines()]
    assert [row for row in rows if row] == [["new", "empty"], ["waiting", "2"]]


def test_ls_and_show_beside_a_node(node: Node) -> None:
    (one,) = lines(spool("ls", node.folder.parent, "--json").stdout)
    assert one["device_id"] == "gate-1"
    assert one["in_use_by"] == str(node.process.pid)
    assert one["pending"] >= 10
    assert 0 <= one["oldest_age_seconds"] < 100
    assert one["problem"] is None
    table = spool("ls", spool_dir=node.folder)
    assert table.returncode == 0, table.stderr
    assert str(node.process.pid) in table.stdout
    (shown,) = lines(spool("show", "--next", 3, "--json", spool_dir=node.folder).stdout)
    assert [one["image_id"] for one in shown["next"]] == [f"part-{n}.jpg" for n in range(3)]
    assert shown["first_pending"] == 1
    assert shown["sent_through"] == 0
    assert "committed through" in spool("show", node.folder).stdout


def test_verify_beside_a_node(node: Node) -> None:
    for _ in range(3):
        done = spool("verify", node.folder, "--json")
        assert done.returncode == 0, done.stdout
        (verdict,) = lines(done.stdout)
        assert verdict["is_sound"]
        assert verdict["predictions"] >= 10
    assert node.spooled()


def test_export_beside_a_node(node: Node) -> None:
    found = lines(spool("export", node.folder, by=EDGE).stdout)
    assert [one["sequence"] for one in found] == [str(n) for n in range(1, len(found) + 1)]
    assert {one["device_id"] for one in found} == {"gate-1"}
    plain = {k: v for k, v in found[6].items() if k not in ("device_id", "spool_id")}
    prediction = json_format.ParseDict(plain, prediction_pb2.Prediction())
    assert prediction.image_id == "part-6.jpg"
    assert prediction.detections[0].box.y_max == 4.0
    since = lines(spool("export", node.folder, "--since-sequence", 8).stdout)
    assert since[0]["sequence"] == "8"


def test_export_follows_a_node(node: Node) -> None:
    with subprocess.Popen(
        [*SIGHTLINE, "spool", "export", str(node.folder), "--follow"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as follower:
        assert follower.stdout
        assert follower.stderr
        before = max(node.spooled() for _ in range(5))
        for number in range(before + 50):
            assert json.loads(follower.stdout.readline())["image_id"] == f"part-{number}.jpg"
        follower.send_signal(signal.SIGINT)
        follower.stdout.read()
        assert follower.wait(30) == 0
        assert follower.stderr.read() == ""


def test_repair_is_refused_while_a_node_runs(node: Node) -> None:
    done = spool("repair", node.folder)
    assert done.returncode == 1
    assert f"in use by process {node.process.pid}" in done.stderr
    assert "Traceback" not in done.stderr


def test_looking_at_what_a_killed_node_left_changes_nothing(folder: Path) -> None:
    before = contents(folder)
    assert spool("verify", folder).returncode == 0
    assert len(lines(spool("export", folder).stdout)) >= 100
    assert spool("show", folder).returncode == 0
    assert lines(spool("ls", folder, "--json").stdout)[0]["in_use_by"] is None
    assert contents(folder) == before


def test_a_damaged_spool_is_verified_exported_and_repaired(folder: Path) -> None:
    wipe_schema(folder)
    before = contents(folder)
    done = spool("verify", folder, "--json")
    assert done.returncode == 1
    (verdict,) = lines(done.stdout)
    assert not verdict["is_sound"]
    assert verdict["predictions"] >= 100
    assert verdict["faults"]
    exported = spool("export", folder)
    assert exported.returncode == 0
    assert len(lines(exported.stdout)) == verdict["predictions"]
    assert "damaged" in exported.stderr
    assert lines(spool("ls", folder, "--json").stdout)[0]["problem"].startswith("damaged")
    assert contents(folder) == before
    (repaired,) = lines(spool("repair", folder, "--json").stdout)
    assert repaired["predictions"] == verdict["predictions"]
    assert repaired["spool_id"] == verdict["spool_id"]
    assert spool("verify", folder).returncode == 0
    assert spool("verify", folder / "spool.salvaged-1.db").returncode == 1
    assert len(lines(spool("export", folder / "spool.salvaged-1.db").stdout)) >= 100
    again = spool("repair", folder / "spool.salvaged-1.db")
    assert again.returncode == 1
    assert "SPOOL_SALVAGED" in again.stderr
    assert "is sound" in spool("repair", folder).stdout


def test_damage_is_told_by_sequence(folder: Path) -> None:
    for name in ("spool.db", "spool.db-wal"):
        path = folder / name
        path.write_bytes(path.read_bytes().replace(b"part-41.jpg", b"part-xx.jpg"))
    # Of a log that is damaged, SQLite does not read the rest.
    done = spool("verify", folder, "--json")
    assert done.returncode == 1
    (verdict,) = lines(done.stdout)
    assert [42, 42] in verdict["damaged"]
    assert "sequences 42 to 42" in spool("verify", folder).stdout


@pytest.mark.parametrize("committed", [0, 37])
def test_what_a_version_without_salvage_set_aside_is_logged_once(
    folder: Path, tmp_path: Path, committed: int
) -> None:
    """Part of it was committed before, which only the server knows."""
    options = LogOptions(batch_timeout_seconds=0.0, stream_size=max(1, committed))
    with serving(tmp_path / "ingest") as ingest:
        if committed:
            copy = tmp_path / "copy"
            subprocess.run(["cp", "-a", str(folder), str(copy)], check=True)
            ship(ingest.target, copy, options)
        for suffix in ("", "-wal"):
            (folder / f"spool.db{suffix}").rename(folder / f"spool.damaged-1.db{suffix}")
        (folder / "spool.mark").unlink()
        ship(ingest.target, folder, options)
        (repaired,) = lines(spool("repair", folder / "spool.damaged-1.db", "--json").stdout)
        assert repaired["predictions"] >= 100
        assert not (folder / "spool.damaged-1.db").exists()
        (fork,) = fork_directories(folder)
        assert str(fork) == repaired["spool"]
        ship(ingest.target, folder, options, until_gone=fork)
        ingest.stop()
        rows = ingest.query("SELECT count(*), count(DISTINCT image_id) FROM predictions")
        assert rows == [(repaired["predictions"], repaired["predictions"])]


def ship(target: str, folder: Path, options: LogOptions, until_gone: Path | None = None) -> None:
    with PredictionLogger(target, device_id="gate-1", spool_dir=folder, options=options) as log:
        assert log.flush(60, until="committed")
        for _ in range(600):
            if until_gone is None or not until_gone.exists():
                return
            log._pipeline._threads[0].join(0.1)
        pytest.fail("the node does not ship what was repaired")


def test_a_file_that_has_lost_its_identity_is_repaired_by_its_name(folder: Path) -> None:
    spool_id = lines(spool("ls", folder, "--json").stdout)[0]["spool_id"]
    for name in ("spool.db", "spool.db-wal"):
        path = folder / name
        path.write_bytes(path.read_bytes().replace(b'{"version"', b'["version"'))
    (folder / "spool.mark").unlink()
    for suffix in ("", "-wal"):
        (folder / f"spool.db{suffix}").rename(folder / f"spool.damaged-1.db{suffix}")
    aside = folder / "spool.damaged-1.db"
    refused = spool("repair", aside)
    assert refused.returncode == 1
    assert "give --device-id and --spool-id" in refused.stderr
    other = "00000000-0000-0000-0000-000000000000"
    refused = spool("repair", aside, "--device-id", "gate-1", "--spool-id", other)
    assert refused.returncode == 1
    assert "does not belong to spool" in refused.stderr
    done = spool("repair", aside, "--device-id", "gate-1", "--spool-id", spool_id, "--json")
    assert done.returncode == 0, done.stderr
    (repaired,) = lines(done.stdout)
    assert repaired["predictions"] >= 100
    assert len(lines(spool("export", repaired["spool"]).stdout)) == repaired["predictions"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["ls", "no/such/folder"], "There is no folder no/such/folder"),
        (["verify", "no/such/file.db"], "path must be a folder with a spool.db"),
        (["export", "{empty}"], "path must be a folder with a spool.db"),
        (["repair", "{garbage}", "--json"], "give --device-id and --spool-id"),
        (["export", "{garbage}"], "its identity is lost"),
    ],
)
def test_an_error_is_a_sentence_and_no_traceback(
    words: list[str], sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage/spool.damaged-1.db").write_bytes(os.urandom(10_000))
    garbage = tmp_path / "garbage/spool.damaged-1.db"
    done = spool(*(word.format(empty=tmp_path, garbage=garbage) for word in words))
    assert done.returncode == 1
    assert sentence in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("command", ["ls", "show", "verify", "export", "repair"])
def test_help_has_an_example_and_json(command: str) -> None:
    words, env = ["spool", command, "--help"], {"COLUMNS": "200"}
    done = CliRunner().invoke(app, words, env=env, prog_name="sightline")
    said = " ".join(done.stdout.split())
    assert f"Example: sightline spool {command}" in said
    assert "--json" in said


def commands() -> list[str]:
    return [block.strip() for block in blocks("how-to/spool.md")]


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_documentation_works(command: str, folder: Path) -> None:
    assert command.startswith("sightline spool ")
    env = environment(spool_dir=folder, device_id="gate-1")
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert "Traceback" not in done.stderr


def test_the_documentation_has_every_command() -> None:
    named = {command.split()[2] for command in commands()}
    assert named == {"ls", "show", "verify", "export", "repair"}
