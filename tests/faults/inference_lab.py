"""A real inference server that is watched: what it holds, and what it leaves behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.integration.inference.process import InferenceProcess, started

MEMORY_BYTES = 32 << 20
"""By which a server may grow after it has warmed up: its threads' heaps are never quite full."""
_THREADS = 8  # pools fill up one by one, and gRPC's own come and go
_SHA256_HEX = 64
_DESCRIPTORS = 4  # of threads that read or write at the moment of looking


@dataclass(frozen=True)
class Held:
    """What a process holds at a moment."""

    memory: int
    """Resident bytes."""
    descriptors: int
    threads: int
    files: frozenset[str]
    """Names in its folder of temporary files."""

    def assert_no_more_than(self, before: "Held") -> None:
        """Fails if the process has grown since."""
        assert self.memory < before.memory + MEMORY_BYTES, (before, self)
        assert self.descriptors <= before.descriptors + _DESCRIPTORS, (before, self)
        assert self.threads <= before.threads + _THREADS, (before, self)
        assert self.files <= before.files, (before, self)


class Watched:
    """A server and its folder of temporary files."""

    def __init__(self, server: InferenceProcess, temporary: Path) -> None:
        self.server = server
        self._temporary = temporary
        self._process = psutil.Process(server.process.pid)

    def held(self) -> Held:
        """Returns what the server holds now."""
        with self._process.oneshot():
            return Held(
                self._process.memory_info().rss,
                self._process.num_fds(),
                self._process.num_threads(),
                self._left(),
            )

    def stop(self) -> None:
        """Ends the server, and fails if it does not drain or leaves anything behind."""
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
    """Whether a file is no leftover: a whole upload that has its time, and a database's journal.

    ONNX Runtime writes `.ses` wherever it is loaded, and leaves it there.
    """
    return len(path.name) == _SHA256_HEX or path.suffix == ".sqlite-journal" or path.name == ".ses"


@contextmanager
def watched(folder: Path, patch: pytest.MonkeyPatch, *flags: str) -> Iterator[Watched]:
    """A server that is ready, ended afterwards, and has a folder of its own for temporary files."""
    temporary = folder / "temporary"
    temporary.mkdir()
    patch.setenv("TMPDIR", str(temporary))
    # Else glibc learns to keep up to 64 MiB of freed memory in each of its arenas, and a leak could
    # hide in that.
    patch.setenv("MALLOC_MMAP_THRESHOLD_", str(1 << 20))
    with started(folder, *flags) as server:
        yield Watched(server, temporary)
