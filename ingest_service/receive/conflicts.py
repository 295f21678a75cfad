"""Detection of sequences that are sent again with another content than was committed.

Pure. A conflict is detected in two ways. By the generation: one opening of a spool assigns each
sequence once, so two generations that claim one sequence stand for two predictions. By the content:
digests of the first and of the last committed prediction are compared, for clients that send no
generation.

Not detected: a message of such a client that is below the watermark and contains neither the first
nor the last committed sequence.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from ingest_service.receive.content import digest_in
from ingest_service.receive.group import Prepared
from ingest_service.receive.sequence import Runs
from ingest_service.store.protocol import Generation, SpoolKey, Watermark

MAX_GENERATIONS = 64
"""Maximum number of runs kept for a spool; older ones are merged into one without a generation."""


class Conflict(NamedTuple):
    """A sequence that was committed before with another content."""

    sequence: int
    kind: Literal["generation", "content"]
    """The kind of comparison that detected the conflict."""


class _Content(NamedTuple):
    """The place of a prediction in the group; its digest is computed only if it is needed."""

    message: int
    sequence: int


class _SpoolState:
    """The committed state of a spool, including the messages of the group so far."""

    def __init__(self, watermark: Watermark) -> None:
        self.generations = list(watermark.generations)
        self.first_digest = watermark.first_digest
        self.last: bytes | _Content | None = watermark.last_digest

    @property
    def current(self) -> str | None:
        return self.generations[-1].id if self.generations else None


class ConflictDetector:
    """A detector of conflicts between messages, in order, and what was committed before them.

    Args:
        group: the messages.
        runs: the sequences that they claim.
        watermarks: the watermark of every spool of the group.

    Attributes:
        conflicts: the conflicts found so far, by index of the message.
    """

    def __init__(
        self, group: Prepared, runs: Runs, watermarks: Mapping[SpoolKey, Watermark]
    ) -> None:
        self.conflicts: dict[int, Conflict] = {}
        self._group = group
        self._runs = runs
        self._before = watermarks
        self._states = {spool: _SpoolState(watermark) for spool, watermark in watermarks.items()}

    def has_conflict(self, message: int, watermark: int) -> bool:
        """Return True if a message claims a committed sequence with another content.

        The conflict is then in `conflicts`.

        Args:
            message: its index.
            watermark: the last committed sequence of its spool.
        """
        conflict = self._conflict(message, watermark)
        if conflict is not None:
            self.conflicts[message] = conflict
        return conflict is not None

    def _conflict(self, message: int, through: int) -> Conflict | None:
        start, end = int(self._runs.start[message]), int(self._runs.start[message + 1])
        if start == end:
            return None
        first, last = int(self._runs.first[start]), int(self._runs.last[end - 1])
        opening = self._group.messages[message].opening
        state = self._states[opening.spool]
        if first > through and opening.generation == state.current:
            return None  # the common case
        return _of_generation(state, opening.generation, first, last, through) or (
            self._of_content(state, message, through) if first <= through else None
        )

    def record_new(self, message: int, low: int, high: int) -> None:
        """Record that the sequences after `low` and up to `high` of a message are new."""
        opening = self._group.messages[message].opening
        state = self._states[opening.spool]
        if opening.generation != state.current:
            state.generations.append(Generation(opening.generation, low))
        if low == 0:
            state.first_digest = self._digest(_Content(message, 1))
        state.last = _Content(message, high)

    def watermark(self, spool: SpoolKey, through: int) -> Watermark:
        """Return the watermark of a spool after the commit of the group."""
        state, before = self._states[spool], self._before[spool]
        if through == before.through:
            return before
        generations = tuple(state.generations)
        if len(generations) > MAX_GENERATIONS:
            generations = (Generation("", 0), *generations[1 - MAX_GENERATIONS :])
        return Watermark(through, state.first_digest, self._digest(state.last), generations)

    def _of_content(self, state: _SpoolState, message: int, through: int) -> Conflict | None:
        for sequence, known in ((1, state.first_digest), (through, state.last)):
            digest = None if known is None else self._digest(_Content(message, sequence))
            if digest is not None and self._digest(known) not in (None, digest):
                return Conflict(sequence, "content")
        return None

    def _digest(self, content: bytes | _Content | None) -> bytes | None:
        """Return the digest of a prediction; None: it has none, for example in a gap."""
        if content is None or isinstance(content, bytes):
            return content
        claims = self._group.claims
        first, end = np.searchsorted(claims.message, (content.message, content.message + 1))
        row = first + int(np.searchsorted(claims.sequence[first:end], content.sequence))
        if row == end or claims.sequence[row] != content.sequence:
            return None
        return digest_in(self._group.messages[content.message].payload, int(row - first))


def _of_generation(
    state: _SpoolState, generation: str, first: int, last: int, through: int
) -> Conflict | None:
    """Return the first sequence from `first` to `last` that belongs to another generation.

    Sequences without a known generation do not conflict here: their content is compared instead.
    """
    if not generation:
        return None
    end, is_over = through, False
    for run in reversed(state.generations):
        if run.id == generation:
            is_over |= run is not state.generations[-1]
        elif run.id and first <= end and last > run.after:
            return Conflict(max(first, run.after + 1), "generation")
        end = run.after
    # Openings do not alternate: a generation that another one has followed cannot continue.
    return Conflict(through + 1, "generation") if is_over and last > through else None
