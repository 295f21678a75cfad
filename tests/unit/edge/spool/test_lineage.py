"""Item 12: how far two copies of a spool agree, decided without a clock, a socket or a file."""

import itertools
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from edge.ship.core import Acknowledge, Action, FetchWatermark, Renew, Rewind, Send, Sent, ShipCore
from edge.spool.identity import Identity, are_branches
from edge.spool.lineage import (
    MAX_OPENINGS,
    Agreement,
    Lineage,
    SpoolOpening,
    agreement,
    begun,
    derived_id,
    is_full,
    opening_at,
    shifted,
)
from tests.fakes.ingest import conflict

A, B, C = (SpoolOpening("a", 0), SpoolOpening("b", 4), SpoolOpening("c", 9))
ROOT = "root"


def test_a_sequence_belongs_to_the_opening_that_gave_it_out() -> None:
    lineage = (SpoolOpening("a", 2), SpoolOpening("b", 4))
    openings = [opening_at(lineage, sequence) for sequence in (1, 2, 3, 4, 5, 100)]
    assert openings == [("", 2), ("", 2), ("a", 4), ("a", 4), ("b", None), ("b", None)]
    assert opening_at((), 7) == ("", None)


@pytest.mark.parametrize(
    ("committed", "watermark", "agreed"),
    [
        ((A,), 3, Agreement(3)),
        ((A,), 6, Agreement(4, is_overrun=True)),  # put back: the original went on in "a"
        ((A, B), 7, Agreement(7)),
        ((A, B, C), 12, Agreement(9)),
        ((A, SpoolOpening("x", 2)), 8, Agreement(2)),  # a copy that was made earlier went on
        ((A, B, SpoolOpening("x", 6)), 8, Agreement(6)),
        ((A, B, SpoolOpening("x", 9)), 12, Agreement(9)),
        ((A, SpoolOpening("x", 2), SpoolOpening("y", 5)), 12, Agreement(2)),
        ((SpoolOpening("x", 0),), 5, Agreement(0)),
        ((SpoolOpening("", 0), SpoolOpening("x", 3)), 5, Agreement(0, is_lower_bound=True)),
        ((SpoolOpening("", 0),), 5, None),
        ((A, SpoolOpening("", 2)), 5, None),
        ((), 5, None),
    ],
)
def test_two_lineages_agree_up_to_where_they_part(
    committed: Lineage, watermark: int, agreed: Agreement | None
) -> None:
    lineage = (A, B, SpoolOpening("d", 9))
    assert agreement(lineage, ROOT, 11, committed, watermark) == agreed


def test_what_was_spooled_before_lineages_were_kept_is_what_was_not_said() -> None:
    lineage = (SpoolOpening(ROOT, 0), SpoolOpening("a", 6))
    assert agreement(lineage, ROOT, 9, (SpoolOpening("", 0), SpoolOpening("x", 4)), 8) == Agreement(
        4, is_lower_bound=True
    )
    assert agreement(lineage, ROOT, 9, (SpoolOpening("", 0), SpoolOpening("x", 8)), 9) == Agreement(
        6, is_lower_bound=True
    )


def test_an_opening_that_gives_out_nothing_leaves_no_trace() -> None:
    lineage = begun(begun((), "a", 0, 0), "b", 0, 0)
    assert lineage == (SpoolOpening("b", 0),)
    assert begun(lineage, "c", 5, 0) == (SpoolOpening("b", 0), SpoolOpening("c", 5))


def test_openings_are_forgotten_once_they_are_committed() -> None:
    lineage: Lineage = ()
    for number in range(3 * MAX_OPENINGS):
        assert not is_full(lineage, number)
        lineage = begun(lineage, str(number), number, number)
    assert len(lineage) == MAX_OPENINGS
    waiting: Lineage = ()
    for number in range(MAX_OPENINGS):
        waiting = begun(waiting, str(number), number, 0)
    assert is_full(waiting, 0)
    assert not is_full(waiting, 1)


