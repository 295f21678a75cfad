"""The lineage of a spool: the openings that assigned its sequences, compared between two copies.

A spool that is copied or restored from a backup assigns sequences that its other copy has used for
other predictions. So each opening that adds to a spool gets a random UUID, its generation, and
assigns each sequence once. A lineage lists the openings with the sequence after which each began.
Two lineages agree up to the last opening that both contain, and within it up to the shorter of the
two. The server keeps the lineage of the predictions it has committed; a node compares its own.

The module is pure: it uses no clock, socket or file.
"""

import uuid
from collections.abc import Sequence
from typing import NamedTuple

MAX_OPENINGS = 32
"""Number of openings that a spool keeps. Older openings are dropped once they are committed."""


class SpoolOpening(NamedTuple):
    """A run of sequences that were assigned in one opening of a spool."""

    generation: str
    """A UUID. Empty: not known."""
    after: int
    """The run begins after this sequence and ends where the next run begins."""


class Agreement(NamedTuple):
    """The result of comparing two lineages."""

    through: int
    """Both have the same predictions up to and including this sequence."""
    is_overrun: bool = False
    """True if the other side has more entries of the last common opening."""
    is_lower_bound: bool = False
    """True if they may agree further, since one side does not know all of its openings."""


Lineage = tuple[SpoolOpening, ...]
"""Openings, oldest first. Those before the first are not known."""


def opening_at(lineage: Lineage, sequence: int) -> tuple[str, int | None]:
    """Return the generation of a sequence and the last sequence of its run.

    The generation is empty if it is not known. The last sequence is None for the latest run.
    """
    end: int | None = None
    for opening in reversed(lineage):
        if opening.after < sequence:
            return opening.generation, end
        end = opening.after
    return "", end


def begun(lineage: Lineage, generation: str, last: int, acknowledged: int) -> Lineage:
    """Return the lineage with a new opening appended.

    Args:
        lineage: the lineage so far.
        generation: generation of the new opening.
        last: the last sequence that was assigned.
        acknowledged: the last sequence up to which the server has committed all.
    """
    kept = [opening for opening in lineage if opening.after < last]  # drop one that assigned none
    while len(kept) >= MAX_OPENINGS and kept[1].after <= acknowledged:
        del kept[0]
    return (*kept, SpoolOpening(generation, last))


def shifted(lineage: Lineage, by: int, unknown: str) -> Lineage:
    """Return the lineage of the sequences after `by`, renumbered to start at 1.

    Args:
        lineage: the old lineage.
        by: the last sequence before the first that is kept.
        unknown: generation for sequences that the old lineage does not cover.
    """
    begun_before = sum(opening.after <= by for opening in lineage)  # the last one extends beyond it
    kept = lineage[max(0, begun_before - 1) :]
    openings = [SpoolOpening(opening.generation, max(0, opening.after - by)) for opening in kept]
    if not openings or openings[0].after:
        openings.insert(0, SpoolOpening(unknown, 0))
    return tuple(openings)


def derived_id(spool_id: str, lineage: Lineage, shift: int) -> uuid.UUID:
    """Return the new spool_id of predictions that move to another spool, the same in each copy.

    Args:
        spool_id: their old spool_id.
        lineage: their lineage, as returned by `shifted`.
        shift: the sequence before the first of them.
    """
    return uuid.uuid5(uuid.UUID(spool_id), f"{lineage[0].generation} {shift}")


def is_full(lineage: Lineage, acknowledged: int) -> bool:
    """Return True if adding an opening would drop one with pending predictions."""
    return len(lineage) >= MAX_OPENINGS and lineage[1].after > acknowledged


def agreement(
    lineage: Lineage, root: str, last: int, committed: Sequence[SpoolOpening], watermark: int
) -> Agreement | None:
    """Return the sequence up to which the server has committed what this spool has, or had.

    Args:
        lineage: the lineage of the spool.
        root: generation of the entries spooled before lineages existed. A server that predates
            lineages reports it as unknown.
        last: the last sequence of the spool.
        committed: the server's lineage of the spool.
        watermark: the server's last committed sequence.

    Returns:
        An agreement of at most `watermark`. None: one side does not know the opening in which the
        last committed sequence was spooled.
    """
    if not lineage or not committed or not committed[-1].generation:
        return None
    own_ends = _ends(lineage, last)
    for opening, end in zip(reversed(committed), _ends_reversed(committed, watermark), strict=True):
        if opening.generation in own_ends:
            own = own_ends[opening.generation]
            return Agreement(min(end, own), end > own)
    unknown = 0 if committed[0].generation else _ends(committed, watermark)[""]
    is_lower_bound = bool(unknown or lineage[0].after)
    return Agreement(min(unknown, own_ends.get(root, 0)), is_lower_bound=is_lower_bound)


def _ends(lineage: Sequence[SpoolOpening], last: int) -> dict[str, int]:
    """Return the end of the run of each generation; for several runs, that of the first."""
    ends: dict[str, int] = {}
    for opening, following in zip(lineage, [*lineage[1:], SpoolOpening("", last)], strict=True):
        ends.setdefault(opening.generation, following.after)
    return ends


def _ends_reversed(lineage: Sequence[SpoolOpening], last: int) -> list[int]:
    return [last, *(opening.after for opening in reversed(lineage[1:]))]
