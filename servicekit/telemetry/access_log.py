"""The access log: one line per call, written when the call has ended.

Its fields are `method`, `code`, `reason` of a failure, `caller`, `peer`, `duration_ms`, and the
notes of the call (`servicekit.telemetry.call_notes`), such as `request_bytes`. It has the
`trace_id` and `span_id` of the call, as all of its lines. Its logger is `access`, its level info.
"""

import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import grpc
from structlog.contextvars import get_contextvars

from servicekit.auth.caller import known_caller
from servicekit.telemetry import call_notes
from servicekit.telemetry.background_lines import BackgroundLines, Writable
from servicekit.telemetry.background_stderr import BackgroundStderr
from servicekit.telemetry.call_end import code_of, peer_of
from servicekit.telemetry.call_notes import Fact

T = TypeVar("T")
_Context = grpc.aio.ServicerContext[Any, Any]
logger = logging.getLogger("access")
_to_json = json.JSONEncoder(default=repr).encode


class JsonLines:
    """A writer of JSON lines in the background.

    The lines have the format of `servicekit.telemetry.logs` and cost a tenth of the time, because
    every call writes one.

    Args:
        stream: the stream that gets the lines.
        service: name of the process in every line.
    """

    def __init__(self, stream: Writable, service: str) -> None:
        shared = stream.lines if isinstance(stream, BackgroundStderr) else None
        self._is_shared = shared is not None
        self._lines = shared or BackgroundLines(stream)
        self._tail = f'"level": "info", "logger": "access", "event": "call", "service": "{service}"'
        self._second = (0, "")

    def put(self, fields: Mapping[str, Fact]) -> None:
        """Queue a line with the fields of one call, at least one."""
        head = f'{{"timestamp": "{self._timestamp(time.time_ns())}", {self._tail}, '
        self._lines.put(head + _to_json({**get_contextvars(), **fields})[1:])

    def close(self) -> None:
        """Write the remaining lines and end; a shared queue of stderr stays open."""
        if not self._is_shared:
            self._lines.close()

    def _timestamp(self, nanoseconds: int) -> str:
        second, rest = divmod(nanoseconds, 10**9)
        if self._second[0] != second:
            self._second = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
        return f"{self._second[1]}.{rest // 1000:06d}Z"


_json_lines: JsonLines | None = None


def write_json(lines: JsonLines | None) -> None:
    """Set the writer of the lines from now on; None: they go to `logging`."""
    global _json_lines  # one log per process, as the root logger is
    if _json_lines is not None:
        _json_lines.close()
    _json_lines = lines


async def log_access(method: str, context: _Context, proceed: Callable[[], Awaitable[T]]) -> T:
    """Guard that logs one call."""
    if not logger.isEnabledFor(logging.INFO):
        return await proceed()
    begun = time.perf_counter()
    notes = call_notes.begin()
    try:
        response = await proceed()
    except BaseException as error:
        _write(method, context, code_of(context, error), begun, notes)
        raise
    _write(method, context, code_of(context), begun, notes)
    return response


def _write(
    method: str, context: _Context, code: str, begun: float, notes: Mapping[str, Fact]
) -> None:
    caller = known_caller()
    fields: dict[str, Fact] = {
        "method": method[1:],
        "code": code,
        "caller": caller.identity if caller else "none",
        "peer": peer_of(context),
        "duration_ms": round((time.perf_counter() - begun) * 1e3, 3),
        **notes,
    }
    if _json_lines is not None:
        _json_lines.put(fields)
    else:
        logger.info("call", extra={"fields": fields})
