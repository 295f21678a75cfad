"""Log lines of a process: structlog's formatter over stdlib logging, on stderr.

JSON lines of calls have the same format, but `servicekit.telemetry.access_log` writes them. Neither
blocks on a reader (`servicekit.telemetry.background_stderr`).
"""

import logging
import sys
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from servicekit.telemetry import access_log
from servicekit.telemetry.failures_once import FailuresOnce


def configure(
    level: str = "info",
    log_format: Literal["console", "json"] | None = None,
    *,
    service: str,
) -> None:
    """Make the root logger write to stderr. A process's `__main__` calls this once.

    A JSON line has `timestamp` (ISO 8601, UTC), `level`, `logger`, `event`, `service`, the values
    bound for the call (`trace_id`) and, for an exception, `exception`. Lines of
    libraries that use stdlib logging have them, too. A warning or error that is repeated within a
    minute is only counted; see `FailuresOnce`.

    Args:
        level: minimum level that is written: debug, info, warning or error.
        log_format: `console` for people, `json` for machines; None: console if stderr is a
            terminal, else json.
        service: name of the process in every line, such as `ingest`.
    """
    console = sys.stderr.isatty() if log_format is None else log_format == "console"
    handler = FailuresOnce(sys.stderr)
    handler.setFormatter(_formatter(service, console=console))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    access_log.write_json(None if console else access_log.JsonLines(sys.stderr, service))


def _formatter(service: str, *, console: bool) -> logging.Formatter:
    def add_service(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
        event["service"] = service
        return event

    def add_fields(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
        event.update(event.pop("fields", {}))
        return event

    common: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        add_fields,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_service,
    ]
    rendering: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if console:
        rendering.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
    else:
        rendering += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=common, processors=rendering)
