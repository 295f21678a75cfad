"""A handler for the log that tells a failure once, however often it repeats."""

import atexit
import logging
import time
from typing import TextIO

from servicekit.telemetry.repeats import Repeats


class FailuresOnce(logging.StreamHandler[TextIO]):
    """A handler that writes a failure that repeats once, and later how often it came again.

    Two records of level warning and above are the same if their texts are equal; the traceback is
    no part of the text. If the texts differ, as with an id in an error, each line is written and
    the traceback is not repeated. A minute after a failure was written, it is written again.
    """

    def __init__(self, stream: TextIO) -> None:
        """Write to a stream."""
        super().__init__(stream)
        self._repeats = Repeats()
        atexit.register(self.close)  # before the stream, if that was made before

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, unless it is a repetition, and the counts that are due."""
        try:
            now = time.monotonic()
            self._tell(now)
            told = self._told(record, now)
        except Exception:  # noqa: BLE001 - such as a text that does not fit its arguments
            self.handleError(record)
        else:
            if told is not None:
                super().emit(told)

    def close(self) -> None:
        """Write the counts of what has not come again since."""
        atexit.unregister(self.close)
        self._tell(float("inf"))
        super().close()

    def _told(self, record: logging.LogRecord, now: float) -> logging.LogRecord | None:
        """Return what is written of a record; None: nothing."""
        if record.levelno < logging.WARNING:
            return record
        if record.exc_info:
            kind = (record.name, str(record.msg), record.exc_info[0])
            if not self._repeats.is_new(kind, now):
                record = _without_traceback(record)
        same = (record.name, record.levelno, record.getMessage())
        return record if self._repeats.is_new(same, now) else None

    def _tell(self, now: float) -> None:
        for key, again in self._repeats.over(now):
            match key:
                case (str(name), int(level), str(text)):
                    super().emit(_repeated(name, level, text, again))


def _repeated(name: str, level: int, text: str, again: int) -> logging.LogRecord:
    said = f"{text} ({again} times more)"
    record = logging.LogRecord(name, level, "", 0, said, (), None)
    record.fields = {"repeated": again}
    return record


def _without_traceback(record: logging.LogRecord) -> logging.LogRecord:
    copy = logging.makeLogRecord(record.__dict__)
    copy.exc_info = copy.exc_text = None
    return copy
