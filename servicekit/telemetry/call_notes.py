"""Notes about the call that is being handled, for its log line and its span.

Handlers add facts with `note`; guards read them when the call has ended. Facts are for operators:
they never contain a credential or the content of an image.
"""

from contextvars import ContextVar
from typing import TypeAlias

Fact: TypeAlias = "str | int | float | bool"

_notes: ContextVar[dict[str, Fact]] = ContextVar("sightline_call_notes")


def begin() -> dict[str, Fact]:
    """Return the notes of this call, a dictionary that fills while the call is handled.

    Each call is a task, and the tasks that it starts write into the same notes.
    """
    notes = _notes.get(None)
    if notes is None:
        notes = {}
        _notes.set(notes)
    return notes


def note(**facts: Fact) -> None:
    """Add or replace facts about this call. Do nothing where no guard reads them.

    Args:
        facts: by name, with their unit: `queue_ms`, `request_bytes`.
    """
    notes = _notes.get(None)
    if notes is not None:
        notes.update(facts)


def add(name: str, amount: int) -> None:
    """Add to a numeric fact of this call, which starts at 0."""
    notes = _notes.get(None)
    if notes is not None:
        notes[name] = int(notes.get(name, 0)) + amount
