"""Work that takes long and is done once for all processes of a run of pytest, such as an export.

A test's file may be spread over several processes, each of which has session fixtures of its own.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that one process of this run fills, while the others wait for it.

    Args:
        factory: pytest's fixture `tmp_path_factory`.
        name: name of the folder, unique in the run.
        make: fills the folder; called again, with an empty folder, if it has failed.
    """
    base = factory.getbasetemp()
    # pytest-xdist gives each of its processes a folder in that of the run.
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, whole = run / name, run / f"{name}.whole"
    with FileLock(run / f"{name}.lock"):
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            whole.touch()
    return folder
