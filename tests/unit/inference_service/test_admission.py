"""Who gets a place and who does not, on a clock that the test moves."""

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service.admission import Admission, Estimate, Ticket
from servicekit.errors import SightlineError


def known(*seconds: float, now: float = 0.0) -> Estimate:
    estimate = Estimate()
    for one in seconds:
        estimate.learn(one, now)
    return estimate


def offer(
    admission: Admission,
    *,
    deadline: float,
    count: int = 1,
    estimate: Estimate | None = None,
    now: float = 0.0,
) -> list[Ticket]:
    tickets = [Ticket(deadline) for _ in range(count)]
    admission.offer(tickets, estimate or Estimate(), now)
    return tickets


def refusal(admission: Admission, **offered: float | Estimate) -> SightlineError:
    with pytest.raises(SightlineError) as caught:
        offer(admission, **offered)  # type: ignore[arg-type]
    return caught.value


def test_nothing_is_known_at_first() -> None:
    assert (Estimate().mean(0), Estimate().p95(0)) == (0, 0)


def test_mean_and_p95_of_the_latest_runs() -> None:
    estimate = known(*(number / 100 for number in range(1, 101)))
    assert estimate.mean(0) == pytest.approx(0.505)
    assert estimate.p95(0) == pytest.approx(0.95)
    for _ in range(100):
        estimate.learn(7.0, 0)
    assert (estimate.mean(0), estimate.p95(0)) == (7.0, 7.0)


def test_p95_of_few_runs_is_the_slowest() -> None:
    assert known(1.0, 3.0, 2.0).p95(0) == 3.0


def test_old_runs_are_forgotten_so_that_one_slow_spell_does_not_refuse_for_ever() -> None:
    estimate = known(9.0)
    admission = Admission(workers=1, queue_size=4)
    error = refusal(admission, deadline=31.0, estimate=estimate, now=30.0)
    assert error.reason == "DEADLINE_TOO_SHORT"
    assert offer(admission, deadline=31.1, estimate=estimate, now=30.1)


def test_pictures_are_taken_in_the_order_of_arrival_as_workers_are_free() -> None:
    admission = Admission(workers=2, queue_size=4)
    a, b, c = (offer(admission, deadline=100.0 - n)[0] for n in range(3))
    assert admission.take(1.0) == (a, [])
    assert admission.take(1.0) == (b, [])
    assert admission.take(1.0) == (None, [])
    admission.done(b)
    assert admission.take(2.0) == (c, [])


def test_the_queue_is_bounded_and_says_when_to_come_back() -> None:
    admission = Admission(workers=1, queue_size=2)
    offer(admission, deadline=100, estimate=known(2.0))
    admission.take(0)
    offer(admission, deadline=100, estimate=known(2.0), count=2)
    error = refusal(admission, deadline=100, estimate=known(2.0))
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.reason == "QUEUE_FULL"
    assert error.retry_after == pytest.approx(6.0)


def test_a_refusal_without_an_estimate_still_says_when_to_come_back() -> None:
    admission = Admission(workers=1, queue_size=1)
    offer(admission, deadline=100)
    assert (refusal(admission, deadline=100).retry_after or 0) > 0


def test_a_request_is_admitted_whole_or_not_at_all() -> None:
    admission = Admission(workers=1, queue_size=3)
    offer(admission, deadline=100, count=2)
    assert refusal(admission, deadline=100, count=2).reason == "QUEUE_FULL"
    assert offer(admission, deadline=100, count=1)


def test_a_deadline_that_an_idle_model_would_miss() -> None:
    admission = Admission(workers=1, queue_size=4)
    error = refusal(admission, deadline=0.5, estimate=known(0.5))
    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.reason == "DEADLINE_TOO_SHORT"
    assert offer(admission, deadline=0.51, estimate=known(0.5))


