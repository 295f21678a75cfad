"""The two services as real processes, and the network between them and the edge node."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from examples.demo.relay import CUT, SOUND, Relay
from examples.demo.script import Event
from sightline.cli.processes import ServiceProcess

MODELS = Path(__file__).parents[2] / "models" / "repository"


class World:
    """Both services on free loopback ports, each behind a relay. Use it as a context manager.

    Args:
        folder: folder of the database and the services' logs.
    """

    def __init__(self, folder: Path) -> None:
        self.database = folder / "sightline.duckdb"
        self._folder = folder
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._ingest = self._start_ingest()
            stack.callback(lambda: self._ingest.stop())
            flags = ["--listen", "127.0.0.1:0", "--model-repository", str(MODELS)]
            self._inference = self._start("inference_service", flags)
            stack.callback(self._inference.stop)
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

    def _start(self, module: str, flags: list[str]) -> ServiceProcess:
        with (self._folder / f"{module}.log").open("a") as log:
            return ServiceProcess(module, flags, stderr=log)
