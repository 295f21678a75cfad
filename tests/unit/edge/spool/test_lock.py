"""One process at a time in a spool folder, whatever name it is reached by."""

import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from edge.spool import lock
from edge.spool.caps import SpoolLimits
from edge.spool.lock import SpoolLock
from edge.spool.spool import Spool
from servicekit.errors import SightlineError

LIMITS = SpoolLimits(1 << 40, 0.0, 0)


def opened(folder: Path) -> Spool:
    return Spool(folder, "gate-1", LIMITS, lambda _: None)


@pytest.mark.parametrize("way", ["link", "parent", "relative"])
def test_another_path_to_the_same_folder_is_refused(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    paths = {"link": tmp_path / "link", "parent": tmp_path / "a/../a", "relative": Path("a")}
    spool = opened(tmp_path / "a")
    with pytest.raises(SightlineError, match=f"in use by process {os.getpid()}") as caught:
        opened(paths[way])
    assert caught.value.reason == "SPOOL_LOCKED"
    spool.close()
    opened(paths[way]).close()


def test_a_forked_process_is_refused_and_takes_no_lock_along(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    context = multiprocessing.get_context("fork")
    messages, stay = context.Queue(), context.Event()

    def child() -> None:
        try:
            opened(tmp_path)
        except SightlineError as error:
            messages.put(error.reason)
        spool.release_in_child()
        messages.put("forgotten")
        stay.wait(30)

    process = context.Process(target=child)
    process.start()
    assert messages.get(timeout=20) == "SPOOL_LOCKED"
    assert messages.get(timeout=20) == "forgotten"
    spool.append([b"x"])
    spool.close()
    opened(tmp_path).close()  # though the child is still there
    stay.set()
    process.join(20)
    assert process.exitcode == 0


def test_looking_who_holds_it_keeps_nobody_out(tmp_path: Path) -> None:
    assert lock.holder(tmp_path) is None
    held = SpoolLock(tmp_path)
    assert lock.holder(tmp_path) == str(os.getpid())
    held.release()
    assert lock.holder(tmp_path) is None
    stopping = threading.Event()

    def look() -> None:
        while not stopping.is_set():
            lock.holder(tmp_path)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(300):
            SpoolLock(tmp_path).release()
    finally:
        stopping.set()
        thread.join()


def test_a_lock_on_a_file_that_was_removed_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is emptied, and locked again by a third, between opening and locking."""
    real, third = os.open, list[SpoolLock]()

    def open_then_remove(path: Path, *arguments: int) -> int:
        descriptor = real(path, *arguments)
        if not third:
            third.append(None)  # type: ignore[arg-type] # stands for itself while it is being made
            path.unlink()
            third[0] = SpoolLock(tmp_path)
        return descriptor

    monkeypatch.setattr(os, "open", open_then_remove)
    with pytest.raises(SightlineError, match="in use by process"):
        SpoolLock(tmp_path)
    third[0].release()
