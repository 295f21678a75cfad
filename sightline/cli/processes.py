"""A service as a process of its own, which is started, awaited until ready, and stopped."""

import errno
import json
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import IO, Self

from servicekit.terminal import CommandError

_POLL_SECONDS = 0.1
"""Time between two looks at `stop` while a service starts, s."""


class StartCancelledError(Exception):
    """The wait for a service that starts was cancelled; its process has ended."""


class ServiceProcess:
    """One service, run as `python -m <module>` by this interpreter.

    The service prints one JSON object on stdout when it is ready; `ready` holds it and `address`
    its `address` (host:port). Use it as a context manager, or call `stop`.

    Args:
        module: `ingest_service`, `inference_service` or `console_service`.
        arguments: flags, as a person would type them.
        env: the whole environment of the process. None: that of this one.
        stderr: the file its log goes to. None: this process's stderr.
        own_group: run it in a process group of its own, so that Ctrl-C and the end of the terminal
            reach this process only, which then stops it. With both, the second signal would end
            the service before it has drained.
        ready_timeout: seconds until it must be ready.
        stop: cancels the start when it is set, such as by Ctrl-C.

    Raises:
        StartCancelledError: `stop` was set before it was ready.
        CommandError: it ended, or was not ready in time; the exit code is in the message, the
            reason in its log.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str] = (),
        *,
        env: Mapping[str, str] | None = None,
        stderr: IO[str] | None = None,
        own_group: bool = False,
        ready_timeout: float = 60.0,
        stop: threading.Event | None = None,
    ) -> None:
        self.module = module
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=None if env is None else dict(env),
            text=True,
            process_group=0 if own_group else None,
        )
        try:
            self.ready = self._wait_until_ready(ready_timeout, stop or threading.Event())
        except BaseException:
            self.kill()
            raise
        self.address = str(self.ready["address"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid

    def stop(self, timeout: float = 30.0) -> int:
        """Send SIGTERM and wait for the service to drain; kill it after `timeout` seconds.

        Returns:
            Its exit code; negative: the signal that ended it.
        """
        self.process.terminate()
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """Send SIGKILL, reap the process and return its exit code."""
        self.process.kill()
        return self.process.wait()

    def _wait_until_ready(self, timeout: float, stop: threading.Event) -> dict[str, object]:
        lines: queue.Queue[str] = queue.Queue()
        # The thread also empties the pipe afterwards, so that the service never blocks on it.
        threading.Thread(target=self._read, args=(lines,), daemon=True).start()
        line, until = None, time.monotonic() + timeout
        while line is None:
            if stop.is_set():
                raise StartCancelledError
            if time.monotonic() >= until:
                raise CommandError(f"{self.module} was not ready after {timeout:g} s")
            with suppress(queue.Empty):
                line = lines.get(timeout=min(_POLL_SECONDS, timeout))
        if not line:
            code = self.process.wait()
            raise CommandError(f"{self.module} ended with exit code {code}: its log says why")
        ready: dict[str, object] = json.loads(line)
        return ready

    def _read(self, lines: "queue.Queue[str]") -> None:
        for line in self.process.stdout or ():
            lines.put(line)
        lines.put("")


def is_taken(address: str) -> bool:
    """Return True if something listens at an address already.

    Args:
        address: host:port; an address of another form, or of another machine, is not taken.
    """
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or address.startswith("unix:"):
        return False
    try:
        addresses = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, OverflowError):
        return False
    return any(_is_bound(family, address) for family, _, _, _, address in addresses)


def _is_bound(family: socket.AddressFamily, address: tuple[object, ...]) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Ports of closed connections are free; a port that is listened on is not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False
