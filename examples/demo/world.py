"""The two services as real processes, and the network between them and the edge node."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from examples.demo.relay import CUT, SOUND, Relay
from examples.demo.script import Event
from sightline.cli.processes import ServiceProcess, is_taken

CONSOLE = "127.0.0.1:8080"
"""Address of the console; if something listens there, any free port."""
MODELS = Path(__file__).parents[2] / "models" / "repository"


class World:
    """Both services on free loopback ports, each behind a relay. Use it as a context manager.

    Args:
        folder: folder of the database and the services' logs.
        console: also start the console; its address is then `console`, host:port.
    """

    def __init__(self, folder: Path, *, console: bool = False) -> None:
        self.database = folder / "sightline.duckdb"
        self.console = ""
        self._has_console = console
        self._folder = folder
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._ingest = self._start_ingest()
            stack.callback(lambda: self._ingest.stop())
            flags = ["--listen", "127.0.0.1:0", "--model-repository", str(MODELS)]
            self._inference = self._start("inference_service", flags)
            stack.callback(self._inference.stop)
            if self._has_console:
                self.console = stack.enter_context(self._start_console()).address
            self.ingest_relay = stack.enter_context(Relay(self._ingest.address))
            self.inference_relay = stack.enter_context(Relay(self._inference.address))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def happen(self, event: Event) -> None:
        """Carry out an event of the script."""
        match event:
            case Event.CUT:
                self.ingest_relay.become(CUT)
                self.inference_relay.become(CUT)
            case Event.RESTORE:
                self.ingest_relay.become(SOUND)
                self.inference_relay.become(SOUND)
            case Event.KILL_INGEST:
                self._ingest.kill()
            case Event.RESTART_INGEST:
                self._ingest = self._start_ingest()
                self.ingest_relay.retarget(self._ingest.address)

    def _start_ingest(self) -> ServiceProcess:
        flags = ["--listen", "127.0.0.1:0", "--database", str(self.database)]
        return self._start("ingest_service", flags)

    def _start_console(self) -> ServiceProcess:
        listen = CONSOLE if not is_taken(CONSOLE) else "127.0.0.1:0"
        targets = ["--ingest-target", self._ingest.address]
        targets += ["--inference-target", self._inference.address]
        return self._start("console_service", ["--listen", listen, *targets])

    def _start(self, module: str, flags: list[str]) -> ServiceProcess:
        with (self._folder / f"{module}.log").open("a") as log:
            return ServiceProcess(module, flags, stderr=log)
