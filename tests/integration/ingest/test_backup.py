"""Item 10: backups of a running service, and their restoration."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import duckdb
import grpc
import pytest
from sightline.ingest.v1 import ingest_service_pb2 as messages

from ingest_service.store.protocol import SpoolKey
from servicekit.errors import from_rpc_error
from tests.integration.ingest.conftest import Start
from tests.integration.ingest.process import PATIENCE, IngestProcess
from tests.unit.edge.samples import eventually
from tests.unit.ingest_service.samples import SPOOL, gap, header, predictions, request, spool


def sightline(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("SIGHTLINE_")}
    return subprocess.run(
        [sys.executable, "-c", "from sightline.cli.app import main; main()", *words],
        env={**plain, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def back_up(server: IngestProcess, to: Path) -> dict[str, int]:
    done = sightline("backup", "--to", str(to), "--target", server.address)
    assert done.returncode == 0, done.stderr
    summary: dict[str, int] = json.loads(done.stdout)
    return summary


def ask(database: Path, sql: str) -> list[tuple[object, ...]]:
    with duckdb.connect(str(database), read_only=True) as connection:
        rows: list[tuple[object, ...]] = connection.execute(sql).fetchall()
        return rows


class Streaming:
    """Log predictions of one spool, one stream after another, until stopped."""

    def __init__(self, server: IngestProcess, of: SpoolKey) -> None:
        self.committed = 0
        self._server, self._of = server, of
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for first in itertools.count(1, 50):
            if self._stop.is_set():
                return
            part = request(*predictions(first, first + 49), head=header(self._of))
            self.committed = self._server.log_messages(part).committed_through

    def stop(self) -> int:
        self._stop.set()
        self._thread.join(PATIENCE)
        return self.committed


def test_a_backup_is_whole_and_of_one_moment_while_devices_log(
    server: IngestProcess, tmp_path: Path
) -> None:
    server.log_messages(request(*predictions(1, 200), gap(201, 210), head=header()))
    devices = [Streaming(server, spool(number)) for number in (2, 3)]
    assert eventually(lambda: all(device.committed for device in devices))
    before = [device.committed for device in devices]
    summary = back_up(server, tmp_path / "backup.duckdb")
    at_end = [device.committed for device in devices]
    assert eventually(lambda: all(d.committed > n for d, n in zip(devices, at_end, strict=True)))
    for device in devices:
        device.stop()
    copied = tmp_path / "backup.duckdb"
    assert not copied.with_name("backup.duckdb.wal").exists()
    assert copied.stat().st_mode & 0o777 == 0o600
    ((count,),) = ask(copied, "SELECT count(*) FROM predictions")
    assert count == summary["predictions"]
    assert summary["bytes"] == copied.stat().st_size
    ledger = ask(copied, "SELECT committed_through, balanced FROM ledger ORDER BY device_id")
    assert ledger[0] == (210, True)
    for (through, balanced), low, high in zip(ledger[1:], before, at_end, strict=True):
        assert balanced
        assert isinstance(through, int)
        assert low <= through <= high + 50
    assert {file.name for file in server.folder.glob("test.duckdb*")} == {
        "test.duckdb",
        "test.duckdb.wal",
        "test.duckdb.mark",
    }


def test_a_copy_of_a_running_database_is_empty(server: IngestProcess, tmp_path: Path) -> None:
    """A backup is most needed then."""
    server.log_messages(request(*predictions(1, 200), head=header()))
    (tmp_path / "copy.duckdb").write_bytes(server.database.read_bytes())
    tables = "SELECT count(*) FROM duckdb_tables() WHERE table_name = 'predictions'"
    assert ask(tmp_path / "copy.duckdb", tables) == [(0,)]


def test_a_backup_is_restored_and_nodes_that_are_ahead_are_noticed(
    server: IngestProcess, start: Start, tmp_path: Path
) -> None:
    server.log_messages(request(*predictions(1, 100), head=header()))
    back_up(server, tmp_path / "backup.duckdb")
    server.log_messages(request(*predictions(101, 150), head=header()))
    server.kill()
    for name in ("test.duckdb", "test.duckdb.mark"):
        (tmp_path / name).unlink()
    log = tmp_path / "test.duckdb.wal"
    assert log.exists()
    done = sightline("restore", str(tmp_path / "backup.duckdb"), "--to", str(server.database))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["predictions"] == 100
    assert "the write-ahead log of the former database is now" in done.stderr
    assert not log.exists()
    again = start("--metrics-listen", "127.0.0.1:0")
    assert again.watermark(SPOOL) == 100
    again.log_messages(
        request(gap(101, 150, reason=8), *predictions(151, 160), head=header())  # 8: released
    )
    assert again.log.read_text().count("nodes are ahead of this database:") == 1
    assert "50 sequences" in again.log.read_text()
    again.stop()
    assert again.query("SELECT accepted, gap_sequences, balanced FROM ledger") == [(110, 50, True)]


def test_an_empty_database_that_meets_nodes_says_so_loudly(server: IngestProcess) -> None:
    for number in range(1, 6):
        of = spool(number)
        assert server.watermark(of) == 0
        server.log_messages(request(gap(1, 1000, reason=8), head=header(of)))
    with pytest.raises(grpc.RpcError, match="sequence 1 is missing"):
        server.log_messages(request(*predictions(500, 510), head=header(spool(9))))
    summary = [line for line in server.log.read_text().splitlines() if "ahead" in line]
    assert len(summary) == 1, "once, and then once a minute"
    assert "which was empty at the start" in summary[0]
    assert "put the right one back" in summary[0].replace("the\n", "the ")


@pytest.fixture(scope="module")
def backed_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a service that has ended, and of its backup."""
    server = IngestProcess(tmp_path_factory.mktemp("backed-up"))
    server.start()
    try:
        server.log_messages(request(*predictions(1, 10), head=header()))
        back_up(server, server.folder / "backup.duckdb")
        server.stop()
    finally:
        server.kill()
    return server.folder


