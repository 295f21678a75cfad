"""The command that runs the console: `python -m console_service --help`."""

import logging
import sys
from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from console_service.app import application
from console_service.backend import Backend
from console_service.context import Console
from console_service.metrics import ConsoleMetrics
from console_service.server import serve
from console_service.settings import ConsoleSettings
from servicekit.about import program
from servicekit.lifecycle import run
from servicekit.settings import load, warn_of_mistyped_variables
from servicekit.telemetry import logs

PROG = program("python -m console_service")


async def _main(argv: Sequence[str]) -> None:
    settings = load(ConsoleSettings, argv, prog=PROG)
    logs.configure(settings.log_level, settings.log_format, service="console")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    warn_of_mistyped_variables(ConsoleSettings)
    registry = CollectorRegistry()
    backend = Backend(settings)
    console = Console(settings, backend, ConsoleMetrics(registry))
    try:
        await serve(settings, application(console), registry, console.draining)
    finally:
        await backend.close()


def main() -> None:
    """Run the console until SIGTERM; exit with 1 if it cannot start, with 2 for a bad setting."""
    sys.exit(run(lambda: _main(sys.argv[1:]), prog=PROG))


if __name__ == "__main__":
    main()
