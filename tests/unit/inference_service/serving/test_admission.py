"""Admission and refusal of requests, on a clock that the test moves."""

import contextlib
import heapq
import math

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service.serving.admission import Admission, Dispatch, Lane, Ticket
from servicekit.errors import SightlineError
from tests.unit.inference_service.serving.lanes import lane, offer, refusal, taken


def test_the_earliest_deadline_is_taken_first_as_workers_are_free() -> None:
    admission = Admission(workers=2, queue_size=4)
    c, b, a = (offer(admission, deadline=100.0 - n)[0] for n in range(3))
    assert taken(admission, 1.0) == [a]
    assert taken(admission, 1.0) == [b]
    assert admission.take(1.0) == Dispatch()
    admission.done([b])
    assert taken(admission, 2.0) == [c]


def test_one_deadline_is_taken_in_the_order_of_arrival() -> None:
    admission = Admission(workers=9, queue_size=9)
    tickets = [offer(admission, deadline=9.0)[0] for _ in range(4)]
    assert [taken(admission, 1.0)[0] for _ in range(4)] == tickets


def test_the_queue_is_bounded_and_says_when_to_come_back() -> None:
    admission = Admission(workers=1, queue_size=2)
    offer(admission, deadline=100, on=lane(2.0))
    admission.take(0)
    offer(admission, deadline=100, on=lane(2.0), count=2)
    error = refusal(admission, deadline=100, on=lane(2.0))
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.reason == "QUEUE_FULL"
    assert error.retry_after == pytest.approx(6.0)


def test_the_queue_counts_rows() -> None:
    admission, on = Admission(workers=1, queue_size=4), lane(max_rows=4)
    offer(admission, deadline=100, on=on, rows=3)
    assert admission.depth == 3
    assert refusal(admission, deadline=100, on=on, rows=2).reason == "QUEUE_FULL"
    assert offer(admission, deadline=100, on=on)


def test_a_refusal_without_an_estimate_still_says_when_to_come_back() -> None:
    admission = Admission(workers=1, queue_size=1)
    offer(admission, deadline=100)
    assert (refusal(admission, deadline=100).retry_after or 0) > 0


def test_a_request_is_admitted_whole_or_not_at_all() -> None:
    admission = Admission(workers=1, queue_size=3)
    offer(admission, deadline=100, count=2)
    assert refusal(admission, deadline=100, count=2).reason == "QUEUE_FULL"
    assert offer(admission, deadline=100, count=1)


def busy_with(on: Lane, workers: int = 1) -> Admission:
    """Return an admission with one run of the lane and one free worker."""
    admission = Admission(workers=workers + 1, queue_size=8)
    offer(admission, deadline=1000, on=on)
    admission.take(0.0)
    return admission


def test_a_deadline_that_even_an_idle_model_would_miss_may_be_tried_later() -> None:
    admission = busy_with(lane(0.5))
    on = next(iter(admission._runs))
    error = refusal(admission, deadline=0.4, on=on)
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.reason == "DEADLINE_TOO_SHORT"
    assert error.retryable
    assert error.retry_after == pytest.approx(0.25)  # when the run is through, over two workers
    assert offer(admission, deadline=0.51, on=on)


def test_a_deadline_that_is_over() -> None:
    error = refusal(Admission(workers=1, queue_size=4), deadline=5.0, now=5.0)
    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not error.retryable


def test_an_idle_lane_tries_what_it_is_not_expected_to_do() -> None:
    """Item 5: what is known may be wrong, and is only corrected by a run."""
    admission, on = Admission(workers=2, queue_size=8), lane(5.0)
    tried = offer(admission, deadline=1.5, on=on, now=1.0)
    assert taken(admission, 1.0) == tried  # it is not late before it has begun
    assert refusal(admission, deadline=1.5, on=on, now=1.0).reason == "DEADLINE_TOO_SHORT"
    admission.done(tried)
    assert taken(admission, 1.1) == []
    assert offer(admission, deadline=1.5, on=on, now=1.1)
    assert refusal(admission, deadline=1.5, on=on, now=1.1).reason == "DEADLINE_TOO_SHORT"


