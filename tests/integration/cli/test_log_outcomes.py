"""Messages and exit codes of `sightline log` where something went wrong."""

import json
import shlex
from pathlib import Path

import pytest

from tests.fakes.ingest import FakeIngest
from tests.integration.cli.log_runs import MODEL, adds_up, settings
from tests.integration.cli.log_runs import ingest as ingest
from tests.integration.cli.terminal import (
    environment,
    sightline,
)
from tests.unit.edge.sources.monitors import save_pictures


def test_what_is_not_committed_is_counted_with_what_to_do_next(tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / "pictures", "a.jpg", "b.jpg")
    with FakeIngest() as gone:
        pass
    flags = ["--wait", "0.1", "--ingest", gone.target]
    done = sightline("log", folder, *flags, env=settings(gone, tmp_path))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert "Last error of the log of gate-1: " in lines.pop(2)
    assert lines == [
        "2 images: 2 answered by the device, 0 by the cloud, 0 failed",
        "2 predictions logged, 2 not committed yet: kept in the spool, sent by the next run",
        f"Next: sightline doctor --ingest {gone.target}",
    ]


@pytest.mark.parametrize("device_id", ["laptop", "gate-{source}"])
def test_the_next_command_checks_the_device_of_the_run(tmp_path: Path, device_id: str) -> None:
    folder = save_pictures(tmp_path / "pictures", "a.jpg", "b.jpg")
    flags = ["--device-id", device_id, "--model", MODEL, "--spool-dir", tmp_path / "my spool"]
    flags += ["--no-cascade-any", "--ingest", "127.0.0.1:1", "--api-key", "s3cret", "--wait", "0.1"]
    done = sightline("log", folder, *flags, env=environment())
    assert done.returncode == 1
    program, *words = shlex.split(done.stdout.splitlines()[-1].removeprefix("Next: "))
    assert program == "sightline"
    assert "s3cret" not in done.stdout
    found = json.loads(sightline(*words, "--json", env=environment()).stdout)["findings"]
    messages = {one["check"]: one["message"] for one in found}
    name = "laptop" if device_id == "laptop" else "gate-pictures"
    assert messages["settings"] == f"device {name}, mode auto"
    assert messages["model"].startswith("model ")
    assert messages["spool backlog"].startswith("2 predictions wait")
    assert messages["ingest"] == "nothing listens at 127.0.0.1:1"


def test_what_is_not_committed_fails_the_run_and_is_sent_by_the_next(
    ingest: FakeIngest, tmp_path: Path
) -> None:
    folder = save_pictures(tmp_path / "pictures", "a.jpg", "b.jpg")
    with FakeIngest() as gone:
        pass
    done = sightline("log", folder, "--json", "--wait", "0.1", env=settings(gone, tmp_path))
    assert done.returncode == 1
    stats = json.loads(done.stdout)
    assert (stats["pictures"]["by_device"], stats["logger"]["backlog"]) == (2, 2)
    other = save_pictures(tmp_path / "more", "c.jpg")
    done = sightline("log", other, "--json", env=settings(ingest, tmp_path))
    assert done.returncode == 0, done.stderr
    assert sorted(ingest.images()) == ["a.jpg", "b.jpg", "c.jpg"]


def test_an_image_without_an_answer_fails_the_run_and_is_named(
    ingest: FakeIngest, tmp_path: Path
) -> None:
    folder = save_pictures(tmp_path / "pictures", "a.jpg")
    (folder / "b.jpg").write_bytes(b"no picture")
    (folder / "c.heic").write_bytes(b"no picture")
    done = sightline("log", folder, "--json", env=settings(ingest, tmp_path))
    assert done.returncode == 1
    assert f"{folder / 'b.jpg'}: image is refused: the " in done.stderr
    assert f"{folder}: skipped 1 file without the suffix of an image (.heic)" in done.stderr
    stats = json.loads(done.stdout)
    assert adds_up(stats)
    assert (stats["pictures"]["by_device"], stats["sources"][str(folder)]["failed"]) == (1, 1)
    assert ingest.images() == ["a.jpg"]


def test_a_device_at_fault_gets_no_hint_about_the_service(
    ingest: FakeIngest, tmp_path: Path
) -> None:
    folder = save_pictures(tmp_path / "pictures", "a.jpg")
    env = settings(ingest, tmp_path, timeout_seconds=0.000001, cloud_reserve_seconds=0)
    done = sightline("log", folder, env=env)
    assert done.returncode == 1
    assert "DEVICE_TIMEOUT" in done.stderr
    assert "--timeout" not in done.stderr
