"""The results of fault campaigns, for the table at the end of a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Campaign:
    """The auditor's verdict over all runs of one kind of fault."""

    name: str
    """The fault, such as `SIGKILL of the node`."""
    runs: int
    """Number of times the fault was tried."""
    lost: int
    """Spooled predictions that are not in the store."""
    doubled: int
    """Predictions that are in the store more than once."""
    undeclared: int
    """Sequences that belong to no row, rejection or gap."""
    note: str = ""
    """Remark, such as the number of predictions."""

    @property
    def clean(self) -> bool:
        """True if nothing was lost, doubled or undeclared."""
        return not (self.lost or self.doubled or self.undeclared)
