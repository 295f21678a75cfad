"""A log handler that writes a repeated failure once."""

import atexit
import logging
import time
from typing import TextIO

from servicekit.telemetry.repeats import Repeats


class FailuresOnce(logging.StreamHandler[TextIO]):
    """A handler that writes a repeated failure once, and later the number of repetitions.

    Two records of level warning or above are equal if their texts are equal; the traceback is not
    part of the text. If the texts differ, for example by an id, each line is written, without the
    traceback of the first. A failure is written again one minute after it was written.
    """

    def __init__(self, stream: TextIO) -> None:
        """Write to a stream."""
        super().__init__(stream)
        self._repeats = Repeats()
        atexit.register(self.close)  # runs before the stream is closed, if the stream is older

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record unless it is a repetition, and the counts that are due."""
        try:
            now = time.monotonic()
            self._write_counts(now)
            written = self._deduplicated(record, now)
        except Exception:  # noqa: BLE001 - such as a text that does not fit its arguments
            self.handleError(record)
        else:
            if written is not None:
                super().emit(written)

    def close(self) -> None:
        """Write the remaining counts."""
        atexit.unregister(self.close)
        self._write_counts(float("inf"))
        super().close()

    def _deduplicated(self, record: logging.LogRecord, now: float) -> logging.LogRecord | None:
        """Return the record to write; None: it is a repetition."""
        if record.levelno < logging.WARNING:
            return record
        if record.exc_info:
            kind = (record.name, str(record.msg), record.exc_info[0])
            if not self._repeats.is_new(kind, now):
                record = _without_traceback(record)
        same = (record.name, record.levelno, record.getMessage())
        return record if self._repeats.is_new(same, now) else None

    def _write_counts(self, now: float) -> None:
        for key, again in self._repeats.over(now):
            match key:
                case (str(name), int(level), str(text)):
                    super().emit(_repeated(name, level, text, again))


def _repeated(name: str, level: int, text: str, again: int) -> logging.LogRecord:
    message = f"{text} ({again} times more)"
    record = logging.LogRecord(name, level, "", 0, message, (), None)
    record.fields = {"repeated": again}
    return record


def _without_traceback(record: logging.LogRecord) -> logging.LogRecord:
    copy = logging.makeLogRecord(record.__dict__)
    copy.exc_info = copy.exc_text = None
    return copy
