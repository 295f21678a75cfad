"""A detector in a process of its own: real processes that crash, hang and are killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from edge.detect import Detector, OnnxDetector, ProcessDetector, close_detector
from servicekit.errors import SightlineError
from tests.integration.edge_detect.unruly import Once, Stillborn, Summing, Unruly, summing
from tests.integration.edge_detect.waiting import until
from tests.unit.vision.models import save_detector
from vision import ModelError

Make = Callable[..., ProcessDetector]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[ProcessDetector] = []

    def one(factory: Callable[[], Detector] = Unruly, **options: Any) -> ProcessDetector:
        made.append(ProcessDetector(factory, **options))
        return made[-1]

    yield one
    for detector in made:
        detector.close()


def reason(detector: Detector, picture: Any) -> tuple[str, str]:
    with pytest.raises(SightlineError) as caught:
        detector.detect(picture)
    return caught.value.reason, caught.value.message


def works(detector: Detector) -> bool:
    try:
        return bool(detector.detect(b"fine").detections)
    except SightlineError as error:
        if error.reason != "DEVICE_RESTARTING":
            raise
        return False


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_it_answers_like_the_detector_in_it(make: Make) -> None:
    detector = make(partial(Unruly, version="7"))
    assert (detector.name, detector.version) == ("unruly", "7")
    assert detector.pid not in (None, os.getpid())
    assert detector.detect(b"four") == Unruly("7").detect(b"four")


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (b"segfault", "was ended by SIGSEGV"),
        (b"exit", "ended with exit code 3"),
    ],
)
def test_a_crash_is_an_error_and_another_process_takes_over(
    make: Make, picture: bytes, said: str
) -> None:
    detector = make()
    before = detector.pid
    assert reason(detector, picture) == ("DEVICE_CRASHED", f"the model's process {said}")
    assert reason(detector, b"fine")[0] == "DEVICE_RESTARTING"
    until(lambda: works(detector))
    assert detector.pid != before


def test_a_hang_is_given_up_and_its_process_killed(make: Make) -> None:
    detector = make(hang_seconds=0.3)
    before = detector.pid
    assert before is not None
    assert reason(detector, b"hang") == (
        "DEVICE_HUNG",
        "the model's process gave no answer within 0.3 s and was killed",
    )
    until(lambda: gone(before))
    until(lambda: works(detector))


def test_a_process_that_is_killed_during_a_run(make: Make) -> None:
    detector = make(hang_seconds=100)
    seen: list[tuple[str, str]] = []
    thread = threading.Thread(target=lambda: seen.append(reason(detector, b"hang")))
    pid = detector.pid
    assert pid is not None
    idle = psutil.Process(pid).num_ctx_switches().voluntary
    thread.start()
    until(lambda: psutil.Process(pid).num_ctx_switches().voluntary > idle)
    os.kill(pid, signal.SIGKILL)
    thread.join()
    assert seen == [("DEVICE_CRASHED", "the model's process was ended by SIGKILL")]
    until(lambda: works(detector))


def test_a_process_that_dies_while_it_waits_is_replaced_unasked(make: Make) -> None:
    detector = make()
    before = detector.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    until(lambda: detector.pid not in (None, before))
    assert works(detector)


def test_a_stopped_process_is_a_hang_even_for_an_image_larger_than_the_socket(make: Make) -> None:
    detector = make(hang_seconds=0.3, shared_memory=False)
    pid = detector.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    assert reason(detector, bytes(10_000_000))[0] == "DEVICE_HUNG"
    until(lambda: gone(pid))


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (b"raise", ("DEVICE_FAILED", "the model failed: RuntimeError: no kernel image")),
        (b"model", ("DEVICE_FAILED", "the model failed: ModelError: out of memory")),
        (b"refuse", ("IMAGE_TOO_LARGE", "image must be smaller")),
        (b"unavailable", ("GPU_LOST", "the GPU is gone")),
    ],
)
def test_what_the_detector_raises_is_said_and_costs_no_process(
    make: Make, picture: bytes, expected: tuple[str, str]
) -> None:
    detector = make()
    before = detector.pid
    assert reason(detector, picture) == expected
    assert works(detector)
    assert detector.pid == before


def test_an_image_at_fault_is_told_as_without_a_process(make: Make) -> None:
    for detector in (make(), Unruly()):
        with pytest.raises(SightlineError) as caught:
            detector.detect(b"refuse")
        assert caught.value.category == "validation"
        assert [one.field for one in caught.value.violations] == ["image"]


def test_an_array_that_is_no_image_does_not_reach_the_process(make: Make) -> None:
    assert reason(make(), np.zeros((4, 4), np.uint8))[0] == "INVALID_FIELD"


@pytest.mark.parametrize("shared_memory", [True, False])
def test_images_of_all_sizes_arrive_whole(make: Make, shared_memory: bool) -> None:
    detector = make(summing, shared_memory=shared_memory)
    expected = Summing()
    random = np.random.default_rng(1)
    for height, width in [(1, 1), (700, 900), (2, 3), (1500, 1000), (700, 900)]:
        picture = random.integers(0, 256, (height, width, 3), np.uint8)
        for view in (picture, picture[::-1], picture[:, ::2], picture[..., ::-1]):
            assert detector.detect(view) == expected.detect(view)
    assert make(shared_memory=shared_memory).detect(bytes(3_000_000)).detections[0].class_id == (
        3_000_000
    )


def test_images_arrive_whole_after_a_restart(make: Make) -> None:
    detector = make(summing)
    picture = np.full((900, 900, 3), 7, np.uint8)
    assert detector.detect(picture) == Summing().detect(picture)
    before = detector.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    until(lambda: detector.pid not in (None, before))
    for size in (10, 900, 1200):
        picture = np.full((size, size, 3), 9, np.uint8)
        assert detector.detect(picture) == Summing().detect(picture)


def noise(seed: int) -> NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    size = random.integers(32, 200, 2)
    return random.integers(0, 256, (*size, 3), np.uint8)


def test_two_hundred_images_are_answered_as_without_a_process(make: Make, tmp_path: Path) -> None:
    path = save_detector(tmp_path / "tiny.onnx")
    ours, plain = make(partial(OnnxDetector, path)), OnnxDetector(path)
    pictures = [noise(seed) for seed in range(200)]
    assert [ours.detect(one) for one in pictures] == [plain.detect(one) for one in pictures]


def test_threads_share_it(make: Make) -> None:
    detector = make(summing)
    wrong: list[int] = []

    def ask(seed: int) -> None:
        pictures = [noise(seed * 100 + number) for number in range(20)]
        wrong.extend(seed for one in pictures if detector.detect(one) != Summing().detect(one))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_libraries_print_does_not_get_onto_stdout(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    make().detect(b"print")
    said = capfd.readouterr()
    assert said.out == ""
    assert "a library says hello" in said.err
    assert "and so does its C code" in said.err


def test_an_error_while_loading_is_the_detectors_own() -> None:
    with pytest.raises(ModelError, match=r"plates\.onnx is no model") as caught:
        ProcessDetector(partial(Stillborn, "model"))
    assert caught.value.reason == "MODEL_FILE_INVALID"
    with pytest.raises(ModuleNotFoundError) as missing:
        ProcessDetector(partial(Stillborn, "module"))
    assert missing.value.name == "no_such_runtime"


@pytest.mark.parametrize(
    ("how", "seconds", "why", "said"),
    [
        ("segfault", 60, "DEVICE_CRASHED", "was ended by SIGSEGV"),
        ("exit", 60, "DEVICE_CRASHED", "ended with exit code 4"),
        ("hang", 1, "DEVICE_HUNG", "no answer within 1 s"),
        ("luck", 60, "DEVICE_FAILED", "ValueError: bad luck"),
    ],
)
def test_no_detector_comes_of_a_load_that_fails(
    how: str, seconds: float, why: str, said: str
) -> None:
    before = set(psutil.Process().children())
    with pytest.raises(SightlineError, match=said) as caught:
        ProcessDetector(partial(Stillborn, how), load_seconds=seconds)
    assert caught.value.reason == why
    assert set(psutil.Process().children()) == before


def test_a_restart_that_fails_is_tried_again_after_longer_and_longer(
    make: Make, tmp_path: Path
) -> None:
    model, tries = tmp_path / "model", tmp_path / "model.tries"
    model.touch()
    detector = make(partial(Once, str(model)))
    assert reason(detector, b"exit")[0] == "DEVICE_CRASHED"
    until(lambda: len(tries.read_text()) >= 3)
    assert reason(detector, b"fine")[0] == "DEVICE_RESTARTING"
    model.touch()
    until(lambda: detector.pid is not None)
    assert detector.detect(b"fine").model_name == "once"


def test_closing_lets_the_detector_close_and_ends_the_process(make: Make, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    detector = make(partial(Unruly, closed=str(mark)))
    pid = detector.pid
    assert pid is not None
    close_detector(detector)
    assert gone(pid)
    assert mark.read_text() == "closed"
    assert reason(detector, b"fine")[0] == "DEVICE_CLOSED"
    detector.close()


def test_closing_ends_a_run_that_hangs(make: Make) -> None:
    detector = make(hang_seconds=100)
    seen: list[tuple[str, str]] = []
    thread = threading.Thread(target=lambda: seen.append(reason(detector, b"hang")))
    pid = detector.pid
    assert pid is not None
    idle = psutil.Process(pid).num_ctx_switches().voluntary
    thread.start()
    until(lambda: psutil.Process(pid).num_ctx_switches().voluntary > idle)
    detector.close()
    thread.join()
    assert seen == [("DEVICE_CLOSED", "the detector is closed")]
    assert gone(pid)


def test_closing_while_it_restarts_leaves_no_process(make: Make) -> None:
    before = set(psutil.Process().children())
    detector = make()
    assert reason(detector, b"exit")[0] == "DEVICE_CRASHED"
    detector.close()
    assert set(psutil.Process().children()) == before


def test_a_forgotten_detector_ends_its_process() -> None:
    detector = ProcessDetector(Unruly)
    pid = detector.pid
    assert pid is not None
    del detector
    assert gone(pid)


NODE = """
import sys
from edge.detect import ProcessDetector
from tests.integration.edge_detect.unruly import Unruly
detector = ProcessDetector(Unruly, hang_seconds=1000)
print(detector.pid, flush=True)
detector.detect(sys.argv[1].encode()) if sys.argv[1] != "idle" else input()
"""


@pytest.mark.parametrize("picture", ["idle", "hang"])
def test_the_process_ends_when_its_owner_is_killed(picture: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", NODE, picture],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as node:
        assert node.stdout is not None
        pid = int(node.stdout.readline())
        assert not gone(pid)
        node.kill()
        until(lambda: gone(pid))


def test_a_program_may_end_without_closing_it() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", NODE, "fine"], capture_output=True, text=True, timeout=60, check=True
    )
    until(lambda: gone(int(ran.stdout)))


FORK = """
import os, sys
from edge.detect import ProcessDetector
from tests.integration.edge_detect.unruly import Unruly
detector = ProcessDetector(Unruly)
if os.fork() == 0:
    sys.exit()
