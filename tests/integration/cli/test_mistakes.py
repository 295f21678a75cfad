"""Mistakes that people make: a sentence and a hint, no traceback, an exit code that says so."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from models.plates import make_plate, to_jpeg
from sightline.cli.app import main
from sightline.cli.processes import ServiceProcess
from tests.integration.cli.terminal import REPOSITORY, ROOT, SIGHTLINE, environment, sightline
from tests.unit.inference_service.tiny_onnx import colour_model

DETECTOR = REPOSITORY / "plates/1/model.onnx"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, and with files that are not images."""
    made = tmp_path_factory.mktemp("mistakes")
    (made / "pictures").mkdir()
    (made / "pictures" / "plate.jpg").write_bytes(to_jpeg(make_plate(0).image))
    (made / "empty").mkdir()
    (made / "broken.onnx").write_bytes(b"no model")
    (made / "spool.db").write_bytes(b"no spool" * 1000)
    return made


@pytest.fixture(scope="module")
def taken() -> Iterator[str]:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        made.listen()
        yield f"127.0.0.1:{made.getsockname()[1]}"


Here = Callable[[list[str], dict[str, str]], tuple[int, str, str]]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Here:
    """Run a command line in this process, which saves a second; return how it ended."""

    def run(words: list[str], settings: dict[str, str]) -> tuple[int, str, str]:
        monkeypatch.setattr(os, "environ", environment(**settings))
        monkeypatch.setattr(sys, "argv", ["sightline", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capfd.readouterr()

    return run


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ("nonsense", 2, "No such command 'nonsense'"),
        ("infer", 2, "Missing argument"),
        ("infer a.jpg --nonsense", 2, "No such option: --nonsense"),
        ("infer a.jpg --modle x", 2, "No such option: --modle (Possible options: --model)"),
        ("inferr a.jpg", 2, "No such command 'inferr'. Did you mean 'infer'?"),
        ("infer a.jpg --timeout soon", 2, "should be a valid number"),
        ("infer a.jpg --timeout -1", 2, "timeout_seconds: must be greater than 0"),
        ("infer a.jpg --confidence 2", 2, "confidence_threshold: must be less than or equal to 1"),
        ("infer a.jpg --top-k 0", 2, "'--top-k': Input should be greater"),
        ("infer no-such.jpg", 1, "Check the path"),
        ("infer {folder}/pictures/plate.jpg", 1, "`sightline doctor` finds out"),
        ("infer {folder}/pictures/plate.jpg --save {folder}/broken.onnx", 1, "must be a folder"),
        ("stats", 1, "`sightline doctor` finds out"),
        ("stats --target nonsense", 2, "ingest_target: must be host:port"),
        ("stats --device \udcff", 1, "an argument or the name of a file must be UTF-8"),
        ("log {folder}/pictures --label line=\udcff", 2, "must be UTF-8 text"),
        ("log no/such/folder", 1, "There is no folder no/such/folder"),
        ("log pictures/", 1, "There is no folder pictures/"),
        ("log {folder}/empty", 1, "/empty has no image in it"),
        ("log {folder}/pictures --spool-by 1", 2, "(Possible options: --spool-bytes"),
        ("log {folder}/pictures --model no-such.onnx", 1, "`sightline doctor` checks"),
        ("log {folder}/pictures --model {folder}/broken.onnx", 1, "`sightline doctor` checks"),
        ("log {folder}/pictures --spool-dir /proc/no/spool", 1, "No such file or directory"),
        ("log {folder}/pictures --device-id gate-{{surce}}", 2, "did you mean {source}?"),
        ("log {folder}/pictures --detector nonsense", 2, "detector: must be"),
        ("log {folder}/pictures --mode nonsense", 2, "mode: must be"),
        ("log {folder}/pictures --mode device", 2, "device_model: must be given"),
        ("log {folder}/pictures --every 0", 2, "greater than or equal to 1"),
        ("spool verify {folder}/none", 1, "must be a folder with a spool.db"),
        ("spool show {folder}", 1, "`sightline spool verify` lists the damage"),
        ("keys list --file {folder}/none.db", 1, "`sightline keys create` creates it"),
        ("keys create gate-1 --expires soon --file {folder}/keys.db", 2, "30m, 12h or 90d"),
        ("keys create gate-1 --scope fly --file {folder}/keys.db", 2, "'fly' is not one of"),
        ("keys revoke 0123456789ab --file {folder}/none.db", 1, "`sightline keys create` creates"),
        ("keys rotate 0123456789ab --old-ends-in now", 2, "--old-ends-in: must be like 30m"),
        ("models check {folder}/none.onnx", 1, "none.onnx"),
        ("models ls --address 127.0.0.1:1", 1, "`sightline doctor` finds out"),
        ("export --to {folder}/out --database {folder}/none.duckdb", 1, "there is no file"),
        ("serve ingest --listen nonsense", 2, "listen: must be host:port"),
        ("serve inference --no-such-flag", 2, "no such flag: --no-such-flag"),
        ("serve ingest --databse x", 2, "no such flag: --databse, did you mean --database?"),
        ("serve ingest --databse x", 2, "(see sightline serve ingest --help)"),
        ("up --model-repository no/such/folder", 1, "`sightline models add"),
        ("up --ingest-listen {taken}", 1, "choose another port"),
        ("up --inference-listen {taken} --ingest-listen 127.0.0.1:0", 1, "choose another port"),
        ("up --data {folder}/broken.onnx/data", 1, "choose another folder"),
        ("up --console-listen {taken}", 1, "choose another port"),
        ("up --ingest-listen nonsense --inference-listen 127.0.0.1:0", 1, "its log says why"),
    ],
)
def test_a_mistake_is_a_sentence_and_a_hint(
    words: str, code: int, sentence: str, folder: Path, taken: str, tmp_path: Path, here: Here
) -> None:
    given = [word.format(folder=folder, taken=taken) for word in words.split()]
    if given[0] == "up" and "--data" not in given:
        given += ["--data", str(tmp_path)]
    settings = {
        "ingest_target": "127.0.0.1:1",
        "inference_target": "127.0.0.1:1",
        "spool_dir": str(tmp_path / "spool"),
        "device_id": "gate-1",
    }
    if given[0] in ("serve", "up"):  # they become, or start, other processes
        done = sightline(*given, env=environment(**settings))
        ended, out, err = done.returncode, done.stdout, done.stderr
    else:
        ended, out, err = here(given, settings)
    assert ended == code, err
    assert sentence in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.parametrize(
    ("words", "name", "meant"),
    [
        ("log {folder}/pictures", "SIGHTLINE_EDGE_DEVICE", "SIGHTLINE_EDGE_DEVICE_ID"),
        ("stats", "SIGHTLINE_EDGE_INGEST_TARGT", "SIGHTLINE_EDGE_INGEST_TARGET"),
        ("serve ingest", "SIGHTLINE_INGEST_DATABSE", "SIGHTLINE_INGEST_DATABASE"),
        ("serve inference", "SIGHTLINE_INFERENCE_WORKER", "SIGHTLINE_INFERENCE_WORKERS"),
    ],
)
def test_a_mistyped_variable_is_named_with_the_nearest_right_one(
    words: str, name: str, meant: str, folder: Path, tmp_path: Path
) -> None:
    env = {**environment(spool_dir=tmp_path / "spool"), name: "1"}
    done = sightline(*words.format(folder=folder).split(), env=env)
    assert done.returncode == 2
    assert f"{name} is not a setting, did you mean {meant}?" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("module", "name", "meant"),
    [
        ("ingest_service", "SIGHTLINE_INGESTION_GRACE_SECONDS", "SIGHTLINE_INGEST_GRACE_SECONDS"),
        ("inference_service", "SIGHTLINE_INFERENC_WORKERS", "SIGHTLINE_INFERENCE_WORKERS"),
    ],
)
def test_a_mistyped_prefix_is_a_warning_of_the_service(
    module: str, name: str, meant: str, tmp_path: Path
) -> None:
    colour_model(tmp_path / "models" / "colours" / "1" / "model.onnx")
    flags = {
        "ingest_service": ["--database", str(tmp_path / "log.duckdb")],
        "inference_service": ["--model-repository", str(tmp_path / "models")],
    }
    log = tmp_path / "stderr.log"
    with (
        log.open("w") as stderr,
        ServiceProcess(
            module,
            ["--listen", "127.0.0.1:0", *flags[module]],
            env={**environment(), name: "1"},
            stderr=stderr,
        ),
    ):
        pass
    assert f"the variable {name} is set, and nothing reads it, did you mean {meant}?" in (
        log.read_text()
    )


