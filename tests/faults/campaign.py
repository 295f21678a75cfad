"""What a campaign of faults did to the log, for the table at the end of a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Campaign:
    """The auditor's verdict over all runs of one kind of fault."""

    name: str
    """The fault, such as `SIGKILL of the node`."""
    runs: int
    """How often the fault was tried."""
    lost: int
    """Predictions that were spooled and are not in the store."""
    doubled: int
    """Predictions that are in the store more than once."""
    undeclared: int
    """Sequences that are neither a row nor rejected nor in a gap."""
    note: str = ""
    """What else is worth a line, such as how many predictions there were."""

    @property
    def clean(self) -> bool:
        """Whether the log kept its word."""
        return not (self.lost or self.doubled or self.undeclared)
