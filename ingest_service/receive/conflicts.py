"""Detection of sequences that are sent again with another content than was committed.

Pure. Two things tell. The generation: an opening of a spool gives out each of its sequences once,
so two generations that claim one sequence mean two predictions. And a digest of the first and of
the last committed prediction, for clients that name no generation.

What this does not notice: a message of such a client that lies below the watermark and has neither
the first nor the last committed sequence in it.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from ingest_service.receive.content import digest_in
from ingest_service.receive.group import Prepared
from ingest_service.receive.sequence import Runs
from ingest_service.store.protocol import Generation, SpoolKey, Watermark

MAX_GENERATIONS = 64
"""Runs that are kept of a spool; what is older counts as not said."""


class Conflict(NamedTuple):
    """A sequence that was committed with another content."""

    sequence: int
    kind: Literal["generation", "content"]
    """By what it was noticed."""


class _Content(NamedTuple):
    """Where the last prediction of a spool is, in the group; its digest is made if it is needed."""

    message: int
    sequence: int


class _Book:
    """What is committed of one spool, with what the group has added so far."""

    def __init__(self, watermark: Watermark) -> None:
        self.generations = list(watermark.generations)
        self.first_digest = watermark.first_digest
        self.last: bytes | _Content | None = watermark.last_digest

    @property
    def current(self) -> str | None:
        return self.generations[-1].id if self.generations else None


class Witness:
    """A comparison of the messages of a group, in order, with those before them and the store.

    Args:
        group: the messages.
        runs: what they claim.
        watermarks: of every spool of the group.

    Attributes:
        conflicts: of the messages that were refuted, so far.
    """

    def __init__(
        self, group: Prepared, runs: Runs, watermarks: Mapping[SpoolKey, Watermark]
    ) -> None:
        self.conflicts: dict[int, Conflict] = {}
        self._group = group
        self._runs = runs
        self._before = watermarks
        self._books = {spool: _Book(mark) for spool, mark in watermarks.items()}

    def refutes(self, message: int, watermark: int) -> bool:
        """Say whether a message claims what was committed with another content; see `conflicts`.

        Args:
            message: its index.
            watermark: the last committed sequence of its spool.
        """
        found = self._conflict(message, watermark)
        if found is not None:
            self.conflicts[message] = found
        return found is not None

    def _conflict(self, message: int, through: int) -> Conflict | None:
        start, end = int(self._runs.start[message]), int(self._runs.start[message + 1])
        if start == end:
            return None
        first, last = int(self._runs.first[start]), int(self._runs.last[end - 1])
        opening = self._group.messages[message].opening
        book = self._books[opening.spool]
        if first > through and opening.generation == book.current:
            return None  # as nearly always
        return _of_generation(book, opening.generation, first, last, through) or (
            self._of_content(book, message, through) if first <= through else None
        )

    def moved(self, message: int, low: int, high: int) -> None:
        """Take note that what a message claims above `low` and up to `high` is new."""
        opening = self._group.messages[message].opening
        book = self._books[opening.spool]
        if opening.generation != book.current:
            book.generations.append(Generation(opening.generation, low))
        if low == 0:
            book.first_digest = self._digest(_Content(message, 1))
        book.last = _Content(message, high)

    def watermark(self, spool: SpoolKey, through: int) -> Watermark:
        """Return what is committed of a spool once the group is."""
        book, before = self._books[spool], self._before[spool]
        if through == before.through:
            return before
        generations = tuple(book.generations)
        if len(generations) > MAX_GENERATIONS:
            generations = (Generation("", 0), *generations[1 - MAX_GENERATIONS :])
        return Watermark(through, book.first_digest, self._digest(book.last), generations)

    def _of_content(self, book: _Book, message: int, through: int) -> Conflict | None:
        for sequence, known in ((1, book.first_digest), (through, book.last)):
            found = None if known is None else self._digest(_Content(message, sequence))
            if found is not None and self._digest(known) not in (None, found):
                return Conflict(sequence, "content")
        return None

    def _digest(self, content: bytes | _Content | None) -> bytes | None:
        """Return the digest of a prediction; None: there is none, as where a gap covers it."""
        if content is None or isinstance(content, bytes):
            return content
        claims = self._group.claims
        first, end = np.searchsorted(claims.message, (content.message, content.message + 1))
        row = first + int(np.searchsorted(claims.sequence[first:end], content.sequence))
        if row == end or claims.sequence[row] != content.sequence:
            return None
        return digest_in(self._group.messages[content.message].payload, int(row - first))


def _of_generation(
    book: _Book, generation: str, first: int, last: int, through: int
) -> Conflict | None:
    """Return what a generation claims of the sequences from `first` to `last` that is not its own.

    Sequences whose generation is not known are nobody's: their content may tell.
    """
    if not generation:
        return None
    end, is_over = through, False
    for run in reversed(book.generations):
        if run.id == generation:
            is_over |= run is not book.generations[-1]
        elif run.id and first <= end and last > run.after:
            return Conflict(max(first, run.after + 1), "generation")
        end = run.after
    # An opening adds to its spool without a pause: where another has followed, it cannot go on.
    return Conflict(through + 1, "generation") if is_over and last > through else None
