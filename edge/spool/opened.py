"""The outcome of opening a spool."""

from collections.abc import Sequence
from dataclasses import dataclass

from edge.spool.caps import Lost
from edge.spool.file import SpoolFile


@dataclass(frozen=True, slots=True)
class Opened:
    """An open spool file, with the outcome of recovery if the previous file was damaged."""

    file: SpoolFile
    damage: str = ""
    """The damage of the previous file. Empty: none."""
    lost: Sequence[Lost] = ()
    """The runs that could not be read, by sequence."""
