"""The shipper, where a store was replaced or put back, or the device's disk is full."""

import sqlite3

import pytest
from sightline.types.v1 import prediction_pb2

from edge.spool.entries import GapReason
from edge.spool.spool import Spool
from tests.fakes.ingest import FakeIngest
from tests.unit.edge.samples import eventually
from tests.unit.edge.ship.shipping import Node, images
from tests.unit.edge.ship.shipping import ingest as ingest
from tests.unit.edge.ship.shipping import node as node


def test_a_store_that_was_replaced_is_told_what_it_will_never_get(
    node: Node, ingest: FakeIngest, caplog: pytest.LogCaptureFixture
) -> None:
    node.log(20)
    with node.shipping():
        assert node.is_empty()
        ingest.spools.clear()
        node.log(5)
        assert node.is_empty()
    ingest.only().check()
    assert ingest.images() == [f"i{number}" for number in range(21, 26)]
    assert ingest.only().gaps == [(1, 20, GapReason.RELEASED)]
    assert "it was replaced" in caplog.text


def test_a_store_that_was_put_back_from_an_older_copy(node: Node, ingest: FakeIngest) -> None:
    node.log(20)
    with node.shipping():
        assert node.is_empty()
    stored = ingest.only()
    stored.committed_through = 12
    for sequence in range(13, 21):
        del stored.predictions[sequence]
    node.log(5)
    with node.shipping():
        assert node.is_empty()
    stored.check()
    assert stored.gaps == [(13, 20, GapReason.RELEASED)]


def test_a_spool_that_was_put_back_from_an_older_copy_loses_nothing_new(
    node: Node, ingest: FakeIngest, caplog: pytest.LogCaptureFixture
) -> None:
    node.log(3)
    with node.shipping():
        assert node.is_empty()
    old = node.spool.identity.spool_id
    ingest.spools["gate-1", old].committed_through = 50  # by the life that was forgotten
    node.log(5)
    with node.shipping():
        assert eventually(lambda: ("gate-1", node.spool.identity.spool_id) in ingest.spools)
        assert eventually(lambda: node.spool.identity.spool_id != old)
        assert node.is_empty()
        node.log(2)
        assert node.is_empty()
    renewed = ingest.spools["gate-1", node.spool.identity.spool_id]
    renewed.check()
    names = [renewed.predictions[sequence].image_id for sequence in sorted(renewed.predictions)]
    assert names == [f"i{number}" for number in range(4, 11)]
    assert "move to a new spool_id" in caplog.text


class FullDisk:
    """Makes one method of a spool fail, once, as SQLite does on a full disk."""

    def __init__(self, patch: pytest.MonkeyPatch, spool: Spool, name: str) -> None:
        self._method = getattr(spool, name)
        self.has_failed = False
        patch.setattr(spool, name, self)

    def __call__(self, *arguments: object, **named: object) -> object:
        if self.has_failed:
            return self._method(*arguments, **named)
        self.has_failed = True
        raise sqlite3.OperationalError("database or disk is full")


def test_what_a_full_disk_keeps_from_being_deleted_is_deleted_later(
    node: Node, ingest: FakeIngest, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(monkeypatch, node.spool, "acknowledge")
    node.log(5)
    with node.shipping():
        assert node.is_empty()  # and not only when something else is logged
    assert disk.has_failed
    assert (node.progress.delivered, node.progress.committed) == (5, 5)
    assert ingest.images() == images(5)


def test_a_store_that_was_replaced_while_the_disk_was_full(
    node: Node, ingest: FakeIngest, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.log(20)
    with node.shipping():
        assert node.is_empty()
    ingest.spools.clear()
    disk = FullDisk(monkeypatch, node.spool, "rewind")
    node.log(5)
    with node.shipping():
        assert node.is_empty()
    assert disk.has_failed
    ingest.only().check()
    assert ingest.only().gaps == [(1, 20, GapReason.RELEASED)]


def test_a_spool_that_was_put_back_while_the_disk_was_full(
    node: Node, ingest: FakeIngest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under its old name, the server would take what is new for what it has."""
    node.log(3)
    with node.shipping():
        assert node.is_empty()
    old = ingest.only()
    # By the life that was forgotten.
    old.predictions |= {n: prediction_pb2.Prediction(image_id=f"other-{n}") for n in (4, 5, 6)}
    old.committed_through = 6
    disk = FullDisk(monkeypatch, node.spool, "renew")
    node.log(2)
    with node.shipping():
        node.log(5)
        assert node.is_empty()
    assert disk.has_failed
    assert len(ingest.spools) == 2
    assert [name for name in ingest.images() if "other" not in name] == images(10)
