"""A real inference server whose memory, threads and temporary files are watched."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.integration.inference.process import InferenceProcess, started

MEMORY_BYTES = 32 << 20
"""Permitted growth after warm-up, bytes: the heaps of the threads are never quite full."""
_THREADS = 8  # pools fill up one by one, and gRPC's own threads come and go
_SHA256_HEX = 64
_DESCRIPTORS = 4  # of threads that read or write at the moment of looking
_SETTLES_SECONDS = 30.0


@dataclass(frozen=True)
class Held:
    """The resources of a process at one moment."""

    memory: int
    """Resident memory, bytes."""
    descriptors: int
    threads: int
    files: frozenset[str]
    """Names of its temporary files."""

    def is_no_more_than(self, before: "Held") -> bool:
        """Return True if the process has not grown since an earlier moment."""
        return (
            self.memory < before.memory + MEMORY_BYTES
            and self.descriptors <= before.descriptors + _DESCRIPTORS
            and self.threads <= before.threads + _THREADS
            and self.files <= before.files
        )


class Watched:
    """A server and its folder of temporary files."""

    def __init__(self, server: InferenceProcess, temporary: Path) -> None:
        self.server = server
        self._temporary = temporary
        self._process = psutil.Process(server.process.pid)

    def held(self) -> Held:
        """Return the server's current resources."""
        with self._process.oneshot():
            return Held(
                self._process.memory_info().rss,
                self._process.num_fds(),
                self._process.num_threads(),
                self._left(),
            )

    def held_without_growth(self, before: Held) -> Held:
        """Return the resources once they are no more than at an earlier moment, or fail.

        A server still writes, removes and loads files for a moment after its last answer: what it
        uses then passes, a leak stays.
        """
        end = time.monotonic() + _SETTLES_SECONDS
        while not (now := self.held()).is_no_more_than(before):
            assert time.monotonic() < end, (before, now, self._process.open_files())
            time.sleep(0.1)
        return now

    def stop(self) -> None:
        """End the server, and fail if it does not drain or leaves files behind."""
        assert self.server.stop() == 0
        assert not (left := self._left()), left
        log = self.server.log.read_text()
        assert "Traceback" not in log, log[log.index("Traceback") :][:4000]
        assert "Warning" not in log, log[log.index("Warning") :][:400]

    def _left(self) -> frozenset[str]:
        return frozenset(
            str(path.relative_to(self._temporary))
            for path in self._temporary.rglob("*")
            if not _may_stay(path)
        )


def _may_stay(path: Path) -> bool:
    """Return True for a file that may remain: a completed upload or a database's journal.

    ONNX Runtime writes `.ses` into its working directory, and leaves it there.
    """
    return len(path.name) == _SHA256_HEX or path.suffix == ".sqlite-journal" or path.name == ".ses"


@contextmanager
def watched(folder: Path, patch: pytest.MonkeyPatch, *flags: str) -> Iterator[Watched]:
    """Run a server with its own folder for temporary files, and end it afterwards."""
    temporary = folder / "temporary"
    temporary.mkdir()
    patch.setenv("TMPDIR", str(temporary))
    # Otherwise glibc adapts to keep up to 64 MiB of freed memory in each arena, and a leak could
    # hide in that.
    patch.setenv("MALLOC_MMAP_THRESHOLD_", str(1 << 20))
    with started(folder, *flags) as server:
        yield Watched(server, temporary)
