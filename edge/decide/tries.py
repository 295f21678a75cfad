"""The tries at an answer: which are under way since when, and how the others ended."""

from edge.decide.answer import Attempt
from edge.records import Source
from servicekit.errors import SightlineError


class Tries:
    """The tries of one question. Pure: the time comes in.

    Args:
        started: when the question came.
    """

    def __init__(self, started: float) -> None:
        self._started = started
        self._since: dict[Source, float] = {}
        self._ended: list[Attempt] = []

    def begin(self, source: Source, now: float) -> None:
        """Takes note that a source is asked."""
        self._since[source] = now

    def end(self, source: Source, now: float, error: Exception | None = None) -> float:
        """Takes note that a try ended; returns how many seconds it took."""
        since = self._since.pop(source)
        self._ended.append(Attempt(source, since - self._started, now - since, _reason(error)))
        return now - since

    def forget(self, source: Source) -> None:
        """Takes back that a source is asked."""
        del self._since[source]

    def under_way(self, source: Source) -> bool:
        """Returns whether a source's answer is waited for."""
        return source in self._since

    @property
    def ended(self) -> tuple[Attempt, ...]:
        """Every try that ended, in that order."""
        return tuple(self._ended)

    def milliseconds(self, source: Source) -> float | None:
        """From the first try at the source to the end of its last; None: it was not asked."""
        tries = [attempt for attempt in self._ended if attempt.source is source]
        if not tries:
            return None
        return (tries[-1].began + tries[-1].seconds - tries[0].began) * 1e3


def _reason(error: Exception | None) -> str:
    if error is None:
        return ""
    return error.reason if isinstance(error, SightlineError) else type(error).__name__
