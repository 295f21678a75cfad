"""Tickets of queued members: caller, lane, deadline and estimated cost. Pure data."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from inference_service.serving.estimates import Estimates


@dataclass(frozen=True, slots=True, eq=False)
class Lane:
    """Batching parameters and estimates of one loaded model."""

    max_rows: int = 1
    """Maximum rows of one run, >= 1; 1: no batches."""
    max_wait: float = 0.0
    """Time that an incomplete batch waits for more rows, s, >= 0."""
    instances: int | None = None
    """Maximum concurrent runs, >= 1; None: the number of workers."""
    estimates: Estimates = field(default_factory=Estimates)


@dataclass(frozen=True, slots=True)
class Share:
    """The caller of some work, and its share of the workers."""

    flow: str = ""
    """Key of the caller, from `servicekit.auth.caller.Caller.flow`."""
    weight: float = 1.0
    """Above 0; under load a caller of weight 2 gets twice the time of one of weight 1."""


@dataclass(slots=True, eq=False)
class Ticket:
    """The ticket of one member, in the queue and then in a run."""

    deadline: float
    """Time at which the response must be sent, on the clock of `now`."""
    lane: Lane
    rows: int = 1
    """Rows of its input, >= 1."""
    share: Share = field(default_factory=Share)
    effort: int = 0
    """Pixels of the image to decode; 0 if there is none."""
    arrived: float = 0.0
    """Time of its admission."""
    cost: float = 0.0
    """Estimated worker seconds: its share of a full batch; 0 if not known."""
    alone: float = 0.0
    """Estimated seconds of a run of it alone; 0 if not known, or if it is a probe."""
    request: "Sequence[Ticket]" = ()
    """All members of its request."""
    begun: bool = False
    """True once its run has started."""
