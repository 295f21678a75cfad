"""Logging what a real YOLO predicts and tracks, with one line of its program changed."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false")

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from edge.log import adapters
from edge.log.logger import PredictionLogger
from edge.spool.export import Exporter
from edge.spool.inspect import file_at
from tests.fakes.cameras import RtspCamera, camera
from tests.photographs import photograph
from tests.unit.edge.sources.monitors import save_video

MODEL = Path(os.environ.get("SIGHTLINE_TEST_MODELS", "")) / "yolov8n_int8.onnx"
pytestmark = pytest.mark.skipif(
    not MODEL.is_file(), reason="SIGHTLINE_TEST_MODELS holds no yolov8n_int8.onnx"
)
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
Logged = list[dict[str, Any]]


@pytest.fixture
def model() -> Any:
    from ultralytics import YOLO

    return YOLO(MODEL, task="detect")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[PredictionLogger]:
    with PredictionLogger("127.0.0.1:1", device_id="gate-1", spool_dir=tmp_path) as logger:
        yield logger


@pytest.fixture
def logged(log: PredictionLogger, tmp_path: Path) -> Callable[[], Logged]:
    def read() -> Logged:
        assert log.flush(20)
        return list(Exporter(file_at(tmp_path), 0, print).lines())

    return read


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name in ("bus.jpg", "zidane.jpg"):
        (folder / name).symlink_to(photograph(name))
    return folder


def report(prediction: dict[str, Any]) -> tuple[Any, list[Any]]:
    detections = [(item["class_name"], item.get("track_id")) for item in prediction["detections"]]
    return prediction["image_id"], detections


def of(results: Any) -> tuple[str, list[Any]]:
    """Return the results that the program receives, most confident first, as they are logged."""
    boxes = results.boxes
    ids = [None] * len(boxes) if boxes.id is None else [str(int(item)) for item in boxes.id]
    rows = sorted(zip(boxes.conf.tolist(), boxes.cls.tolist(), ids, strict=True), reverse=True)
    return Path(results.path).name, [(results.names[int(cls)], track) for _, cls, track in rows]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("what", ["predict", "track"])
def test_each_result_is_logged_as_the_program_gets_it(
    model: Any, log: PredictionLogger, logged: Any, photos: Path, what: str, stream: bool
) -> None:
    log.attach(model, line="3")
    results = list(getattr(model, what)(photos, stream=stream, verbose=False))
    predictions = logged()
    assert [report(item) for item in predictions] == [of(item) for item in results]
    assert [item["image_id"] for item in predictions] == ["bus.jpg", "zidane.jpg"]
    tracked = [track for item in predictions for _, track in report(item)[1]]
    assert len(tracked) >= 6
    assert (None not in tracked) is (what == "track")
    assert {item["labels"]["line"] for item in predictions} == {"3"}
    assert {item["model_name"] for item in predictions} == {"yolov8n_int8"}
    assert all("inference_time" in item for item in predictions)


def test_frames_of_a_video_have_names_of_their_own_in_each_run(
    model: Any, log: PredictionLogger, logged: Any, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "image0.jpg").symlink_to(photos / "bus.jpg")
    save_video(folder / "clip.mp4", frames=3)
    log.attach(model)
    for _ in range(2):
        model.predict(folder, batch=2, imgsz=64, verbose=False)
    frames = [f"clip.mp4#{number:06d}" for number in range(3)]
    assert [item["image_id"] for item in logged()] == ["image0.jpg", *frames] * 2


def test_frames_of_a_stream_have_the_time_in_their_names(
    model: Any, log: PredictionLogger, logged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_video(tmp_path / "clip.mp4", frames=5)
    (tmp_path / "cameras.streams").write_text("clip.mp4\n")
    log.attach(model)
    for _ in range(2):
        results = list(model.predict("cameras.streams", stream=True, imgsz=64, verbose=False))
        assert results
    names = [item["image_id"] for item in logged()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(rf"clip\.mp4@{TIME}", name) for name in names)


def test_the_password_of_a_real_camera_is_in_no_row(
    model: Any, log: PredictionLogger, logged: Any
) -> None:
    log.attach(model)
    with camera(RtspCamera) as network:
        url = network.url.replace("//", "//operator:hunter2@")
        for result in model.predict(url, stream=True, imgsz=64, verbose=False):
            log(result)
            break
        model.predictor.dataset.close()
    predictions = logged()
    assert len(predictions) == 2
    assert "hunter2" not in str(predictions)
    assert "operator" not in str(predictions)
    assert {item["image_id"].partition("@")[0] for item in predictions} == {
        "rtsp stream",
        "rtsp stream 0",
    }


def test_arrays_have_the_time_in_their_names(
    model: Any, log: PredictionLogger, logged: Any
) -> None:
    log.attach(model)
    for _ in range(3):
        model.predict(np.zeros((48, 64, 3), np.uint8), imgsz=64, verbose=False)
    names = [item["image_id"] for item in logged()]
    assert len(set(names)) == 3
    assert all(re.fullmatch(rf"image0\.jpg@{TIME}", name) for name in names)


def test_a_stream_that_is_left_early_has_logged_what_it_gave(
    model: Any, log: PredictionLogger, logged: Any, photos: Path
) -> None:
    log.attach(model)
    stream = model.track(photos, stream=True, verbose=False)
    first = next(stream)
    stream.close()
    assert [report(item) for item in logged()] == [of(first)]


def test_a_loop_may_log_the_results_of_a_stream_itself(
    model: Any, log: PredictionLogger, logged: Any, photos: Path
) -> None:
    expected = []
    for results in model.track(photos, stream=True, verbose=False):
        log(results)
        expected.append(of(results))
    assert [report(item) for item in logged()] == expected


def test_a_model_that_has_already_predicted_can_be_attached_and_detached(
    model: Any, log: PredictionLogger, logged: Any, photos: Path
) -> None:
    model.predict(photos / "bus.jpg", verbose=False)
    detach = log.attach(model, model_name="yolo", model_version="8")
    model.predict(photos / "bus.jpg", verbose=False)
    detach()
    detach()
    model.predict(photos / "bus.jpg", verbose=False)
    (prediction,) = logged()
    assert (prediction["model_name"], prediction["model_version"]) == ("yolo", "8")


def test_two_loggers_of_one_model_do_not_disturb_each_other(
    model: Any, log: PredictionLogger, logged: Any, photos: Path, tmp_path: Path
) -> None:
    with PredictionLogger("127.0.0.1:1", device_id="b", spool_dir=tmp_path / "b") as other:
        detach = other.attach(model)
        log.attach(model)
        detach()
        model.predict(photos / "bus.jpg", verbose=False)
        assert other.flush(20)
        assert other.stats().spooled == 0
    assert len(logged()) == 1


def test_what_is_no_model_is_refused(log: PredictionLogger) -> None:
    with pytest.raises(TypeError, match=r"model must be an ultralytics model \(got str\)"):
        log.attach("yolov8n.pt")


def test_what_cannot_be_logged_is_refused_before_the_model_runs(
    model: Any, log: PredictionLogger
) -> None:
    with pytest.raises((TypeError, ValueError), match="line"):
        log.attach(model, line=3)  # type: ignore[arg-type]
    assert len(model.callbacks["on_predict_batch_end"]) == len(_fresh_callbacks())


def _fresh_callbacks() -> list[Any]:
    from ultralytics import YOLO

    callbacks: list[Any] = YOLO(MODEL, task="detect").callbacks["on_predict_batch_end"]
    return callbacks


def test_cameras_are_told_apart_without_their_credentials() -> None:
    paths = ["rtsp___user_secret_10.0.0.7_live", "rtsp___user_secret_10.0.0.8_live"]
    dataset = SimpleNamespace(mode="stream", sources=paths)
    predictor: Any = SimpleNamespace(dataset=dataset, source_type=None)
    names = [str(adapters._frame_name(predictor, path, Counter())) for path in paths]
    assert [name.split("@")[0] for name in names] == ["rtsp stream 0", "rtsp stream 1"]
