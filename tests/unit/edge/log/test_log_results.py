"""A detector's loop that logs its results, whatever they contain: it never ends with its log."""

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge.errors import ClosedError
from edge.log import image_names
from edge.log.adapters import from_ultralytics
from edge.log.fitting import fitting
from edge.log.logger import PredictionLogger
from edge.options import LogOptions
from edge.records import Detection, Keypoint, Mask, Prediction
from edge.settings import EdgeSettings
from edge.spool.export import Exporter
from edge.spool.inspect import file_at
from servicekit.contract_bounds import MAX_CLASS_NAME_BYTES
from servicekit.errors import SightlineError

torch = pytest.importorskip("torch")
numpy = pytest.importorskip("numpy")
ultralytics_results = pytest.importorskip("ultralytics.engine.results")
NAMES = {0: "cat", 1: "dog"}
GOOD = [1.0, 2, 3, 4, 0.5, 1]
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
Logged = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[PredictionLogger]:
    with PredictionLogger(
        "127.0.0.1:1", device_id="gate-1", spool_dir=tmp_path, model_name="parts", model_version="7"
    ) as logger:
        yield logger


@pytest.fixture
def logged(log: PredictionLogger, tmp_path: Path) -> Logged:
    def read() -> list[dict[str, Any]]:
        assert log.flush(20)
        return list(Exporter(file_at(tmp_path), 0, print).lines())

    return read


def results(*rows: list[float], path: Any = "/in/a.jpg", names: Any = NAMES, **parts: Any) -> Any:
    if rows:
        parts["boxes"] = torch.tensor(rows, dtype=torch.float64)
    picture = numpy.zeros((48, 64, 3), numpy.uint8)
    return ultralytics_results.Results(picture, path, names, **parts)


def freed(name: str = "boxes") -> Any:
    """Return results whose memory on a GPU is gone, so that each access to it fails."""

    class Freed:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    made = results(GOOD, masks=torch.ones((1, 48, 64)))
    part = getattr(made, name)
    part.data = Freed()
    return made


def changed(name: str, value: object, **parts: Any) -> Any:
    """Return results in which a program has replaced an attribute."""
    made = results([1.0, 2, 3, 4, 7, 0.5, 1], **parts)  # tracked, so that the box is clipped
    setattr(made, name, value)
    return made


def masked(count: int) -> Any:
    return results(*[GOOD] * count, masks=torch.ones((1, 48, 64)))


CASES: dict[str, tuple[Callable[[], Any], int | None, dict[str, int]]] = {
    # The results, the number of detections in the log (None: no prediction), what is left out.
    "a class without a name": (lambda: results([*GOOD[:5], 7]), 1, {}),
    "names as a short list": (lambda: results([*GOOD[:5], 7], names=["cat"]), 1, {}),
    "a negative class": (lambda: results([*GOOD[:5], -1]), 1, {}),
    "a name that is no text": (lambda: results(GOOD, names={1: None}), 1, {}),
    "a name with a lone surrogate": (lambda: results(GOOD, names={1: "d\udcffg\ud800"}), 1, {}),
    "NaN in a box": (lambda: results([math.nan, *GOOD[1:]], GOOD), 2, {}),
    "an infinite box": (lambda: results([-math.inf, *GOOD[1:]]), 1, {}),
    "a confidence that is NaN": (lambda: results([*GOOD[:4], math.nan, 1]), 1, {}),
    "a negative size": (lambda: results([9.0, 9, 3, 4, 0.5, 1]), 1, {}),
    "a class that is NaN": (lambda: results([*GOOD[:5], math.nan], GOOD), 1, {"detection": 1}),
    "a class beyond 32 bits": (lambda: results([*GOOD[:5], 3e9], GOOD), 1, {"detection": 1}),
    "a track beyond 64 bits": (lambda: results([1, 2, 3, 4, 1e30, 0.5, 1]), 1, {"track_id": 1}),
    "a track that is NaN": (lambda: results([1, 2, 3, 4, math.nan, 0.5, 1]), 1, {"track_id": 1}),
    "no path": (lambda: results(GOOD, path=None), 1, {}),
    "an empty path": (lambda: results(GOOD, path=""), 1, {}),
    "a path that is not UTF-8": (lambda: results(GOOD, path="/in/\udcff.jpg"), 1, {}),
    "a long path": (lambda: results(GOOD, path="/in/" + 700 * "é" + ".jpg"), 1, {}),
    "a time that is NaN": (lambda: results(GOOD, speed={"inference": math.nan}), 1, {}),
    "masks without memory": (lambda: freed("masks"), 1, {"mask": 1}),
    "masks of other objects": (lambda: masked(2), 2, {"mask": 2}),
    "masks without boxes": (lambda: results(masks=torch.ones((3, 48, 64))), 0, {"mask": 3}),
    "points of other objects": (
        lambda: results(GOOD, keypoints=torch.ones((2, 5, 3))),
        1,
        {"keypoints": 1},
    ),
    "a map of classes": (
        lambda: results(semantic_mask=torch.ones((48, 64))),
        0,
        {"semantic_mask": 1},
    ),
    "a map of depths": (lambda: results(GOOD, depth=torch.ones((48, 64))), 1, {"depth": 1}),
    "no size": (lambda: changed("orig_shape", None), 1, {}),
    "no size, and masks": (
        lambda: changed("orig_shape", None, masks=torch.ones((1, 48, 64))),
        1,
        {"mask": 1},
    ),
    "a size with channels": (lambda: changed("orig_shape", (48.0, 64.0, 3)), 1, {}),
    "a time that is text": (lambda: changed("speed", {"inference": "3 ms"}), 1, {}),
    "a batch of one classification": (lambda: results(probs=torch.tensor([[0.75, 0.25]])), 2, {}),
    "results without memory": (freed, None, {"result": 1}),
    "an object like results": (
        lambda: SimpleNamespace(boxes=1, names=2, orig_shape=3, speed=4),
        None,
        {"result": 1},
    ),
}


