"""A real `python -m console_service` process on a free loopback port."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

PATIENCE = 30.0
"""Maximum time that a test waits for an expected event, s."""


class ConsoleProcess:
    """The process of a console.

    Args:
        folder: where its log goes.
        ingest: address of the ingest service.
        flags: further flags.
    """

    def __init__(self, folder: Path, ingest: str, *flags: str) -> None:
        self.log = folder / "console.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SIGHTLINE_")}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "console_service", "--listen", "127.0.0.1:0"),
                    *("--ingest-target", ingest, *flags),
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        self.url = f"http://{json.loads(line)['address']}"

    def stop(self) -> int:
        """End the process with SIGTERM, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