def test_a_deadline_that_is_over() -> None:
    error = refusal(Admission(workers=1, queue_size=4), deadline=5.0, now=5.0)
    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_the_queue_counts_against_the_deadline() -> None:
    admission = Admission(workers=1, queue_size=4)
    offer(admission, deadline=100, estimate=known(2.0), count=2)
    admission.take(0)
    # At 1.0: 1 s of the running one, 2 s of the waiting one, 2 s of its own.
    error = refusal(admission, deadline=6.0, estimate=known(2.0), now=1.0)
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.reason == "QUEUE_TOO_SLOW"
    assert error.retry_after == pytest.approx(0.05)
    assert offer(admission, deadline=6.01, estimate=known(2.0), now=1.0)


def test_when_to_come_back_is_when_the_queue_will_be_short_enough() -> None:
    admission = Admission(workers=1, queue_size=4)
    offer(admission, deadline=100, estimate=known(2.0), count=3)
    error = refusal(admission, deadline=5.0, estimate=known(2.0))
    assert error.retry_after == pytest.approx(3.0)


def test_workers_share_the_queue() -> None:
    admission = Admission(workers=2, queue_size=8)
    offer(admission, deadline=100, estimate=known(2.0), count=4)
    assert refusal(admission, deadline=6.0, estimate=known(2.0)).reason == "QUEUE_TOO_SLOW"
    assert offer(admission, deadline=6.01, estimate=known(2.0))


def test_a_free_worker_means_no_wait() -> None:
    admission = Admission(workers=2, queue_size=8)
    offer(admission, deadline=100, estimate=known(2.0))
    assert offer(admission, deadline=2.01, estimate=known(2.0))


def test_a_busy_worker_means_the_rest_of_its_run() -> None:
    admission = Admission(workers=1, queue_size=8)
    offer(admission, deadline=100, estimate=known(2.0))
    admission.take(0)
    refused = refusal(admission, deadline=3.5, estimate=known(2.0), now=0.5)
    assert refused.reason == "QUEUE_TOO_SLOW"
    assert offer(admission, deadline=4.1, estimate=known(2.0), now=0.5)


def test_a_request_of_many_pictures_needs_more_time() -> None:
    admission = Admission(workers=2, queue_size=8)
    # Two rounds before the last pictures, which may take long.
    estimate = known(1.0)
    assert refusal(admission, deadline=3.0, estimate=estimate, count=5).code.name == (
        "DEADLINE_EXCEEDED"
    )
    assert offer(admission, deadline=3.01, estimate=estimate, count=5)


def test_what_can_no_longer_be_in_time_costs_nothing() -> None:
    admission = Admission(workers=1, queue_size=8)
    offer(admission, deadline=100)
    admission.take(0)
    running = next(iter(admission._running))
    (late,) = offer(admission, deadline=10)
    (hopeless,) = offer(admission, deadline=12, estimate=known(1.5))
    (fine,) = offer(admission, deadline=100, estimate=known(1.5))
    admission.done(running)
    assert admission.take(11) == (fine, [late, hopeless])


def test_what_is_withdrawn_is_not_run() -> None:
    admission = Admission(workers=1, queue_size=8)
    first, second = offer(admission, deadline=100, count=2)
    assert admission.withdraw(first)
    assert admission.take(0) == (second, [])
    assert not admission.withdraw(second)  # too late: it runs
    admission.done(second)


@given(st.data())
def test_workers_and_queue_keep_their_bounds(data: st.DataObject) -> None:
    workers, size = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    admission = Admission(workers=workers, queue_size=size)
    now, running, given_places, ended = 0.0, [], 0, 0
    for _ in range(data.draw(st.integers(1, 40))):
        now += data.draw(st.floats(0, 3))
        action = data.draw(st.sampled_from(["offer", "take", "done"]))
        if action == "offer":
            count = data.draw(st.integers(1, 3))
            deadline = now + data.draw(st.floats(-1, 9))
            estimate = known(data.draw(st.floats(0.01, 3)), now=now)
            try:
                offer(admission, deadline=deadline, count=count, estimate=estimate, now=now)
            except SightlineError:
                continue
            given_places += count
        elif action == "take":
            ticket, late = admission.take(now)
            ended += len(late)
            if ticket:
                assert ticket.deadline > now
                running.append(ticket)
        elif running:
            admission.done(running.pop())
            ended += 1
        assert len(admission._waiting) <= size
        assert len(running) <= workers
        assert given_places == ended + len(running) + len(admission._waiting)
