"""The `sightline` command as a person uses it: processes, exit codes, two streams."""

import json
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge.spool import inspect
from edge.spool.identity import DamagedError
from models.plates import make_plate, to_jpeg
from tests.integration.cli.terminal import (
    REPOSITORY,
    SIGHTLINE,
    environment,
    lines,
    sightline,
)


@dataclass(frozen=True)
class Laptop:
    """`sightline up`, and an environment in which the other commands find it."""

    process: "subprocess.Popen[str]"
    env: dict[str, str]
    ready: list[Any]
    notes: Path
    """Messages for people."""


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    folder = tmp_path_factory.mktemp("laptop")
    flags = ["--data", str(folder / "data"), "--model-repository", str(REPOSITORY)]
    services = ("ingest", "inference", "console")
    listen = [word for name in services for word in (f"--{name}-listen", "127.0.0.1:0")]
    notes = folder / "stderr"
    with (
        notes.open("w") as stderr,
        subprocess.Popen(
            [*SIGHTLINE, "up", *flags, *listen],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment(),
        ) as process,
    ):
        assert process.stdout
        ready = [json.loads(process.stdout.readline()) for _ in range(3)]
        addresses = {one["service"]: one["address"] for one in ready}
        env = environment(
            ingest_target=addresses["ingest"],
            inference_target=addresses["inference"],
            device_id="laptop",
            spool_dir=folder / "spool",
        )
        yield Laptop(process, env, ready, notes)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(3):
        (folder / f"plate-{seed}.jpg").write_bytes(to_jpeg(make_plate(seed).image))
    return folder