@pytest.mark.parametrize(("count", "name"), [(10_007, "d"), (10_000, 100 * "d")])
def test_a_record_holds_the_most_confident_of_too_many(count: int, name: str) -> None:
    rows = [[1.0, 2, 3, 4, share / count, 1] for share in range(count)]
    prediction = from_ultralytics(results(*rows, names={1: name}))
    kept = prediction.detections
    assert 8000 < len(kept) <= 10_000
    assert prediction.left_out == {"detection": count - len(kept)}
    assert kept[-1].confidence == pytest.approx((count - len(kept)) / count)


def test_a_record_that_is_too_large_loses_its_masks_first() -> None:
    mask = Mask(polygons=[[(1, 1), (5, 1), (5, 5)]])
    rows = [Detection(0, "", 0.5, mask=mask) for _ in range(60)]
    left_out: Counter[str] = Counter()

    def record(found: Sequence[Detection]) -> Prediction:
        if sum(one.mask is not None for one in found):
            raise ValueError("too large")
        return Prediction("i", "m", detections=found, left_out=left_out)

    kept = fitting(record, rows, left_out)
    assert [one.mask for one in kept.detections] == [None] * 60
    assert kept.left_out == {"mask": 60}


@pytest.mark.parametrize("case", CASES)
def test_what_can_be_said_is_logged_and_the_rest_is_counted(
    log: PredictionLogger, logged: Logged, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    make, detections, left_out = CASES[case]
    for _ in range(2):
        log(make())
    log(results(GOOD))  # the loop goes on
    lines = logged()
    kept = [len(line.get("detections", ())) for line in lines]
    assert kept == ([] if detections is None else [detections] * 2) + [1]
    assert log.stats().left_out == {kind: 2 * count for kind, count in left_out.items()}
    said = [record for record in caplog.records if "left out" in record.getMessage()]
    assert [record.levelno for record in said] == [logging.WARNING] * len(left_out)  # once
    for line in lines:
        assert 1 <= len(line["image_id"].encode()) <= 512
        assert (line["model_name"], line["model_version"]) == ("parts", "7")


def test_a_class_without_a_name_keeps_its_number(log: PredictionLogger, logged: Logged) -> None:
    log(results([*GOOD[:5], 7], GOOD, names={1: "d\udcffg"}))
    (line,) = logged()
    found = [(item["class_id"], item.get("class_name", "")) for item in line["detections"]]
    assert found == [(7, ""), (1, r"d\xffg")]


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (None, ""),
        ({"0": "cat", "1": "dog"}, "dog"),  # from a JSON file
        ({numpy.int64(1): numpy.str_("dog")}, "dog"),
        ({1: "a dog " * 100}, "~710177ca22e50899~" + ("a dog " * 100)[-238:]),  # a prompt
        ({1: "é" * 128}, "é" * 128),
    ],
    ids=["none", "text keys", "numpy", "long", "as long as it may be"],
)
@pytest.mark.parametrize("part", ["boxes", "probs"])
def test_names_of_any_kind_are_logged_in_a_size_that_the_server_takes(
    log: PredictionLogger, logged: Logged, names: Any, name: str, part: str
) -> None:
    parts = {"probs": torch.tensor([0.25, 0.75])} if part == "probs" else {}
    log(results(*[GOOD] * (part == "boxes"), names=names, **parts))
    (line,) = logged()
    assert line["detections"][0].get("class_name", "") == name
    assert len(name.encode()) <= MAX_CLASS_NAME_BYTES