def test_a_spool_that_moves_keeps_its_openings() -> None:
    lineage = (A, B, C)
    assert shifted(lineage, 0, "?") == lineage
    assert shifted(lineage, 4, "?") == (SpoolOpening("b", 0), SpoolOpening("c", 5))
    assert shifted(lineage, 6, "?") == (SpoolOpening("b", 0), SpoolOpening("c", 3))
    assert shifted(lineage, 20, "?") == (SpoolOpening("c", 0),)
    assert shifted((SpoolOpening("b", 4),), 2, "?") == (SpoolOpening("?", 0), SpoolOpening("b", 2))
    assert shifted((), 2, "?") == (SpoolOpening("?", 0),)
    ids = {
        derived_id(str(uuid.UUID(int=1)), shifted(lineage, 2, "?"), 2) for lineage in ((A,), (A, B))
    }
    assert len(ids) == 1, "copies of the same predictions move to the same spool"


def test_branches_are_not_older_or_newer() -> None:
    def identity(last: int, *lineage: SpoolOpening) -> Identity:
        return Identity("gate-1", "s", 0, last, lineage=lineage)

    now = identity(8, A, B)
    assert not are_branches(now, identity(6, A, B))
    assert not are_branches(identity(3, A), now)
    assert are_branches(now, identity(6, A, SpoolOpening("x", 4)))
    assert are_branches(identity(6, A), now)
    assert not are_branches(now, identity(6))


def test_what_a_store_that_was_put_back_has_lost_to_a_copy_is_declared() -> None:
    core = ShipCore(acknowledged=6, sent_through=9, opened_at=9, stream_size=8)
    assert core.watermark_received(8, Agreement(4)) == [Rewind(4), Renew(is_derived=True)]
    core = ShipCore(acknowledged=6, sent_through=9, opened_at=9, stream_size=8)
    assert core.watermark_received(8, Agreement(4, is_lower_bound=True)) == [Renew(is_derived=True)]


# A model of nodes and a server: each prediction is a number, so that a mistake shows.


@dataclass
class Spooled:
    """The state of a node: predictions by position, starts of its openings, and last sent."""

    spool_id: str
    rows: list[int] = field(default_factory=list)
    lineage: Lineage = ()
    acknowledged: int = 0
    required: set[int] = field(default_factory=set)

    def copy(self) -> "Spooled":
        return Spooled(
            self.spool_id, [*self.rows], self.lineage, self.acknowledged, {*self.required}
        )


@dataclass
class Committed:
    rows: list[int] = field(default_factory=list)
    lineage: list[SpoolOpening] = field(default_factory=list)

    def takes(self, at: int, row: int, generation: str) -> bool:
        """One prediction; False: it conflicts."""
        if at <= len(self.rows):
            return opening_at(tuple(self.lineage), at)[0] == generation
        assert at == len(self.rows) + 1, "a hole"
        if not self.lineage or self.lineage[-1].generation != generation:
            if generation in [opening.generation for opening in self.lineage]:
                return False
            self.lineage.append(SpoolOpening(generation, at - 1))
        self.rows.append(row)
        return True