def wait_for(happened: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < ends_at
        time.sleep(0.02)


def is_used(spool: Path) -> bool:
    """Return True if a prediction was logged into the spool."""
    try:
        found = inspect.details(spool, 0)
    except (OSError, sqlite3.Error, DamagedError):  # it is being made
        return False
    return found.acknowledged > 0 or found.summary.pending > 0


def test_health_says_serving_for_both(laptop: Laptop) -> None:
    done = sightline("health", "--json", env=laptop.env)
    assert done.returncode == 0, done.stderr
    statuses = {name: one["status"] for name, one in json.loads(done.stdout).items()}
    assert statuses == {"ingest": "SERVING", "inference": "SERVING"}


@pytest.mark.parametrize("service", ["ingest", "inference"])
def test_health_of_one_service_asks_no_other(laptop: Laptop, service: str) -> None:
    """A container of one service has no other beside it."""
    other = {"ingest": "inference", "inference": "ingest"}[service]
    env = {**laptop.env, f"SIGHTLINE_EDGE_{other.upper()}_TARGET": "127.0.0.1:1"}
    done = sightline("health", "--service", service, "--json", env=env)
    assert done.returncode == 0, done.stderr
    assert {name: one["status"] for name, one in json.loads(done.stdout).items()} == {
        service: "SERVING"
    }


def test_health_of_nobody_exits_1() -> None:
    env = environment(ingest_target="127.0.0.1:1", inference_target="127.0.0.1:1")
    done = sightline("health", env=env)
    assert done.returncode == 1
    assert done.stdout.count("UNAVAILABLE") == 2


def test_infer_prints_one_json_line_per_image(laptop: Laptop, pictures: Path) -> None:
    names = sorted(str(path) for path in pictures.iterdir())
    done = sightline("infer", *names, "--json", env=laptop.env)
    assert done.returncode == 0, done.stderr
    answers = lines(done.stdout)
    assert [one["image_id"] for one in answers] == [Path(name).name for name in names]
    assert {one["model_name"] for one in answers} == {"plates"}
    found = {one["class_name"] for answer in answers for one in answer["detections"]}
    assert found
    assert found <= {"scratch", "pit", "stain"}


def test_up_says_where_it_is_and_what_to_do_next(laptop: Laptop) -> None:
    text = laptop.notes.read_text()
    for one in laptop.ready:
        scheme = "http://" if one["service"] == "console" else ""
        assert f"{one['service']:10} ready at {scheme}{one['address']}" in text
    address = laptop.ready[1]["address"]
    assert f"sightline infer IMAGE.jpg --inference {address}" in text


def test_infer_goes_on_after_a_bad_image(laptop: Laptop, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no picture")
    names = [tmp_path / "a.jpg", tmp_path / "none.jpg", pictures / "plate-0.jpg"]
    done = sightline("infer", *names, "--json", env=laptop.env)
    assert done.returncode == 1
    bad, missing, good = lines(done.stdout)
    assert bad["image_id"] == "a.jpg"
    assert bad["error"]["reason"] == "IMAGE_TYPE_UNSUPPORTED"
    assert bad["error"]["category"] == "validation"
    assert missing["error"]["reason"] == "IMAGE_FILE_UNREADABLE"
    assert good["image_id"] == "plate-0.jpg"
    assert "error" not in good
    assert "IMAGE_TYPE_UNSUPPORTED] Use a JPEG" in done.stderr


def test_infer_says_that_a_file_is_no_name_of_a_model(
    laptop: Laptop, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "best.pt").write_text("any file")
    (picture, *_) = (str(path) for path in pictures.iterdir())
    done = sightline("infer", picture, "--model", tmp_path / "best.pt", env=laptop.env)
    assert done.returncode == 1
    assert f"must be the name of a model of the service, got the file {tmp_path}" in done.stderr


def test_infer_saves_copies_with_boxes(laptop: Laptop, pictures: Path, tmp_path: Path) -> None:
    original = pictures / "plate-0.jpg"
    before = original.read_bytes()
    done = sightline("infer", original, "--save", tmp_path / "out", "--json", env=laptop.env)
    assert done.returncode == 0, done.stderr
    (answer,) = lines(done.stdout)
    saved = Path(answer["saved"])
    assert saved == tmp_path / "out" / "plate-0.jpg"
    assert original.read_bytes() == before
    with Image.open(original) as plain, Image.open(saved) as copy:
        assert copy.size == plain.size
        assert answer["detections"]
        box = answer["detections"][0]["box"]
        corner = (round(box["x_max"]) - 1, round(box["y_max"]) - 1)
        changes = np.abs(np.asarray(copy.convert("RGB"), int) - np.asarray(plain.convert("RGB")))
    assert changes[corner[1], corner[0]].max() > 60


def test_infer_saves_into_the_folder_of_the_originals(laptop: Laptop, tmp_path: Path) -> None:
    original = tmp_path / "plate.jpg"
    original.write_bytes(to_jpeg(make_plate(3).image))
    before = original.read_bytes()
    done = sightline("infer", original, "--save", tmp_path, env=laptop.env)
    assert done.returncode == 0, done.stderr
    assert f"saved {tmp_path}/plate-2.jpg" in done.stderr
    assert original.read_bytes() == before


def test_doctor_has_nothing_to_say_of_a_laptop(laptop: Laptop) -> None:
    done = sightline("doctor", env=laptop.env)
    assert done.returncode == 0, done.stdout
    assert "ok      inference model" in done.stdout


def test_log_lands_in_stats(laptop: Laptop, pictures: Path) -> None:
    model = REPOSITORY / "plates/1/model.onnx"
    done = sightline("log", str(pictures), "--model", str(model), "--json", env=laptop.env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pictures"]["by_device"] == 3
    done = sightline("stats", "--device", "laptop", "--json", env=laptop.env)
    assert done.returncode == 0, done.stderr
    stats = json.loads(done.stdout)
    assert stats["total_predictions"] == 3
    assert stats["by_device"] == [{"key": "laptop", "count": 3, "defects": 0, "with_verdict": 0}]
    assert stats["by_source"][0]["key"] == "device"
    assert stats["with_verdict"] == 0
    assert stats["by_source_label"][0]["key"] == str(pictures)


def test_stats_fit_80_columns_and_say_what_they_count(
    laptop: Laptop, pictures: Path, tmp_path: Path
) -> None:
    model = REPOSITORY / "plates/1/model.onnx"
    judging = {
        **laptop.env,
        "COLUMNS": "80",
        "SIGHTLINE_EDGE_DEVICE_ID": "judge-" + "x" * 200,
        "SIGHTLINE_EDGE_SPOOL_DIR": str(tmp_path / "spool"),
        "SIGHTLINE_EDGE_DEFECT_CLASSES": "scratch,pit,stain",
    }
    assert sightline("log", pictures, "--model", model, env=judging).returncode == 0
    (tmp_path / "cloudy").mkdir()
    (tmp_path / "cloudy" / "plate.jpg").write_bytes((pictures / "plate-0.jpg").read_bytes())
    asking = {**judging, "SIGHTLINE_EDGE_DEVICE_ID": "asker"}
    asking["SIGHTLINE_EDGE_SPOOL_DIR"] = str(tmp_path / "asker")
    del asking["SIGHTLINE_EDGE_DEFECT_CLASSES"]
    assert sightline("log", tmp_path / "cloudy", env=asking).returncode == 0
    judged = sightline("stats", "--device", judging["SIGHTLINE_EDGE_DEVICE_ID"], env=judging)
    asked = sightline("stats", "--device", "asker", env=judging)
    for done in (judged, asked):
        assert done.returncode == 0, done.stderr
        assert max(map(len, done.stdout.splitlines())) <= 80
        for title in ("answered by", "source (label)", "predictions", "first captured"):
            assert title in done.stdout
    assert re.search(r"predictions with a defect +│ \d of 3 with a verdict", judged.stdout)
    assert "why the cloud answered" not in judged.stdout
    assert "- (no prediction has a verdict)" in asked.stdout
    assert re.search(r"asker +│ +1 │ +- │", asked.stdout)
    assert "why the cloud answered" in asked.stdout


def test_log_shows_how_far_it_is_and_sums_up(laptop: Laptop, pictures: Path) -> None:
    model = REPOSITORY / "plates/1/model.onnx"
    done = sightline("log", pictures / "*.jpg", "--every", 2, "--model", model, env=laptop.env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 images: 2 answered by the device, 0 by the cloud, 0 failed")
    assert "2 predictions logged, all committed" in done.stdout
    assert "Next: sightline stats --device laptop" in done.stdout
    assert "\x1b" not in done.stderr


def test_ctrl_c_ends_log_with_its_summary(laptop: Laptop, tmp_path: Path) -> None:
    picture = to_jpeg(make_plate(0).image)
    for number in range(5000):
        (tmp_path / f"{number:04}.jpg").write_bytes(picture)
    model, spool = REPOSITORY / "plates/1/model.onnx", tmp_path / "spool" / "spool.db"
    with subprocess.Popen(
        [*SIGHTLINE, "log", str(tmp_path), "--model", str(model), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **laptop.env,
            "SIGHTLINE_EDGE_SPOOL_DIR": str(spool.parent),
            "SIGHTLINE_EDGE_DEVICE_ID": "interrupted",
        },
    ) as process:
        wait_for(lambda: spool.exists() and is_used(spool))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert json.loads(out)["pictures"]["by_device"] < 5000


@pytest.mark.parametrize("service", ["ingest", "inference"])
def test_serve_help_is_the_services_own(service: str) -> None:
    done = sightline("serve", service, "--help", env=environment())
    assert done.returncode == 0
    assert "--listen" in done.stdout