def test_another_lane_s_work_keeps_no_idle_lane_from_trying() -> None:
    admission, on = busy_with(lane(0.5)), lane(5.0)
    tried = offer(admission, deadline=1.5, on=on)
    assert taken(admission, 0.0) == tried


def test_the_queue_counts_against_the_deadline() -> None:
    admission, on = Admission(workers=1, queue_size=4), lane(2.0)
    offer(admission, deadline=5, on=on, count=2)
    taken(admission, 0)
    # At 1.0: 1 s of the running one, 2 s of the waiting one, 2 s of its own.
    error = refusal(admission, deadline=6.0, on=on, now=1.0)
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.reason == "QUEUE_TOO_SLOW"
    assert error.retry_after == pytest.approx(0.05)
    assert offer(admission, deadline=6.01, on=on, now=1.0)


def test_when_to_come_back_is_when_the_queue_will_be_short_enough() -> None:
    admission, on = Admission(workers=1, queue_size=4), lane(1.0)
    offer(admission, deadline=3.5, on=on, count=3)
    error = refusal(admission, deadline=3.6, on=on)
    assert error.retry_after == pytest.approx(0.4)


def test_workers_share_the_queue() -> None:
    admission, on = Admission(workers=2, queue_size=8), lane(2.0)
    offer(admission, deadline=5.9, on=on, count=4)
    assert refusal(admission, deadline=6.0, on=on).reason == "QUEUE_TOO_SLOW"
    assert offer(admission, deadline=6.01, on=on)


def test_only_what_goes_first_counts_against_the_deadline() -> None:
    admission, on = Admission(workers=1, queue_size=8), lane(1.0)
    (later,) = offer(admission, deadline=100, on=on)
    (sooner,) = offer(admission, deadline=1.5, on=on)
    assert taken(admission, 0) == [sooner]
    admission.done([sooner])
    assert taken(admission, 1) == [later]


def test_who_is_promised_an_answer_is_not_made_late_by_who_is_in_more_of_a_hurry() -> None:
    admission, on = Admission(workers=1, queue_size=8), lane(1.0)
    offer(admission, deadline=2.5, on=on)
    offer(admission, deadline=2.7, on=on)
    error = refusal(admission, deadline=2.4, on=on)
    assert error.reason == "QUEUE_TOO_SLOW"
    assert "other requests" in error.message
    assert error.retry_after == pytest.approx(0.3)  # 2.5 has 1.5 s to spare, 2.7 only 0.7
    assert offer(admission, deadline=4.0, on=on)


def test_who_is_late_anyhow_holds_up_nobody() -> None:
    admission, on = Admission(workers=1, queue_size=8), lane(1.0)
    offer(admission, deadline=1.5, on=on)
    assert offer(admission, deadline=1.7, on=on, now=0.6)  # the first began too late


def test_a_batch_is_what_waits_for_the_same_model() -> None:
    admission = Admission(workers=1, queue_size=8)
    batched, other = lane(max_rows=3), lane()
    first = offer(admission, deadline=9, on=batched)
    offer(admission, deadline=10, on=other)
    more = offer(admission, deadline=11, on=batched, count=3)
    assert taken(admission, 0) == [*first, *more[:2]]
    admission.done([*first, *more[:2]])
    assert taken(admission, 0)[0].lane is other


def test_a_batch_counts_rows() -> None:
    admission, on = Admission(workers=2, queue_size=8), lane(max_rows=4)
    three = offer(admission, deadline=9, on=on, rows=3)
    two = offer(admission, deadline=9, on=on, rows=2)
    assert taken(admission, 0) == three
    assert taken(admission, 0) == two


def test_what_is_larger_than_a_batch_is_one_of_its_own() -> None:
    admission, on = Admission(workers=2, queue_size=8), lane(max_rows=4)
    large = offer(admission, deadline=9, on=on, rows=7)
    offer(admission, deadline=9, on=on)
    assert taken(admission, 0) == large


