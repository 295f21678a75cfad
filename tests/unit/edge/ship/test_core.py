"""Interactions of the shipper's core, as transcripts."""

import grpc
import pytest

from edge.ship.core import (
    Acknowledge,
    BackOff,
    GiveUp,
    Pause,
    Renew,
    Rewind,
    Send,
    Sent,
    ShipCore,
)
from edge.spool.lineage import Agreement
from servicekit.errors import SightlineError
from tests.unit.edge.ship.plays import Play

AWAY = SightlineError(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", "away")
LATE = SightlineError(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "late")
MALFORMED = SightlineError(grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE", "what?")
TOO_LARGE = SightlineError(
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    "RESOURCE_EXHAUSTED",
    "CLIENT: Received message larger than max (5000000 vs. 4194304)",
)
BUSY = SightlineError(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_BUSY", "come back later")


def hole(expected: int | str) -> SightlineError:
    return SightlineError(
        grpc.StatusCode.FAILED_PRECONDITION,
        "SEQUENCE_HOLE",
        f"sequence {expected} is missing",
        metadata={"expected_sequence": str(expected)},
    )


def test_a_good_day() -> None:
    play = Play()
    play.asks().watermark(0).then()
    play.sends(0, 8).answer(8).then(Acknowledge(8))
    play.sends(8, 11).answer(11).then(Acknowledge(11))


def test_an_earlier_process_had_sent_more_than_it_knew() -> None:
    play = Play(acknowledged=3, last=9)
    play.asks().watermark(7).then(Acknowledge(7))
    play.sends(7, 12).answer(12).then(Acknowledge(12))


def test_after_a_failure_the_server_says_where_to_go_on() -> None:
    play = Play()
    play.asks().fails(AWAY).then(BackOff(AWAY))
    play.asks().watermark(0).then()
    play.sends(0, 5).fails(AWAY).then(BackOff(AWAY))
    play.asks().watermark(5).then(Acknowledge(5))
    play.sends(5, 6).answer(6).then(Acknowledge(6))


def test_a_stream_that_is_committed_in_part() -> None:
    play = Play()
    play.asks().watermark(0).then()
    play.sends(0, 8).answer(6).then(Acknowledge(6))
    play.asks().watermark(6).then()
    play.sends(6, 8).answer(8).then(Acknowledge(8))


def test_an_answer_without_progress_is_a_failure() -> None:
    play = Play()
    play.asks().watermark(0).then()
    play.sends(0, 8)
    (action,) = play.core.stream_answered(0, Sent(8, 8))
    assert isinstance(action, BackOff)
    assert action.error.reason == "NOTHING_COMMITTED"
    play.asks()


def test_nothing_is_deleted_that_was_never_sent() -> None:
    play = Play(last=20)
    play.asks().watermark(0).then()
    play.sends(0, 8).answer(30).then(Acknowledge(8))
    play.asks().watermark(30).then(Acknowledge(20), Renew())


def test_a_spool_that_the_server_is_ahead_of_is_a_copy() -> None:
    Play(acknowledged=3, last=9).asks().watermark(10).then(Acknowledge(9), Renew())


def test_what_a_copy_of_the_spool_has_sent_is_committed() -> None:
    """The copy sends the common entries and continues under its own spool_id."""
    play = Play(acknowledged=3, last=9, sent=5)
    play.asks().watermark(7).then(Acknowledge(7))
    play.sends(7, 12).answer(12).then(Acknowledge(12))


def test_what_was_not_sent_is_kept_if_the_server_has_more_than_there_was() -> None:
    play = Play(acknowledged=3, last=9, sent=5)
    play.asks().watermark(10).then(Acknowledge(5), Renew())


def test_what_this_process_has_not_sent_cannot_be_committed() -> None:
    """9 were there when the spool was opened; 10 and later were logged since."""
    play = Play(acknowledged=0, last=9)
    play.asks().watermark(9).then(Acknowledge(9))
    play.sends(9, 12).fails(AWAY).then(BackOff(AWAY))
    play.asks().watermark(12).then(Acknowledge(12))
    play.sends(12, 14).fails(AWAY).then(BackOff(AWAY))
    play.asks().watermark(15).then(Acknowledge(14), Renew())


def test_what_could_not_be_deleted_is_deleted_when_the_server_is_asked_again() -> None:
    play = Play()
    play.asks().watermark(0).then()
    play.sends(0, 8).answer(8).then(Acknowledge(8))
    play.core.restart(0)
    play.asks().watermark(8).then(Acknowledge(8))


def test_a_gap_that_could_not_be_declared_is_declared_when_the_server_is_asked_again() -> None:
    play = Play(acknowledged=40, last=50)
    play.asks().watermark(10).then(Rewind(10))
    play.core.restart(40)
    play.asks().watermark(10).then(Rewind(10))
    play.sends(10, 48).answer(48).then(Acknowledge(48))


def test_nothing_is_sent_under_a_name_that_could_not_be_given_up() -> None:
    play = Play(acknowledged=3, last=9)
    play.asks().watermark(10).then(Acknowledge(9), Renew())
    play.core.restart(9)
    play.asks().watermark(10).then(Renew())


def test_a_store_that_was_replaced_is_owed_a_gap() -> None:
    play = Play(acknowledged=40, last=50)
    play.asks().watermark(0).then(Rewind(0))
    play.sends(0, 48).answer(48).then(Acknowledge(48))


def test_a_store_that_is_replaced_while_it_is_spoken_to() -> None:
    play = Play(acknowledged=40, last=50)
    play.asks().watermark(40).then()
    play.sends(40, 48).fails(hole(11)).then()
    play.asks().watermark(10).then(Rewind(10))
    play.sends(10, 48).answer(48).then(Acknowledge(48))


def test_a_hole_further_on_means_that_the_server_has_more() -> None:
    play = Play(acknowledged=40, last=50)
    play.asks().watermark(40).then()
    play.sends(40, 48).fails(hole(46)).then()
    play.asks().watermark(45).then(Acknowledge(45))
    play.sends(45, 50).answer(50).then(Acknowledge(50))


def test_a_second_hole_waits() -> None:
    play = Play(acknowledged=40, last=50)
    play.asks().watermark(40).then()
    play.sends(40, 48).fails(hole(41)).then()
    play.asks().watermark(40).then()
    error = hole(41)
    play.sends(40, 48).fails(error).then(BackOff(error))
    play.asks().watermark(40).then()
    play.sends(40, 48).answer(48).then(Acknowledge(48))
    play.sends(48, 50).fails(hole(49)).then()


def test_a_hole_in_what_a_copy_has_sent_is_owed_from_where_they_agree() -> None:
    """The store was put back, and the copy went on first: not so far, but with others."""
    play = Play(acknowledged=40, last=50)
    play.asks().watermark(40).then()
    play.sends(40, 48).fails(hole(31)).then()
    play.asks().watermark(30, Agreement(20)).then(Rewind(20), Renew(is_derived=True))


def test_the_one_prediction_that_cannot_be_read_is_found_by_halving() -> None:
    play = Play()
    play.asks().watermark(0).then()
    play.sends(0, 8).fails(MALFORMED).then()  # it is the sixth
    play.asks().watermark(0).then()
    play.sends(0, 4, limit=4).answer(4).then(Acknowledge(4))
    play.sends(4, 12, limit=8).fails(MALFORMED).then()
    play.asks().watermark(4).then()
    play.sends(4, 8, limit=4).fails(MALFORMED).then()
    play.asks().watermark(4).then()
    play.sends(4, 6, limit=2).fails(MALFORMED).then()
    play.asks().watermark(4).then()
    play.sends(4, 5, limit=1).answer(5).then(Acknowledge(5))
    play.sends(5, 7, limit=2).fails(MALFORMED).then()
    play.asks().watermark(5).then()
    play.sends(5, 6, limit=1).fails(MALFORMED).then()
    play.asks().watermark(5).then()
    play.sends(5, 5, limit=0).answer(5).then(GiveUp(6))
    play.sends(5, 6, limit=1, gap=True).answer(6).then(Acknowledge(6))
    play.sends(6, 8, limit=2).answer(8).then(Acknowledge(8))


@pytest.mark.parametrize("reason", ["MALFORMED_MESSAGE", "MESSAGE_TOO_LARGE", "INVALID_FIELD"])
def test_whatever_the_service_says_against_a_message_is_isolated(reason: str) -> None:
    refused = SightlineError(grpc.StatusCode.INVALID_ARGUMENT, reason, "no")
    play = Play(stream_size=2)
    play.asks().watermark(0).then()
    play.sends(0, 2, limit=2).fails(refused).then()
    play.asks().watermark(0).then()
    play.sends(0, 1, limit=1).fails(refused).then()
    play.asks().watermark(0).then()
    play.sends(0, 0, limit=0).answer(0).then(GiveUp(1))


def test_what_a_stranger_refuses_is_not_given_up() -> None:
    stranger = SightlineError(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", "a proxy's")
    play = Play(stream_size=1)
    play.asks().watermark(0).then()
    play.sends(0, 1, limit=1).fails(stranger).then(BackOff(stranger))


def test_nothing_is_given_up_to_a_server_that_refuses_even_a_bare_header() -> None:
    play = Play(stream_size=1)
    play.asks().watermark(0).then()
    for _ in range(3):
        play.sends(0, 1, limit=1).fails(MALFORMED).then()
        play.asks().watermark(0).then()
        play.sends(0, 0, limit=0).fails(MALFORMED).then(BackOff(MALFORMED))
        play.asks().watermark(0).then()


def test_a_suspect_that_was_committed_after_all_is_not_given_up() -> None:
    play = Play(stream_size=1)
    play.asks().watermark(0).then()
    play.sends(0, 1, limit=1).fails(MALFORMED).then()
    play.asks().watermark(1).then(Acknowledge(1))
    play.sends(1, 1, limit=0).answer(1).then()
    play.sends(1, 2, limit=1).answer(2).then(Acknowledge(2))


def test_a_suspect_is_forgotten_when_the_network_fails() -> None:
    play = Play(stream_size=1)
    play.asks().watermark(0).then()
    play.sends(0, 1, limit=1).fails(MALFORMED).then()
    play.asks().fails(AWAY).then(BackOff(AWAY))
    play.asks().watermark(0).then()
    play.sends(0, 1, limit=1).answer(1).then(Acknowledge(1))


def test_a_gap_that_cannot_be_read_waits() -> None:
    play = Play(stream_size=1)
    play.asks().watermark(0).then()
    play.sends(0, 9, limit=1, gap=True, entries=1).fails(MALFORMED).then(BackOff(MALFORMED))


def test_a_message_over_the_servers_limit_is_isolated_too() -> None:
    play = Play(stream_size=2)
    play.asks().watermark(0).then()
    play.sends(0, 2, limit=2).fails(TOO_LARGE).then()
    play.asks().watermark(0).then()
    play.sends(0, 1, limit=1).fails(TOO_LARGE).then()
    play.asks().watermark(0).then()
    play.sends(0, 0, limit=0).answer(0).then(GiveUp(1))


@pytest.mark.parametrize("error", [BUSY, AWAY])
def test_other_errors_wait_and_give_nothing_up(error: SightlineError) -> None:
    play = Play(stream_size=1)
    play.asks().watermark(0).then()
    for _ in range(3):
        play.sends(0, 1, limit=1).fails(error).then(BackOff(error))
        play.asks().watermark(0).then()


def test_a_slow_uplink_gets_shorter_streams_and_more_time() -> None:
    play = Play()
    play.asks().watermark(0).then()
    play.sends(0, 8).fails(LATE).then(BackOff(LATE))
    play.asks().watermark(2).then(Acknowledge(2))
    play.sends(2, 6, limit=4, timeout=60.0).fails(LATE).then(BackOff(LATE))
    play.asks().watermark(2).then()
    play.sends(2, 4, limit=2, timeout=120.0).answer(4).then(Acknowledge(4))
    play.sends(4, 8, limit=4).answer(8).then(Acknowledge(8))
    play.sends(8, 16).answer(16).then(Acknowledge(16))


def test_time_for_a_stream_is_bounded() -> None:
    play = Play(stream_size=1)
    for _ in range(20):
        play.asks().watermark(0).then()
        step = play.core.next()
        assert isinstance(step, Send)
        assert step.timeout <= 3600.0
        play.core.call_failed(LATE, Sent(1, 1))


def limited(committed_through: int | None) -> SightlineError:
    metadata = {} if committed_through is None else {"committed_through": str(committed_through)}
    return SightlineError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "RATE_LIMITED",
        "too much",
        retry_after=0.5,
        metadata=metadata,
    )


def test_what_a_limit_let_through_counts_and_the_next_stream_is_no_longer() -> None:
    play = Play()
    play.asks().watermark(0).then()
    error = limited(3)
    play.sends(0, 8).fails(error).then(Acknowledge(3), Pause(error))
    play.sends(3, 6, limit=3).answer(6).then(Acknowledge(6))  # and did not ask
    play.sends(6, 12, limit=6).answer(12).then(Acknowledge(12))


@pytest.mark.parametrize("through", [None, 0])
def test_a_limit_that_lets_nothing_through_is_waited_for_without_asking(
    through: int | None,
) -> None:
    play = Play()
    play.asks().watermark(0).then()
    for _ in range(3):
        error = limited(through)
        play.sends(0, 8).fails(error).then(Pause(error))
    play.sends(0, 8).answer(8).then(Acknowledge(8))


def test_a_limit_cannot_have_more_deleted_than_was_sent() -> None:
    play = Play()
    play.asks().watermark(0).then()
    error = limited(10**12)
    play.sends(0, 8).fails(error).then(Acknowledge(8), Pause(error))


def test_what_does_not_arrive_in_time_is_sent_in_smaller_parts() -> None:
    stalled = SightlineError(grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_STALLED", "too slow")
    core = ShipCore(acknowledged=0, sent_through=0, opened_at=0, stream_size=100)
    core.watermark_received(0)
    for limit in (100, 50, 25):
        step = core.next()
        assert isinstance(step, Send)
        assert step.max_entries == limit
        sent = Sent(last=limit, entries=limit)
        core.sending(sent)
        assert core.call_failed(stalled, sent) == [BackOff(stalled)]
        core.watermark_received(0)