os.wait()
print(detector.detect(b"four").detections[0].class_id)
"""


def test_a_fork_of_the_owner_does_not_end_the_process() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout == "4\n"


SCRIPT = """
from edge.detect import ProcessDetector
class Mine: pass
try:
    ProcessDetector(Mine)
except ValueError as error:
    print(error)
"""


def test_a_factory_must_be_known_in_another_process() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True
    )
    assert "factory must be in an importable module, but is defined in __main__" in ran.stdout
    with pytest.raises(ValueError, match="factory must be a function of a module"):
        ProcessDetector(lambda: Unruly())


@pytest.mark.parametrize("name", ["hang_seconds", "load_seconds"])
@pytest.mark.parametrize("value", [0, float("nan"), float("inf")])
def test_times_out_of_their_range_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be above 0 and finite"):
        ProcessDetector(Unruly, **{name: value})  # type: ignore[arg-type] # a float by either name


def test_an_answer_that_nobody_fetched_is_not_taken_for_the_next_one(make: Make) -> None:
    class InterruptError(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise InterruptError

    detector = make()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(InterruptError):
            detector.detect(b"nap")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    until(lambda: works(detector))
    for picture in (b"a", b"seven77", b"three"):
        assert detector.detect(picture).detections[0].class_id == len(picture)


def test_what_the_model_has_started_ends_with_it_and_hides_no_crash(make: Make) -> None:
    detector = make(hang_seconds=20.0)
    pid = detector.pid
    assert pid is not None
    began = time.monotonic()
    assert reason(detector, b"orphan") == (
        "DEVICE_CRASHED",
        "the model's process was ended by SIGKILL",
    )
    assert time.monotonic() - began < 10
    until(lambda: not any(_group(one) == pid for one in psutil.process_iter()))


def _group(process: psutil.Process) -> int:
    try:
        alive = process.status() != psutil.STATUS_ZOMBIE
        return os.getpgid(process.pid) if alive else 0
    except (psutil.NoSuchProcess, ProcessLookupError):
        return 0