def test_a_batch_that_is_not_full_waits_for_more_but_not_for_long() -> None:
    admission, on = Admission(workers=1, queue_size=8), lane(max_rows=3, max_wait=0.5)
    first = offer(admission, deadline=9, on=on, now=1.0)
    assert admission.take(1.0) == Dispatch(wake_at=1.5)
    second = offer(admission, deadline=9, on=on, now=1.2)
    assert admission.take(1.2) == Dispatch(wake_at=1.5)
    assert taken(admission, 1.5) == [*first, *second]
    admission.done([*first, *second])
    offer(admission, deadline=9, on=on, count=3, now=2.0)
    assert len(taken(admission, 2.0)) == 3  # full: at once


def test_no_batch_waits_past_what_a_member_can_spare() -> None:
    admission, on = Admission(workers=1, queue_size=8), lane(0.1, max_rows=4, max_wait=5.0)
    offer(admission, deadline=1.0, on=on)
    assert admission.take(0.0).wake_at == pytest.approx(0.6)  # four take 0.4 s, as far as is known
    assert len(taken(admission, 0.6)) == 1


def test_company_that_would_make_the_first_one_late_is_left_out() -> None:
    admission, on = Admission(workers=1, queue_size=8), lane(0.1, max_rows=4)
    first = offer(admission, deadline=0.35, on=on)
    offer(admission, deadline=9, on=on, count=3)
    batch = taken(admission, 0.0)
    assert batch[0] is first[0]
    assert len(batch) == 2


def test_a_batch_that_waits_keeps_no_worker_from_another_model() -> None:
    admission = Admission(workers=1, queue_size=8)
    offer(admission, deadline=9, on=lane(max_rows=3, max_wait=0.5))
    other = offer(admission, deadline=10)
    assert taken(admission, 0.0) == other


def test_a_model_is_run_by_as_many_workers_as_help_it() -> None:
    admission, on = Admission(workers=3, queue_size=8), lane(instances=1)
    first = offer(admission, deadline=9, on=on, count=2)
    other = offer(admission, deadline=10)
    assert taken(admission, 0.0) == first[:1]
    assert taken(admission, 0.0) == other
    assert taken(admission, 0.0) == []
    admission.done(first[:1])
    assert taken(admission, 0.0) == first[1:]


def test_nothing_is_kept_of_models_that_are_gone() -> None:
    admission = Admission(workers=1, queue_size=8)
    offer(admission, deadline=9)
    admission.done(taken(admission, 0.0))
    assert not admission._runs
    assert not admission._active


def test_a_free_worker_means_no_wait() -> None:
    admission = Admission(workers=2, queue_size=8)
    offer(admission, deadline=100, on=lane(2.0))
    assert offer(admission, deadline=2.01, on=lane(2.0))


def test_a_busy_worker_means_the_rest_of_its_run() -> None:
    admission = Admission(workers=1, queue_size=8)
    offer(admission, deadline=100, on=lane(2.0))
    admission.take(0)
    refused = refusal(admission, deadline=3.5, on=lane(2.0), now=0.5)
    assert refused.reason == "QUEUE_TOO_SLOW"
    assert offer(admission, deadline=4.1, on=lane(2.0), now=0.5)


def test_a_request_of_many_images_needs_more_time() -> None:
    on = lane(1.0)
    admission = busy_with(on)
    # Two rounds before the last pictures, which may take long.
    assert refusal(admission, deadline=3.0, on=on, count=5).reason == "DEADLINE_TOO_SHORT"
    assert offer(admission, deadline=3.01, on=on, count=5)
    assert refusal(admission, deadline=3.01, on=on, count=3).reason == "QUEUE_TOO_SLOW"