def test_a_caller_that_waits_is_told(log: PredictionLogger) -> None:
    with pytest.raises(SightlineError, match="the results cannot be read: CUDA error") as caught:
        log.log(freed(), wait="spooled", timeout=20)
    assert caught.value.reason == "PREDICTION_DROPPED"
    assert log.stats().left_out == {"result": 1}


@pytest.mark.parametrize("many", [list, tuple])
def test_what_a_model_returns_is_a_list_and_is_logged(
    log: PredictionLogger, logged: Logged, many: Any
) -> None:
    log(many([results(GOOD), results(GOOD, path="/in/b.jpg")]))
    log.log([], wait="spooled", timeout=20)
    assert [line["image_id"] for line in logged()] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("wrong", [None, "a.jpg", 3, {}, [None], iter(())])
def test_what_is_no_result_is_an_error_of_the_program(log: PredictionLogger, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"must be a sightline\.Prediction, the ultralytics"):
        log(wrong)


def test_a_stream_of_results_is_to_be_logged_in_a_loop(log: PredictionLogger) -> None:
    with pytest.raises(TypeError, match=r"got generator: log each of its results in a loop"):
        log(one for one in [results(GOOD)])


def test_a_closed_logger_is_an_error_of_the_program(log: PredictionLogger) -> None:
    log.close()
    with pytest.raises(ClosedError):
        log(results(GOOD))


class Model:
    """Part of an ultralytics model that a logger is attached to."""

    def __init__(self) -> None:
        self.callbacks: dict[str, list[Any]] = {"on_predict_batch_end": []}
        kind = SimpleNamespace(from_img=True, tensor=False)
        self.dataset = SimpleNamespace(mode="image", sources=[])
        self.predictor = SimpleNamespace(seen=1, results=[], dataset=self.dataset, source_type=kind)

    def add_callback(self, event: str, callback: Any) -> None:
        self.callbacks[event].append(callback)

    def predict(self, *found: Any) -> None:
        self.predictor.results = list(found)
        for callback in self.callbacks["on_predict_batch_end"]:
            callback(self.predictor)


def test_a_model_goes_on_when_its_log_is_closed(
    log: PredictionLogger, caplog: pytest.LogCaptureFixture
) -> None:
    model: Any = Model()
    log.attach(model)
    log.close()
    for _ in range(3):
        model.predict(results(GOOD))
    assert log.stats().left_out == {"result": 3}
    (said,) = [record for record in caplog.records if record.name == "edge.left_out"]
    assert "ClosedError: the logger is closed" in said.getMessage()


def test_a_model_goes_on_when_a_result_or_its_name_cannot_be_had(
    log: PredictionLogger, logged: Logged
) -> None:
    model: Any = Model()
    log.attach(model)
    model.predict(freed(), results(GOOD))
    model.dataset.mode = "stream"  # whose sources do not have this path
    model.predict(results(GOOD, path="rtsp___10.0.0.7_live"))
    assert [line["image_id"] for line in logged()] == ["a.jpg"]
    assert log.stats().left_out == {"result": 2}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/in/a.jpg", r"a\.jpg"),
        ("/in/image0.jpg", r"image0\.jpg"),
        ("image0.jpg", rf"image0\.jpg@{TIME}"),  # an array
        ("image31.jpg", rf"image31\.jpg@{TIME}"),
        ("/in/clip.MP4", rf"clip\.MP4@{TIME}"),
        ("0", rf"0@{TIME}"),
        ("screen 0 (LTWH): 0,0,64,48", rf".*@{TIME}"),
        ("rtsp___user_pw_10.0.0.7_live", rf"rtsp stream@{TIME}"),
        ("", rf"image@{TIME}"),
        ("/in/part", "part"),
    ],
)
def test_each_image_has_a_name_of_its_own(
    log: PredictionLogger, logged: Logged, path: str, expected: str
) -> None:
    for _ in range(3):
        log(results(GOOD, path=path))
    names = [line["image_id"] for line in logged()]
    assert all(re.fullmatch(expected, name) for name in names)
    assert len(set(names)) == (3 if "@" in names[0] else 1)


def test_names_of_one_microsecond_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    monkeypatch.setattr(image_names, "datetime", SimpleNamespace(now=lambda _: now))
    names = [image_names.with_time("a") for _ in range(3)]
    assert len(set(names)) == 3
    assert names == sorted(names)


def test_long_names_stay_apart() -> None:
    names = {
        from_ultralytics(results(GOOD, path=f"/in/{start}{600 * 'x'}.jpg")).image_id
        for start in "ab"
    }
    assert len(names) == 2
    assert {len(name) for name in names} == {512}
    assert all(name.endswith("xxx.jpg") for name in names)


