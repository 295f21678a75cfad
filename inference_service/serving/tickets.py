"""Places in the queue: whose they are, on which model, until when. Pure data."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from inference_service.serving.estimates import Estimates


@dataclass(frozen=True, slots=True, eq=False)
class Lane:
    """How one loaded model is run."""

    max_rows: int = 1
    """Rows of one run at most, >= 1; 1: members are run singly."""
    max_wait: float = 0.0
    """Seconds that a batch that is not full waits for more, >= 0."""
    instances: int | None = None
    """Runs at a time at most, >= 1; None: as many as there are workers."""
    estimates: Estimates = field(default_factory=Estimates)


@dataclass(frozen=True, slots=True)
class Share:
    """Whose work something is, and how much of the workers that caller gets beside others."""

    flow: str = ""
    """Key of the caller, as `servicekit.auth.caller.Caller.flow`."""
    weight: float = 1.0
    """Above 0: a caller of weight 2 gets twice what one of weight 1 gets, if both want it."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One member's place, first in the queue and then in a run."""

    deadline: float
    """When the answer must be out, on the clock of `now`."""
    lane: Lane
    rows: int = 1
    """Of its input, >= 1."""
    share: Share = field(default_factory=Share)
    effort: int = 0
    """Pixels of the picture that is to be decoded; 0: there is none."""
    arrived: float = 0.0
    """When it was admitted."""
    cost: float = 0.0
    """Seconds of a worker that it is expected to take, its share of a full batch; 0: not known."""
    alone: float = 0.0
    """Seconds that a run of it alone is expected to take; 0: not known, or it is only tried."""
    request: "Sequence[Ticket]" = ()
    """All members of its request."""
    begun: bool = False
    """True once a worker has taken it."""