class Model:
    """A server, nodes that may be copies of one another, and a backup of one of them."""

    def __init__(self) -> None:
        self.server: dict[str, Committed] = {}
        self.names = itertools.count()
        self.nodes = [Spooled(str(uuid.UUID(int=1))) for _ in range(2)]
        self.nodes[1].spool_id = str(uuid.UUID(int=2))
        self.backup: Spooled | None = None
        self.cores: list[ShipCore] = []
        self.own: list[str] = ["", ""]
        for side in (0, 1):
            self.cores.append(self.core(side))

    def core(self, side: int) -> ShipCore:
        node = self.nodes[side]
        self.own[side] = ""
        return ShipCore(
            acknowledged=node.acknowledged,
            sent_through=len(node.rows),
            opened_at=len(node.rows),
            stream_size=1,
        )

    def log(self, side: int) -> None:
        node, name = self.nodes[side], next(self.names)
        if not self.own[side]:
            self.own[side] = f"g{name}"
            last, acknowledged = len(node.rows), node.acknowledged
            node.lineage = begun(node.lineage, self.own[side], last, acknowledged)
        node.rows.append(name)
        node.required.add(name)

    def step(self, side: int) -> None:
        """One call of the shipper: a question, or a prediction."""
        node, core = self.nodes[side], self.cores[side]
        if len(node.rows) <= core.position:
            return
        there = self.server.setdefault(node.spool_id, Committed())
        step = core.next()
        if isinstance(step, FetchWatermark):
            agreed = agreement(
                node.lineage, node.spool_id, len(node.rows), there.lineage, len(there.rows)
            )
            self.act(side, core.watermark_received(len(there.rows), agreed))
            return
        assert isinstance(step, Send)
        at, sent = step.after + 1, Sent(step.after + 1, 1)
        core.sending(sent)
        generation, _ = opening_at(node.lineage, at)
        if there.takes(at, node.rows[at - 1], generation):
            self.act(side, core.stream_answered(len(there.rows), sent))
        else:
            self.act(side, core.call_failed(conflict(at), sent))

    def act(self, side: int, actions: Sequence[Action]) -> None:
        node = self.nodes[side]
        for action in actions:
            assert not isinstance(action, Rewind)
            if isinstance(action, Acknowledge):
                node.acknowledged = action.through
            elif isinstance(action, Renew):
                shift = node.acknowledged
                rows = node.rows[shift:]
                lineage = shifted(node.lineage, shift, "?") if rows else ()
                new = uuid.uuid4()
                if action.is_derived and rows:
                    new = derived_id(node.spool_id, lineage, shift)
                self.nodes[side] = Spooled(str(new), rows, lineage, 0, node.required)
                own = self.own[side]
                self.cores[side] = self.core(side)
                self.own[side] = own if lineage and lineage[-1].generation == own else ""

    def do(self, what: str) -> None:
        kind, side = what[:-1], int(what[-1])
        if kind == "log":
            self.log(side)
        elif kind == "step":
            self.step(side)
        elif kind == "open":
            self.cores[side] = self.core(side)
        elif kind == "save":
            self.backup = self.nodes[side].copy()
        elif self.backup is not None:
            self.nodes[side] = self.backup.copy()
            self.cores[side] = self.core(side)

    def finish(self) -> None:
        for _ in range(2):
            for side in (0, 1):
                for _ in range(60):
                    self.step(side)
                assert self.nodes[side].acknowledged == len(self.nodes[side].rows), "stuck"
        stored = [row for spool in self.server.values() for row in spool.rows]
        assert len(stored) == len(set(stored)), "stored twice"
        assert self.nodes[0].required | self.nodes[1].required <= set(stored), "lost"


PREFIXES = (
    "log0 log0 step0 step0 save0 log0 step0 step0",  # shipped beyond the backup
    "log0 save0 put1 log0 log1",  # twins
    "log0 step0 step0 log0 save0 log0 open0 log0 step0 put1",
)
MOVES = tuple(f"{kind}{side}" for kind in ("log", "step", "open", "save", "put") for side in "01")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_short_history_of_two_copies(prefix: str) -> None:
    for moves in itertools.product(MOVES, repeat=4):
        model = Model()
        for what in (*prefix.split(), *moves):
            model.do(what)
        try:
            model.finish()
        except AssertionError as error:
            raise AssertionError(f"{prefix} {' '.join(moves)}: {error}") from error


def test_long_histories_of_two_copies() -> None:
    for seed in range(3000):
        chance, model = random.Random(seed), Model()
        moves = [chance.choice(MOVES) for _ in range(chance.randint(5, 60))]
        for what in moves:
            model.do(what)
        try:
            model.finish()
        except AssertionError as error:
            raise AssertionError(f"{seed}: {' '.join(moves)}: {error}") from error