@pytest.fixture
def stopped(backed_up: Path, tmp_path: Path) -> Path:
    """Return a copy of that folder's database; the backup is beside it."""
    shutil.copytree(backed_up, tmp_path, dirs_exist_ok=True)
    return tmp_path / "test.duckdb"


def restore_fails(database: Path, backup: Path, why: str) -> None:
    done = sightline("restore", str(backup), "--to", str(database))
    assert done.returncode == 1
    assert why in done.stderr.replace("\n", " ")
    assert not done.stdout


def test_restore_overwrites_nothing(stopped: Path, tmp_path: Path) -> None:
    before = stopped.read_bytes()
    restore_fails(stopped, tmp_path / "backup.duckdb", "is never overwritten")
    assert stopped.read_bytes() == before


def test_restore_is_refused_while_a_service_runs(server: IngestProcess, tmp_path: Path) -> None:
    """This includes a service whose file was deleted."""
    server.log_messages(request(*predictions(1, 10), head=header()))
    back_up(server, tmp_path / "backup.duckdb")
    server.database.unlink()
    restore_fails(server.database, tmp_path / "backup.duckdb", "a service still runs on")
    assert not server.database.exists()
    server.kill()


@pytest.mark.parametrize("harm", ["flipped", "short", "text", "missing", "with a log"])
def test_restore_verifies_the_backup(stopped: Path, tmp_path: Path, harm: str) -> None:
    backup, whole = tmp_path / "backup.duckdb", (tmp_path / "backup.duckdb").read_bytes()
    stopped.unlink()
    if harm == "flipped":
        at = whole.index(b"image-")
        backup.write_bytes(whole[:at] + b"X" + whole[at + 1 :])
    elif harm == "short":
        backup.write_bytes(whole[: len(whole) // 2])
    elif harm == "text":
        backup.write_text("precious")
    elif harm == "missing":
        backup.unlink()
    else:
        backup.with_name("backup.duckdb.wal").write_bytes(b"the rest of it")
    restore_fails(stopped, backup, str(backup))
    assert not stopped.exists()
    assert not stopped.with_name("test.duckdb.restored").exists()


def test_backup_overwrites_nothing(server: IngestProcess, tmp_path: Path) -> None:
    (tmp_path / "backup.duckdb").write_text("precious")
    to = str(tmp_path / "backup.duckdb")
    done = sightline("backup", "--to", to, "--target", server.address)
    assert done.returncode == 1
    assert "exists already" in done.stderr
    assert (tmp_path / "backup.duckdb").read_text() == "precious"


def test_a_backup_that_nobody_waits_for_leaves_nothing(server: IngestProcess) -> None:
    server.log_messages(request(*predictions(1, 5000), head=header()))
    reasons: set[str] = set()
    for _ in range(3):
        call = server.stub.Backup(messages.BackupRequest(), timeout=PATIENCE)
        next(iter(call))
        call.cancel()  # type: ignore[no-untyped-call] # the published types leave it out

        def is_free() -> bool:
            again = server.stub.Backup(messages.BackupRequest(), timeout=PATIENCE)
            try:
                return any(part.HasField("summary") for part in again)
            except grpc.RpcError as error:
                reasons.add(from_rpc_error(error).reason)
                return False

        assert eventually(is_free)
    assert reasons <= {"BACKUP_RUNNING"}
    assert eventually(lambda: not list(server.folder.glob(".*")))


def test_what_a_killed_service_left_is_deleted_and_no_backup_of_somebody(
    server: IngestProcess, start: Start, tmp_path: Path
) -> None:
    server.log_messages(request(*predictions(1, 10), head=header()))
    back_up(server, tmp_path / "test.duckdb.backup-1")
    server.kill()
    (tmp_path / ".test.duckdb.unfinished-backup-1").write_bytes(b"half of it")
    start()
    assert not list(tmp_path.glob(".*"))
    assert (tmp_path / "test.duckdb.backup-1").exists()


def test_only_administrators_may_take_a_backup(start: Start, tmp_path: Path) -> None:
    key_file = str(tmp_path / "keys.db")
    keys = {}
    for name, words in {
        "reader": ["--device", "*", "--scope", "read", "--scope", "log"],
        "admin": ["--device", "*", "--scope", "admin"],
        "line": ["--device", "line-*", "--scope", "admin"],
    }.items():
        done = sightline("keys", "create", name, "--file", key_file, *words)
        assert done.returncode == 0, done.stderr
        keys[name] = done.stdout.strip()
    server = start("--api-keys-file", key_file)
    for name, expected in {"reader": 1, "line": 1, "admin": 0}.items():
        to = str(tmp_path / f"{name}.duckdb")
        done = sightline(
            *("backup", "--to", to, "--target", server.address), SIGHTLINE_EDGE_API_KEY=keys[name]
        )
        assert done.returncode == expected, (name, done.stderr)
        assert Path(to).exists() == (expected == 0)


def test_a_folder_that_was_moved_away_can_still_be_saved(start: Start, tmp_path: Path) -> None:
    """The service's log recommends this."""
    server = start()
    server.log_messages(request(*predictions(1, 10), head=header()))
    folder = server.folder
    folder.rename(folder.with_name("moved"))
    server.log = folder.with_name("moved") / server.log.name
    try:
        done = sightline(
            *("backup", "--to", str(tmp_path.with_name("saved.duckdb"))),
            *("--target", server.address),
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["predictions"] == 10
    finally:
        server.kill()
        folder.with_name("moved").rename(folder)


def test_a_backup_does_not_hold_up_the_end_of_the_service(server: IngestProcess) -> None:
    """It is cancelled at once with an error, because it would outlast the grace period."""
    for first in range(1, 20_000, 5000):
        server.log_messages(request(*predictions(first, first + 4999), head=header()))
    call = server.stub.Backup(messages.BackupRequest(), timeout=PATIENCE)
    assert eventually(lambda: bool(list(server.folder.glob(".*"))))
    server.signal(signal.SIGTERM)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert from_rpc_error(caught.value).reason == "DRAINING"
    assert server.wait() == 0
    assert not list(server.folder.glob(".*"))


def test_a_partial_file_that_was_left_is_in_nobody_s_way(
    server: IngestProcess, tmp_path: Path
) -> None:
    """In a container each command has the same PID."""
    server.log_messages(request(*predictions(1, 10), head=header()))
    (tmp_path / f".backup.duckdb.partial-{os.getpid()}").write_bytes(b"half of it")
    code = f"import os; os.getpid = lambda: {os.getpid()}\n"
    done = subprocess.run(
        [
            *(sys.executable, "-c", f"{code}from sightline.cli.app import main; main()"),
            *("backup", "--to", str(tmp_path / "backup.duckdb"), "--target", server.address),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_backup_into_a_folder_that_is_not_there(tmp_path: Path) -> None:
    done = sightline("backup", "--to", str(tmp_path / "none" / "backup.duckdb"))
    assert done.returncode == 1
    assert "create it first" in done.stderr.replace("\n", " ")
