"""What is worth telling about the call that is being handled: for its log line and its span.

Whoever handles a call adds facts with `note`; who watches it from outside reads them once it has
ended. Facts are for operators: never a credential, never what a picture shows.
"""

from contextvars import ContextVar
from typing import TypeAlias

Fact: TypeAlias = "str | int | float | bool"

_notes: ContextVar[dict[str, Fact]] = ContextVar("sightline_call_notes")


def begin() -> dict[str, Fact]:
    """Return the notes of this call, which fill while it is handled.

    Each call is a task of its own, and tasks that it starts write into the same notes.
    """
    notes = _notes.get(None)
    if notes is None:
        notes = {}
        _notes.set(notes)
    return notes


def note(**facts: Fact) -> None:
    """Add facts about this call, or replaces them; does nothing where nobody wants to know.

    Args:
        facts: by name, with their unit: `queue_ms`, `request_bytes`.
    """
    notes = _notes.get(None)
    if notes is not None:
        notes.update(facts)


def add(name: str, amount: int) -> None:
    """Add to a number among the facts of this call, which begins at 0."""
    notes = _notes.get(None)
    if notes is not None:
        notes[name] = int(notes.get(name, 0)) + amount
