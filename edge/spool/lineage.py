"""Which opening of a spool gave out which sequences, and how far two copies of it agree.

A spool that is copied, or put back from a backup, gives out sequences again that its other copy has
used for other predictions. So each opening that adds to a spool has a random name, its generation,
and gives out each sequence once. A lineage lists the openings with the sequence after which each
began: two lineages agree as far as the last opening that both have, and in it as far as the shorter
of the two. The server keeps the lineage of what it has committed, and a node compares its own.

Pure: no clock, socket or file.
"""

import uuid
from collections.abc import Sequence
from typing import NamedTuple

MAX_OPENINGS = 32
"""Openings that a spool keeps; what is older and committed is forgotten."""


class SpoolOpening(NamedTuple):
    """A run of sequences that were given out in one opening of a spool."""

    generation: str
    """A UUID. Empty: not said."""
    after: int
    """The run begins after this sequence, and ends where the next run begins."""


class Agreement(NamedTuple):
    """Result of comparing two lineages."""

    through: int
    """Up to this sequence both have the same predictions."""
    is_overrun: bool = False
    """The other one has more of the last opening that both have."""
    is_lower_bound: bool = False
    """They may agree further: one side does not know all of its openings."""


Lineage = tuple[SpoolOpening, ...]
"""Oldest first. What comes before the first is not known."""


def opening_at(lineage: Lineage, sequence: int) -> tuple[str, int | None]:
    """Return the generation of a sequence, and the last sequence of its run (None: it is open).

    Where the generation is not known it is empty.
    """
    end: int | None = None
    for opening in reversed(lineage):
        if opening.after < sequence:
            return opening.generation, end
        end = opening.after
    return "", end


def begun(lineage: Lineage, generation: str, last: int, acknowledged: int) -> Lineage:
    """Return the lineage when a new opening begins.

    Args:
        lineage: so far.
        generation: of the new opening.
        last: the last sequence that was given out.
        acknowledged: up to where the server has confirmed all.
    """
    kept = [one for one in lineage if one.after < last]  # an opening that gave out nothing was none
    while len(kept) >= MAX_OPENINGS and kept[1].after <= acknowledged:
        del kept[0]
    return (*kept, SpoolOpening(generation, last))


def shifted(lineage: Lineage, by: int, unknown: str) -> Lineage:
    """Return the lineage of what comes after a sequence, where that counts from 1.

    Args:
        lineage: before.
        by: the sequence.
        unknown: the generation of what is not in the lineage.
    """
    past = sum(opening.after <= by for opening in lineage)  # the last of these reaches beyond it
    left = lineage[max(0, past - 1) :]
    found = [SpoolOpening(opening.generation, max(0, opening.after - by)) for opening in left]
    if not found or found[0].after:
        found.insert(0, SpoolOpening(unknown, 0))
    return tuple(found)


def derived_id(spool_id: str, lineage: Lineage, shift: int) -> uuid.UUID:
    """Return the spool_id of predictions that must leave theirs, the same in each copy of them.

    Args:
        spool_id: which they leave.
        lineage: of them, `shifted`.
        shift: the sequence before the first of them.
    """
    return uuid.uuid5(uuid.UUID(spool_id), f"{lineage[0].generation} {shift}")


def is_full(lineage: Lineage, acknowledged: int) -> bool:
    """Say whether no opening can be added without forgetting one whose predictions wait."""
    return len(lineage) >= MAX_OPENINGS and lineage[1].after > acknowledged


def agreement(
    lineage: Lineage, root: str, last: int, committed: Sequence[SpoolOpening], watermark: int
) -> Agreement | None:
    """Return up to where what the server has committed is what this spool has, or had.

    Args:
        lineage: of the spool.
        root: the generation of what was spooled before lineages were kept, which a server that did
            not keep them either calls not said.
        last: the last sequence of the spool.
        committed: the server's lineage of the spool.
        watermark: its last committed sequence.

    Returns:
        At most `watermark`. None: nothing tells, because one side does not know in which opening
        the last committed sequence was spooled.
    """
    if not lineage or not committed or not committed[-1].generation:
        return None
    own_ends = _ends(lineage, last)
    for opening, end in zip(reversed(committed), _ends_reversed(committed, watermark), strict=True):
        if opening.generation in own_ends:
            own = own_ends[opening.generation]
            return Agreement(min(end, own), end > own)
    unsaid = 0 if committed[0].generation else _ends(committed, watermark)[""]
    is_lower_bound = bool(unsaid or lineage[0].after)
    return Agreement(min(unsaid, own_ends.get(root, 0)), is_lower_bound=is_lower_bound)


def _ends(lineage: Sequence[SpoolOpening], last: int) -> dict[str, int]:
    """Return where the run of each generation ends; of one with several, the first."""
    ends: dict[str, int] = {}
    for opening, following in zip(lineage, [*lineage[1:], SpoolOpening("", last)], strict=True):
        ends.setdefault(opening.generation, following.after)
    return ends


def _ends_reversed(lineage: Sequence[SpoolOpening], last: int) -> list[int]:
    return [last, *(opening.after for opening in reversed(lineage[1:]))]
