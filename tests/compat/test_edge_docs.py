"""Tests that run the commands of the pages about a node as they are printed.

docs: tutorials/camera.md, how-to/python.md, how-to/troubleshoot.md. The tables of
explanation/fallback.md and reference/errors.md are complete.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc import StatusCode
from sightline.ingest.v1 import ingest_service_pb2 as messages
from sightline.ingest.v1.ingest_pb2 import PredictionFilter
from sightline.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub

from edge.decide.policy import Mode
from edge.errors import EdgeError
from servicekit.errors import SightlineError
from tests.compat.conftest import ROOT
from tests.default_ports import moved
from tests.fakes.cameras import NetworkCamera, RtspCamera, camera
from tests.integration.cli.terminal import environment
from tests.pages import blocks, section
from tests.unit.edge.sources.monitors import save_pictures, save_video

CAMERA_PAGE = "tutorials/camera.md"
PROGRAMS = blocks("how-to/python.md", "python")
ERRORS = section("reference/errors.md", "Edge node")
YOLO = Path(os.environ.get("SIGHTLINE_TEST_MODELS", "")) / "yolov8n_int8.onnx"
SIGHTLINE = f"{sys.executable} -c 'from sightline.cli.app import main; main()'"
CAMERA = "rtsp://camera/stream"
SHORT = 11
"""Frames of the video for a real model, which takes a tenth of a second for each."""


def command(start: str, *, as_printed: bool = False) -> str:
    """Return the one command with this start, for this interpreter."""
    (block,) = [block.strip() for block in blocks(CAMERA_PAGE) if block.startswith(start)]
    return f"{block}\n" if as_printed else block.replace("sightline", SIGHTLINE, 1)


@dataclass(frozen=True)
class Desk:
    """A reader's workplace: a folder with pictures, both services running, and an environment."""

    folder: Path
    env: dict[str, str]

    def run(self, text: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["bash", "-c", moved(text)],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    (folder / "models").symlink_to(ROOT / "models")
    save_pictures(folder / "pictures", "part-0001.jpg", "part-0002.jpg", "part-0003.jpg")
    save_video(folder / "clip.mp4", frames=30, fps=10)
    save_video(folder / "short.mp4", frames=SHORT, fps=10)
    # As on the page, except for the ports, which may be taken.
    ports = " --ingest-listen 127.0.0.1:0 --inference-listen 127.0.0.1:0 --console-listen ''"
    with subprocess.Popen(
        ["bash", "-c", f"exec {command('sightline up')}{ports}"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as up:
        assert up.stdout is not None
        ready = [json.loads(up.stdout.readline()) for _ in range(2)]
        addresses = {service["service"]: service["address"] for service in ready}
        env = environment(
            ingest_target=addresses["ingest"],
            inference_target=addresses["inference"],
            device_id="gate-1",
            spool_dir=folder / "spool",
        )
        env["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "generated")))
        try:
            yield Desk(folder, env)
        finally:
            up.send_signal(signal.SIGTERM)
            assert up.wait(30) == 0


@pytest.fixture
def network() -> Iterator[NetworkCamera]:
    with camera(RtspCamera) as network:
        yield network


def test_every_command_of_the_pages_is_tested() -> None:
    starts = {block.split()[1] for block in blocks(CAMERA_PAGE)}
    assert starts == {"up", "log", "stats", "spool", "doctor"}
    assert len(blocks(CAMERA_PAGE)) == 7
    doctor, bundle = blocks("how-to/troubleshoot.md")
    assert doctor == command("sightline doctor", as_printed=True)
    assert bundle.startswith("sightline doctor --bundle ")
    assert len(PROGRAMS) == 9
    # The loop stands on the tutorial's page as well.
    assert blocks(CAMERA_PAGE, "python") == PROGRAMS[:1]


@pytest.mark.parametrize(("source", "pictures"), [("pictures/", 3), ("clip.mp4", 6)])
def test_images_and_videos_are_logged(desk: Desk, source: str, pictures: int) -> None:
    done = desk.run(command(f"sightline log {source}") + " --json")
    assert done.returncode == 0, done.stderr
    stats = json.loads(done.stdout)
    assert stats["pictures"]["by_device"] == pictures
    assert stats["logger"]["backlog"] == 0
    assert stats["sources"][source]["state"] == "ended"


def test_a_camera_is_logged_until_ctrl_c(desk: Desk, network: NetworkCamera) -> None:
    text = command(f"sightline log {CAMERA}").replace(CAMERA, network.url) + " --json"
    with subprocess.Popen(
        ["bash", "-c", f"exec {text}"],
        cwd=desk.folder,
        env=desk.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()  # one every few seconds
        while " 0 pictures" in f" {line}":
            line = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    (source,) = json.loads(out)["sources"].values()
    assert source["by_device"] > 0
    parts = ("skipped", "dropped", "by_device", "by_cloud", "failed", "waiting")
    assert source["read"] == sum(source[part] for part in parts)


def test_what_was_logged_is_seen_and_nothing_is_wrong(desk: Desk) -> None:
    assert desk.run(command("sightline log pictures/")).returncode == 0
    stats = desk.run(command("sightline stats") + " --json")
    assert stats.returncode == 0, stats.stderr
    assert "gate-1" in stats.stdout
    spools = desk.run(command("sightline spool ls") + " --json")
    assert spools.returncode == 0, spools.stderr
    (spool,) = [json.loads(line) for line in spools.stdout.splitlines()]
    assert (spool["device_id"], spool["pending"]) == ("gate-1", 0)
    doctor = desk.run(command("sightline doctor"))
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    (desk.folder / "node.log").write_text("the node is ready\n")
    bundle = blocks("how-to/troubleshoot.md")[1]
    done = desk.run(bundle.replace("sightline", SIGHTLINE, 1))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "logs/1-node.log" in done.stdout
    assert (desk.folder / "bundle.tar.gz").is_file()


def printed(desk: Desk, program: str) -> list[str]:
    """Return the output of a program of the page, with the plates' model on the device."""
    (desk.folder / "program.py").write_text(program)
    model = ROOT / "models/repository/plates/1/model.onnx"
    env = {**desk.env, "SIGHTLINE_EDGE_DEVICE_MODEL": str(model)}
    done = Desk(desk.folder, env).run(f"{sys.executable} program.py")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(("number", "answers"), [(5, 1), (6, 2)])
def test_the_node_programs_run(desk: Desk, number: int, answers: int) -> None:
    lines = printed(desk, PROGRAMS[number])
    assert len(lines) == answers
    assert all("device" in line for line in lines)


def test_the_program_of_the_readme_runs(desk: Desk) -> None:
    (program,) = blocks("../README.md", "python")
    assert len(program.splitlines()) <= 10
    for meant, here in (("part-0001.jpg", "pictures/part-0001.jpg"), (CAMERA, "clip.mp4")):
        assert meant in program
        program = program.replace(meant, here)
    first, *rest = printed(desk, program)
    assert first == "device None"
    assert len(rest) >= 6  # the frames of the clip


def test_a_detector_and_a_source_of_ones_own_run(desk: Desk) -> None:
    targets = [desk.env[f"SIGHTLINE_EDGE_{name}_TARGET"] for name in ("INGEST", "INFERENCE")]
    program = moved(PROGRAMS[8], ingest=targets[0], inference=targets[1])
    device = 'device_id="gate-1"'
    assert device in program
    program = program.replace(device, f'device_id="own", spool_dir="{desk.folder / "own"}"')
    assert printed(desk, program) == ["scan-0 dark", "scan-1 light"]


def test_an_error_tells_its_reason_and_its_tries(desk: Desk) -> None:
    output, attempt = printed(desk, PROGRAMS[7])
    assert output == "IMAGE_FILE_UNREADABLE validation False"
    assert attempt.startswith("device at 0.0")
    assert "IMAGE_FILE_UNREADABLE after" in attempt


def test_every_mode_is_in_the_table() -> None:
    table = section("explanation/fallback.md", "Who answers")
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == ["mode", *Mode]


def test_every_category_is_in_the_table_with_its_retryability() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (yes|no) \|", ERRORS, re.MULTILINE))
    errors = [SightlineError(code, "X", "x") for code in StatusCode if code is not StatusCode.OK]
    assert rows == {error.category: "yes" if error.retryable else "no" for error in errors}


def test_every_error_of_the_family_is_in_the_table() -> None:
    rows = re.findall(r"^\| `(\w+Error)` \|", ERRORS, re.MULTILINE)
    assert sorted(rows) == sorted(error.__name__ for error in EdgeError.__subclasses__())


def logged(desk: Desk, device: str, count: int) -> list[tuple[str, str]]:
    """Return the image and the model of each prediction of a device, once there are so many."""
    request = messages.ListPredictionsRequest(filter=PredictionFilter(device_ids=[device]))
    deadline = time.monotonic() + 30
    with grpc.insecure_channel(desk.env["SIGHTLINE_EDGE_INGEST_TARGET"]) as channel:
        stub = IngestServiceStub(channel)
        while len(rows := stub.ListPredictions(request, timeout=20).predictions) < count:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    return sorted((row.prediction.image_id, row.prediction.model_name) for row in rows)


def run_loop(desk: Desk, program: str, device: str, names: Mapping[str, str]) -> None:
    """Run a program of the page as this device, with files that are here."""
    program = moved(program, ingest=desk.env["SIGHTLINE_EDGE_INGEST_TARGET"])
    own = {'device_id="gate-1"': f'device_id="{device}", spool_dir="{desk.folder / device}"'}
    for meant, here in {**names, **own}.items():
        assert meant in program
        program = program.replace(meant, here)
    (desk.folder / "loop.py").write_text(program)
    done = desk.run(f"{sys.executable} loop.py")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("number", "images"), [(3, ["part-0000", "part-0001", "part-0002"]), (4, ["part-0004"])]
)
def test_other_results_are_logged(desk: Desk, number: int, images: list[str]) -> None:
    device = f"other-{number}"
    run_loop(desk, PROGRAMS[number], device, {})
    assert logged(desk, device, len(images)) == [(image, "parts") for image in images]


@pytest.mark.skipif(not YOLO.is_file(), reason="SIGHTLINE_TEST_MODELS has no yolov8n_int8.onnx")
@pytest.mark.parametrize(("number", "model"), [(0, "yolov8n_int8"), (2, "yolov8n")])
def test_the_loops_name_every_frame_and_the_model(desk: Desk, number: int, model: str) -> None:
    device = f"loop-{number}"
    source = "clip.mp4" if number else CAMERA
    run_loop(desk, PROGRAMS[number], device, {"yolov8n.pt": str(YOLO), source: "short.mp4"})
    expected = [(f"short.mp4#{frame:06d}", model) for frame in range(SHORT)]
    assert logged(desk, device, SHORT) == expected


@pytest.mark.skipif(not YOLO.is_file(), reason="SIGHTLINE_TEST_MODELS has no yolov8n_int8.onnx")
def test_the_loop_that_chooses_gives_each_frame_a_name(desk: Desk) -> None:
    run_loop(desk, PROGRAMS[1], "loop-1", {"yolov8n.pt": str(YOLO), "clip.mp4": "short.mp4"})
    rows = logged(desk, "loop-1", 2)
    assert [model for _, model in rows] == ["yolov8n"] * 2
    assert len({image for image, _ in rows}) == 2
    assert all(re.fullmatch(r"short\.mp4@[\d:.TZ-]+", image) for image, _ in rows)


def test_the_codes_of_each_category_are_in_the_table() -> None:
    table = section("reference/errors.md", "What an error carries")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE))
    codes = [code for code in StatusCode if code is not StatusCode.OK]
    assert {code.name: rows[SightlineError(code, "X", "x").category] for code in codes} == {
        code.name: row for row in rows.values() for code in codes if code.name in row.split(", ")
    }