def test_health_and_doctor_say_who_does_not_answer(tmp_path: Path) -> None:
    nowhere = {"ingest_target": "127.0.0.1:1", "inference_target": "127.0.0.1:1"}
    done = sightline("health", env=environment(**nowhere))
    assert done.returncode == 1
    assert done.stdout.count("UNAVAILABLE") == 2
    env = environment(spool_dir=tmp_path / "spool", **nowhere)
    done = sightline("doctor", "--json", env=env)
    assert done.returncode == 1
    assert json.loads(done.stdout)["failed"] == 2


def test_a_second_node_on_one_spool(folder: Path, tmp_path: Path) -> None:
    words = ["log", str(folder / "pictures"), "--model", str(DETECTOR), "--wait", "60"]
    env = environment(ingest_target="127.0.0.1:1", spool_dir=tmp_path / "spool", device_id="gate-1")
    with subprocess.Popen(
        [*SIGHTLINE, *words], env=env, cwd=ROOT, stderr=subprocess.DEVNULL
    ) as one:
        while not (tmp_path / "spool" / "spool.db").exists():
            assert one.poll() is None
        done = sightline(*words, env=env)
        one.send_signal(signal.SIGKILL)
    assert done.returncode == 1
    assert f"in use by process {one.pid}" in done.stderr
    assert "SIGHTLINE_EDGE_SPOOL_DIR" in done.stderr


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    """As `sightline ... | head -n 1` does."""
    read, write = os.pipe()
    os.close(read)
    with subprocess.Popen(
        [*SIGHTLINE, "keys", "create", "gate-1", "--file", str(tmp_path / "keys.db")],
        env=environment(),
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        os.close(write)
        _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
