"""The shipper's state machine where a spool has been copied."""

from edge.ship.core import (
    Acknowledge,
    Renew,
)
from edge.spool.lineage import Agreement
from tests.fakes.ingest import conflict
from tests.unit.edge.ship.plays import Play


def test_what_was_spooled_before_the_copy_was_made_is_not_moved() -> None:
    """The spool was put back: of 5 to 9 that are pending the server has all, and more."""
    play = Play(acknowledged=4, last=9, sent=4)
    play.asks().watermark(12, Agreement(9, is_overrun=True)).then(Acknowledge(9), Renew(True))


def test_what_was_spooled_offline_since_is_moved() -> None:
    play = Play(acknowledged=4, last=20, sent=4)
    play.asks().watermark(12, Agreement(9, is_overrun=True)).then(Acknowledge(9), Renew(True))


def test_a_twin_that_was_faster_ends_the_stream_and_then_it_is_asked() -> None:
    play = Play(acknowledged=4, last=9)
    play.asks().watermark(4, Agreement(4)).then()
    play.sends(4, 9).fails(conflict(7)).then()
    play.asks().watermark(8, Agreement(6)).then(Acknowledge(6), Renew(True))


def test_a_conflict_that_nothing_explains_moves_what_is_pending() -> None:
    play = Play(acknowledged=4, last=9)
    play.asks().watermark(4, Agreement(4)).then()
    play.sends(4, 9).fails(conflict(9)).then()
    play.asks().watermark(9, Agreement(9)).then(Renew())


def test_a_conflict_does_not_become_a_loop() -> None:
    play = Play(acknowledged=4, last=9)
    play.asks().watermark(4).then()
    play.sends(4, 9).fails(conflict(5)).then()
    play.asks().watermark(4).then(Renew())


def test_a_clone_of_this_very_process_is_noticed_by_the_last_prediction() -> None:
    play = Play(acknowledged=4, last=4)
    play.asks().watermark(8, Agreement(8)).then()
    play.sends(7, 8, limit=1).fails(conflict(8)).then()
    play.asks().watermark(8, Agreement(8)).then(Renew())


def test_a_copy_that_has_sent_what_this_process_has_spooled() -> None:
    play = Play(acknowledged=4, last=4)
    play.asks().watermark(8, Agreement(8)).then()
    play.sends(7, 8, limit=1).answer(8, duplicates=1).then(Acknowledge(8))


def test_a_clone_that_went_further_leaves_all_pending() -> None:
    play = Play(acknowledged=4, last=4)
    play.asks().watermark(30, Agreement(9, is_overrun=True)).then(Renew())


def test_duplicates_of_what_was_never_sent_mean_a_twin() -> None:
    """With a server that keeps no generations: rather twice than not at all."""
    play = Play(acknowledged=4, last=6)
    play.asks().watermark(4).then()
    play.sends(4, 9).answer(9, duplicates=3).then(Acknowledge(6), Renew())
    play = Play(acknowledged=4, last=6)
    play.asks().watermark(4).then()
    play.sends(4, 9).answer(9, duplicates=2).then(Acknowledge(9))
