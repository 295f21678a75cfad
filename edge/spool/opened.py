"""The outcome of opening a spool."""

from collections.abc import Sequence
from dataclasses import dataclass

from edge.spool.caps import Lost
from edge.spool.file import SpoolFile


@dataclass(frozen=True, slots=True)
class Opened:
    """A spool file that is open, and what became of the one that was there."""

    file: SpoolFile
    damage: str = ""
    """What was wrong with it. Empty: nothing."""
    lost: Sequence[Lost] = ()
    """What could not be read, by sequence."""
