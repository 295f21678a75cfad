"""The `sightline` command as a person uses it: processes, exit codes, two streams."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from models.plates import make_plate, to_jpeg

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "models/repository"
SIGHTLINE = [sys.executable, "-c", "from sightline_cli.app import main; main()"]


@dataclass(frozen=True)
class Laptop:
    """`sightline up`, and an environment in which the other commands find it."""

    process: "subprocess.Popen[str]"
    env: dict[str, str]


def sightline(*words: str, env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*SIGHTLINE, *words], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def environment(**settings: object) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SIGHTLINE_")}
    named = {f"SIGHTLINE_EDGE_{name.upper()}": str(value) for name, value in settings.items()}
    return {**clean, "COLUMNS": "100", **named}


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    folder = tmp_path_factory.mktemp("laptop")
    flags = ["--data", str(folder / "data"), "--model-repository", str(REPOSITORY)]
    listen = ["--ingest-listen", "127.0.0.1:0", "--inference-listen", "127.0.0.1:0"]
    with subprocess.Popen(
        [*SIGHTLINE, "up", *flags, *listen], stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout
        ready = [json.loads(process.stdout.readline()) for _ in range(2)]
        addresses = {one["service"]: one["address"] for one in ready}
        env = environment(
            ingest_target=addresses["ingest"],
            inference_target=addresses["inference"],
            device_id="laptop",
            spool_dir=folder / "spool",
        )
        yield Laptop(process, env)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(3):
        (folder / f"plate-{seed}.jpg").write_bytes(to_jpeg(make_plate(seed).image))
    return folder


def lines(output: str) -> list[Any]:
    return [json.loads(line) for line in output.splitlines()]


def test_health_says_serving_for_both(laptop: Laptop) -> None:
    done = sightline("health", "--json", env=laptop.env)
    assert done.returncode == 0, done.stderr
    statuses = {name: one["status"] for name, one in json.loads(done.stdout).items()}
    assert statuses == {"ingest": "SERVING", "inference": "SERVING"}


def test_health_of_nobody_exits_1() -> None:
    env = environment(ingest_target="127.0.0.1:1", inference_target="127.0.0.1:1")
    done = sightline("health", env=env)
    assert done.returncode == 1
    assert done.stdout.count("UNAVAILABLE") == 2


def test_infer_prints_one_json_line_per_picture(laptop: Laptop, pictures: Path) -> None:
    names = sorted(str(path) for path in pictures.iterdir())
    done = sightline("infer", *names, "--json", env=laptop.env)
    assert done.returncode == 0, done.stderr
    answers = lines(done.stdout)
    assert [one["image_id"] for one in answers] == [Path(name).name for name in names]
    assert {one["model_name"] for one in answers} == {"plates"}
    found = {one["class_name"] for answer in answers for one in answer["detections"]}
    assert found
    assert found <= {"scratch", "pit", "stain"}


def test_infer_goes_on_after_a_bad_picture(laptop: Laptop, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no picture")
    done = sightline(
        "infer", str(tmp_path / "a.jpg"), str(pictures / "plate-0.jpg"), "--json", env=laptop.env
    )
    assert done.returncode == 1
    assert [one["image_id"] for one in lines(done.stdout)] == ["plate-0.jpg"]
    assert "IMAGE_TYPE_UNSUPPORTED" in done.stderr


def test_log_lands_in_stats(laptop: Laptop, pictures: Path) -> None:
    model = REPOSITORY / "plates/1/model.onnx"
    done = sightline("log", str(pictures), "--model", str(model), "--json", env=laptop.env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pictures"]["by_device"] == 3
    done = sightline("stats", "--device", "laptop", "--json", env=laptop.env)
    assert done.returncode == 0, done.stderr
    stats = json.loads(done.stdout)
    assert stats["total_predictions"] == 3
    assert stats["by_device"] == [{"key": "laptop", "count": 3, "defects": 0}]
    assert stats["by_source"][0]["key"] == "device"
    table = sightline("stats", "--device", "laptop", env=laptop.env)
    assert table.returncode == 0
    assert "laptop" in table.stdout


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["stats"], 1, "UNAVAILABLE"),
        (["stats", "--target", "nonsense"], 2, "ingest_target: must be host:port"),
        (["log", "no/such/folder"], 1, "source must name at least one picture"),
        (["log", "{pictures}", "--model", "no-such.onnx"], 1, "no-such.onnx"),
        (["log", "{pictures}", "--detector", "nonsense"], 2, "detector: must be"),
        (["infer", "no-such.jpg"], 1, "no-such.jpg"),
        (["serve", "ingest", "--listen", "nonsense"], 2, "listen: must be host:port"),
        (["serve", "inference", "--no-such-flag"], 2, "--no-such-flag"),
        (["up", "--model-repository", "no/such/folder"], 1, "inference_service ended"),
    ],
)
def test_an_error_is_a_sentence_and_no_traceback(
    words: list[str], code: int, sentence: str, pictures: Path, tmp_path: Path
) -> None:
    words = [word.format(pictures=pictures) for word in words]
    env = environment(
        ingest_target="127.0.0.1:1", inference_target="127.0.0.1:1", spool_dir=tmp_path / "spool"
    )
    if words[0] == "up":
        listen = ["--ingest-listen", "127.0.0.1:0", "--inference-listen", "127.0.0.1:0"]
        words = [*words, "--data", str(tmp_path), *listen]
    done = sightline(*words, env=env)
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("service", ["ingest", "inference"])
def test_serve_help_is_the_services_own(service: str) -> None:
    done = sightline("serve", service, "--help", env=environment())
    assert done.returncode == 0
    assert "--listen" in done.stdout