def test_the_name_of_the_model_is_the_loggers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"device_model": "m/parts.onnx", "spool_dir": tmp_path / "a"}
    named = EdgeSettings(**options)
    with PredictionLogger.from_settings(named) as log:
        log(results(GOOD), wait="spooled", timeout=20)
    assert [line["model_name"] for line in lines(tmp_path / "a")] == ["parts"]
    assert [record for record in caplog.records if record.name == "edge.log.logger"] == []
    with PredictionLogger("127.0.0.1:1", device_id="g", spool_dir=tmp_path / "b") as log:
        for _ in range(2):
            log(results(GOOD), wait="spooled", timeout=20)
    assert [line["model_name"] for line in lines(tmp_path / "b")] == ["ultralytics"] * 2
    (said,) = [record for record in caplog.records if record.name == "edge.log.logger"]
    assert "pass model_name to PredictionLogger" in said.getMessage()


def lines(folder: Path) -> list[dict[str, Any]]:
    return list(Exporter(file_at(folder), 0, print).lines())


@pytest.mark.parametrize("name", ["m/p\udcff.onnx", f"m/{'x' * 200}.onnx"])
def test_the_file_of_any_model_gives_a_name(tmp_path: Path, name: str) -> None:
    options: dict[str, Any] = {"device_model": name, "spool_dir": tmp_path}
    with PredictionLogger.from_settings(EdgeSettings(**options)) as log:
        log(results(GOOD), wait="spooled", timeout=20)
    (line,) = lines(tmp_path)
    assert line["model_name"] in (r"p\xff", 200 * "x")


def test_a_model_name_that_cannot_be_logged_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model_name must be text"):
        PredictionLogger(device_id="g", spool_dir=tmp_path, model_name=3)  # type: ignore[arg-type]


def put_into(log: PredictionLogger, monkeypatch: pytest.MonkeyPatch) -> list[Prediction]:
    """Return the list that gets what is logged, in place of the buffer."""
    taken: list[Prediction] = []
    monkeypatch.setattr(log, "_put", lambda prediction, _: taken.append(prediction))
    return taken


@pytest.mark.parametrize("door", ["log", "attach"])
@pytest.mark.parametrize("form", ["polygon", "rle", "off"])
def test_the_form_of_masks_is_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Any, door: str
) -> None:
    options = LogOptions(mask_format=form, polygon_tolerance=2)
    mask = torch.zeros((1, 48, 64))
    mask[:, 10:20, 5:30] = 1
    found = results(GOOD, masks=mask)
    model: Any = Model()
    with PredictionLogger("127.0.0.1:1", device_id="g", spool_dir=tmp_path, options=options) as log:
        taken = put_into(log, monkeypatch)
        if door == "log":
            log(found)
        else:
            log.attach(model)
            model.predict(found)
        assert log.stats().left_out == {}
    ((detection,),) = (prediction.detections for prediction in taken)
    expected = {
        "polygon": Mask(polygons=[[(5, 10), (5, 19), (29, 19), (29, 10)]]),
        "rle": Mask(rle=f"j7:V1{47 * '0'}fb1", width=64, height=48),
        "off": None,
    }
    assert detection.mask == expected[form]


def test_rotated_boxes_are_logged(log: PredictionLogger, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = put_into(log, monkeypatch)
    log(results(obb=torch.tensor([[30.0, 20, 10, 40, -0.5, 0.75, 1], [1, 1, 20, 8, 0.5, 0.9, 0]])))
    ((first, second),) = (prediction.detections for prediction in taken)
    assert first.class_name == "cat"
    assert first.box is not None
    sides = [first.box.x_min, first.box.y_min, first.box.x_max, first.box.y_max]
    assert sides == pytest.approx([0, 0, 11.69, 9.31], abs=0.01)  # in the image
    turned = second.rotated_box
    assert turned is not None
    found = [turned.center_x, turned.center_y, turned.width, turned.height, turned.angle]
    assert found == pytest.approx([30, 20, 40, 10, math.pi / 2 - 0.5])
    assert log.stats().left_out == {}


def test_keypoints_are_logged_in_the_order_of_their_objects(
    log: PredictionLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = put_into(log, monkeypatch)
    points = torch.tensor([[[1.0, 2, 0.5]], [[3, 4, 0.25]]])
    log(results(GOOD, [*GOOD[:4], 0.75, 0], keypoints=points))
    ((first, second),) = (prediction.detections for prediction in taken)
    assert (first.class_id, first.keypoints) == (0, (Keypoint(3.0, 4.0, 0.25),))
    assert (second.class_id, second.keypoints) == (1, (Keypoint(1.0, 2.0, 0.5),))


def test_left_out_parts_of_a_record_are_counted_when_it_is_logged(log: PredictionLogger) -> None:
    log(Prediction("i", "m", left_out={"mask": 2}))
    log(from_ultralytics(masked(2), model_name="m"))
    assert log.stats().left_out == {"mask": 4}