def test_what_can_no_longer_be_in_time_costs_nothing() -> None:
    admission = Admission(workers=1, queue_size=8)
    offer(admission, deadline=100)
    running = admission.take(0).batch
    (late,) = offer(admission, deadline=10)
    (hopeless,) = offer(admission, deadline=12, on=lane(1.5))
    (fine,) = offer(admission, deadline=100, on=lane(1.5))
    admission.done(running)
    assert admission.take(11) == Dispatch((fine,), (late, hopeless))


def test_what_is_withdrawn_is_not_run() -> None:
    admission = Admission(workers=1, queue_size=8)
    first, second = offer(admission, deadline=100, count=2)
    assert admission.withdraw(first)
    assert taken(admission, 0) == [second]
    assert not admission.withdraw(second)  # too late: it runs
    admission.done([second])


@pytest.mark.slow
@given(st.data())
def test_workers_and_queue_keep_their_bounds(data: st.DataObject) -> None:
    workers, size = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    admission = Admission(workers=workers, queue_size=size)
    lanes = [lane(0.5), lane(0.2, max_rows=2, max_wait=0.1), lane(instances=1)]
    now, running, admitted, ended = 0.0, list[list[Ticket]](), 0, 0
    for _ in range(data.draw(st.integers(1, 40))):
        now += data.draw(st.floats(0, 3))
        action = data.draw(st.sampled_from(["offer", "take", "done"]))
        if action == "offer":
            count = data.draw(st.integers(1, 3))
            deadline = now + data.draw(st.floats(-1, 9))
            on = data.draw(st.sampled_from(lanes))
            try:
                offer(admission, deadline=deadline, count=count, on=on, now=now)
            except SightlineError:
                continue
            admitted += count
        elif action == "take":
            given_out = admission.take(now)
            ended += len(given_out.late)
            if given_out.batch:
                assert all(ticket.deadline > now for ticket in given_out.batch)
                running.append(list(given_out.batch))
        elif running:
            batch = running.pop()
            admission.done(batch)
            ended += len(batch)
        assert admission.depth <= size
        assert admission.running == len(running) <= 2 * workers
        known = lanes[0], lanes[1]  # what passes is known to be short
        assert sum(batch[0].lane not in known for batch in running) <= workers
        assert admitted == ended + sum(map(len, running)) + admission.depth


@given(st.data())
def test_who_is_admitted_is_in_time_if_runs_take_what_they_are_known_to(
    data: st.DataObject,
) -> None:
    """One worker, any deadlines, in any order: a promise is never broken where no run may overtake.

    No run here is four times as long as another. Where short runs overtake long ones, a rare
    request that was promised an answer is late instead: the plan of a queue does not foresee every
    overtaking.
    """
    admission = Admission(workers=1, queue_size=50)
    lanes = {lane(seconds): seconds for seconds in (0.8, 1.0, 3.0)}
    now, running = 0.0, list[tuple[float, int, list[Ticket]]]()
    look_at = math.inf

    def begin() -> None:
        nonlocal look_at
        while (given_out := admission.take(now)).batch:
            batch = list(given_out.batch)
            end = now + lanes[batch[0].lane]
            assert end <= batch[0].deadline + 1e-6 or not batch[0].alone  # only tried
            heapq.heappush(running, (end, id(batch), batch))
        assert not given_out.late
        look_at = math.inf if given_out.wake_at is None else given_out.wake_at

    def work_until(end: float) -> None:
        nonlocal now
        while (following := min(look_at, running[0][0] if running else math.inf)) <= end:
            now = max(following, now)
            if running and running[0][0] <= now:
                admission.done(heapq.heappop(running)[2])
            begin()
        now = end

    for _ in range(data.draw(st.integers(1, 30))):
        work_until(now + data.draw(st.floats(0, 2)))
        on = data.draw(st.sampled_from(list(lanes)))
        for seconds in (lanes[on],) * 2:
            on.estimates.learn(1, seconds, now)
        with contextlib.suppress(SightlineError):
            offer(admission, deadline=now + data.draw(st.floats(0.1, 12)), on=on, now=now)
        begin()
    work_until(now + 1000)
    assert not running
    assert not admission.depth
