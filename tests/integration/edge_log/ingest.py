"""A real `python -m ingest_service` on a loopback port, which can be killed and started again."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

_START_SECONDS = 60
_STOP_SECONDS = 30


class Ingest:
    """The service. It keeps its port and its database from one life to the next."""

    def __init__(self, folder: Path) -> None:
        self.database = folder / "log.duckdb"
        self.target = "127.0.0.1:0"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it is ready."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SIGHTLINE_")}
        flags = ["--listen", self.target, "--database", str(self.database)]
        with (self._folder / "ingest.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ingest_service", *flags],
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self._folder,
                env=environment,
            )
        out = self._process.stdout
        assert out is not None
        readable, _, _ = select.select([out], [], [], _START_SECONDS)
        line = out.readline() if readable else b""
        assert line, (self._folder / "ingest.log").read_text()
        self.target = json.loads(line)["address"]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends it, by default gently."""
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(_STOP_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def kill(self) -> None:
        """Ends it with SIGKILL, in the middle of whatever it does."""
        self.stop(signal.SIGKILL)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Asks the database; the service must be stopped."""
        with duckdb.connect(str(self.database), read_only=True) as database:
            rows: list[tuple[Any, ...]] = database.execute(sql).fetchall()
            return rows


@contextmanager
def serving(folder: Path) -> Iterator[Ingest]:
    """A service that is ready, and ended afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    service = Ingest(folder)
    service.start()
    try:
        yield service
    finally:
        service.kill()
