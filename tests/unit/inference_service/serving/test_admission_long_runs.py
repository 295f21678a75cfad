"""Admission of short runs beside long ones."""

import pytest

from inference_service.serving.admission import Admission, Dispatch, Share, Ticket
from servicekit.errors import SightlineError
from tests.unit.inference_service.serving.lanes import lane, offer, refusal, taken


def long_run(admission: Admission, seconds: float = 2.0) -> list[Ticket]:
    """Return the run of another caller that has taken a worker."""
    (ticket,) = created = [Ticket(100.0, lane(seconds), share=Share("flood"))]
    admission.offer(created, 0.0)
    assert taken(admission, 0.0) == [ticket]
    return created


def short_run(admission: Admission, deadline: float, seconds: float = 0.1) -> Ticket:
    """Return what a caller has asked for that has a short run, at 0 s."""
    (ticket,) = created = [Ticket(deadline, lane(seconds), share=Share("good"))]
    admission.offer(created, 0.0)
    return ticket


def test_a_short_run_that_would_be_late_begins_beside_a_long_one() -> None:
    admission = Admission(workers=1, queue_size=8)
    running = long_run(admission)
    short = short_run(admission, deadline=1.0)
    assert admission.take(0.0) == Dispatch((short,))
    assert admission.running == 2
    # One at a time beside each long one.
    following = short_run(admission, deadline=1.0)
    assert admission.take(0.0) == Dispatch()
    admission.done([short], 0.1)
    assert admission.take(0.1) == Dispatch((following,))
    admission.done([following], 0.1)
    admission.done(running, 2.0)


def test_a_short_run_waits_where_it_can() -> None:
    admission = Admission(workers=1, queue_size=8)
    running = long_run(admission)
    patient = short_run(admission, deadline=10.0)
    taken_now = admission.take(0.0)
    assert not taken_now.batch
    assert taken_now.wake_at == pytest.approx(4.95)  # half of what it can spare
    admission.done(running, 2.0)
    assert admission.take(2.0) == Dispatch((patient,))


def test_a_run_that_is_not_much_shorter_waits() -> None:
    admission = Admission(workers=1, queue_size=8)
    long_run(admission)
    short_run(admission, deadline=3.0, seconds=0.51)
    assert admission.take(0.0) == Dispatch()
    error = refusal(admission, deadline=2.0, on=lane(0.51))
    assert error.reason == "QUEUE_TOO_SLOW"


def test_who_had_its_share_does_not_pass() -> None:
    """Of each caller that waits, one run is passed; then it is that caller's turn."""
    admission = Admission(workers=1, queue_size=20)
    long_run(admission)
    admission.offer([Ticket(100.0, lane(2.0), share=Share("flood")) for _ in range(2)], 0.0)
    passed: list[Ticket] = []

    def pass_on() -> None:
        for _ in range(100):
            passed.append(short_run(admission, deadline=0.9))
            assert admission.take(0.0) == Dispatch((passed[-1],))
            admission.done(passed[-1:], 0.1)

    with pytest.raises(SightlineError, match="QUEUE_TOO_SLOW"):
        pass_on()
    assert 15 <= len(passed) <= 45, "as much as a run of the other caller, about"


def test_who_is_charged_twice_for_a_run_pays_once() -> None:
    """For what it is expected to take, and in place of that for what it takes."""
    admission = Admission(workers=1, queue_size=8)
    on = lane(0.0005)
    for number in range(20):
        first, second = ([Ticket(100.0, on, share=Share(name))] for name in ("one", "other"))
        admission.offer(first, number)
        admission.offer(second, number)
        for _ in range(2):
            admission.done(taken(admission, number), 0.0005)
    duration, other = admission._queue._idle.values()
    assert duration == pytest.approx(other, abs=0.0011)
    assert duration == pytest.approx(20 * 0.0005, abs=0.0021)


def test_a_check_puts_nothing_into_the_queue() -> None:
    admission = Admission(workers=1, queue_size=4)
    tickets = [Ticket(10.0, lane(0.1)) for _ in range(4)]
    assert not admission.check(tickets, 0.0)
    assert admission.depth == 0
    offer(admission, deadline=100.0, count=4)
    with pytest.raises(SightlineError, match="QUEUE_FULL"):
        admission.check(tickets, 0.0)


def test_a_run_of_which_nothing_was_known_is_long_once_it_has_taken_long() -> None:
    admission = Admission(workers=1, queue_size=8)
    unknown = [Ticket(100.0, lane(), share=Share("flood"))]
    admission.offer(unknown, 0.0)
    assert taken(admission, 0.0) == unknown
    short = [Ticket(2.0, lane(0.1, now=1.0), share=Share("good"))]
    admission.offer(short, 1.0)
    assert admission.take(1.0) == Dispatch(tuple(short))
