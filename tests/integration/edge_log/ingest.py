"""A real `python -m ingest_service`, which can be killed and started again."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from sightline.cli.processes import ServiceProcess


class Ingest:
    """The service. It keeps its address and its database from one life to the next.

    Args:
        folder: of its database and its log; it exists.
        listen: where it serves. None: on a port of its own choice.
    """

    def __init__(self, folder: Path, listen: str | None = None) -> None:
        self.database = folder / "log.duckdb"
        self.target = listen or "127.0.0.1:0"
        self.environment: dict[str, str] = {}
        """Variables that it gets besides those of this process."""
        self._log = folder / "ingest.log"
        self._process: ServiceProcess | None = None

    @property
    def is_running(self) -> bool:
        """True if the service was started and not stopped since."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    def start(self, patience: float = 60.0) -> None:
        """Returns when it is ready; one that is not after `patience` seconds is killed.

        Raises:
            CommandError: it was not.
        """
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SIGHTLINE_")}
        environment |= self.environment
        flags = ["--listen", self.target, "--database", str(self.database)]
        with self._log.open("a") as log:
            self._process = ServiceProcess(
                "ingest_service", flags, env=environment, stderr=log, ready_timeout=patience
            )
        self.target = self._process.address

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends it, by default gently."""
        process, self._process = self._process, None
        if process is None:
            return
        if number is signal.SIGKILL:
            process.kill()
        else:
            process.stop()

    def kill(self) -> None:
        """Ends it with SIGKILL, in the middle of whatever it does."""
        self.stop(signal.SIGKILL)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Asks the database; the service must be stopped."""
        with duckdb.connect(str(self.database), read_only=True) as database:
            rows: list[tuple[Any, ...]] = database.execute(sql).fetchall()
            return rows


@contextmanager
def serving(folder: Path, listen: str | None = None) -> Iterator[Ingest]:
    """A service that is ready, and ended afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    service = Ingest(folder, listen)
    service.start()
    try:
        yield service
    finally:
        service.kill()
