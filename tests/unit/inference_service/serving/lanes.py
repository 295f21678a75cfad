"""Lanes with requests in them, for the tests of admission."""

from typing import Any

import pytest

from inference_service.serving.admission import Admission, Lane, Ticket
from servicekit.errors import SightlineError


def lane(
    *seconds: float,
    now: float = 0.0,
    max_rows: int = 1,
    max_wait: float = 0.0,
    instances: int | None = None,
) -> Lane:
    """Return a lane whose recent runs of one row took these seconds."""
    created = Lane(max_rows, max_wait, instances)
    for duration in seconds:
        created.estimates.learn(1, duration, now)
    return created


def offer(
    admission: Admission,
    *,
    deadline: float,
    count: int = 1,
    on: Lane | None = None,
    now: float = 0.0,
    rows: int = 1,
) -> list[Ticket]:
    on = on or lane()
    tickets = [Ticket(deadline, on, rows) for _ in range(count)]
    admission.offer(tickets, now)
    return tickets


def refusal(admission: Admission, **offered: Any) -> SightlineError:
    with pytest.raises(SightlineError) as caught:
        offer(admission, **offered)
    return caught.value


def taken(admission: Admission, now: float) -> list[Ticket]:
    return list(admission.take(now).batch)
