"""Damaged messages to the ingest service, beside good ones.

The result of each is checked against protobuf's own parser and against docs/reference/errors.md,
which has the reasons of refusals and rejections, and the cases in which the service reads
otherwise.
"""

import itertools
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import numpy as np
import psutil
import pyarrow as pa
from google.protobuf.message import DecodeError
from sightline.ingest.v1.ingest_service_pb2 import PredictionLogRequest

from ingest_service.receive.decision import decide
from ingest_service.receive.decode import Decoder
from ingest_service.receive.group import Message, MessageOutcome, Prepared, prepare
from ingest_service.receive.group_writer import GroupWriter
from ingest_service.receive.headers import parse_header
from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.protocol import Generation, Watermark
from servicekit.errors import SightlineError
from tests.pages import section
from tests.unit.ingest_service import oracle, wire
from tests.unit.ingest_service.mutate import hostile, mutated
from tests.unit.ingest_service.samples import DECODERS, NOW, message, predictions, spool
from tests.unit.ingest_service.store_conformance import outcomes_of

GROUP = 100
_GOOD = 20  # good messages of a group
_STORED = 20  # one in this many groups goes into a database
_SLOW_SECONDS = 20.0


@dataclass
class Tally:
    """The results of the messages."""

    messages: int = 0
    """Damaged messages."""
    refused: Counter[str] = field(default_factory=Counter)
    """Refused messages by reason."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Rejected predictions by reason."""
    accepted: int = 0
    """Accepted predictions of damaged messages."""
    compared: int = 0
    """Damaged messages that protobuf also reads."""
    odd: Counter[str] = field(default_factory=Counter)
    """Messages that the service and protobuf read differently, by the kind of difference."""
    neighbours: int = 0
    """Good messages."""
    stored: int = 0
    """Messages of both kinds that were stored in a database."""
    grown: int = 0
    """Growth of the process in the second half, bytes."""

    def add(self, other: "Tally") -> None:
        """Add the results of another process."""
        for name in ("messages", "accepted", "compared", "neighbours", "stored"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("refused", "rejected", "odd"):
            getattr(self, name).update(getattr(other, name))
        self.grown = max(self.grown, other.grown)


def documented(title: str) -> set[str]:
    """Return the reasons in a table of docs/reference/errors.md, by its title."""
    rows = re.findall(r"^\| (`[^|]+) \|", section("reference/errors.md", title), re.MULTILINE)
    return {reason for row in rows for reason in re.findall(r"`([A-Z0-9_]+)`", row)}


REFUSED = documented("Why a message is refused")
REJECTED = documented("Why a prediction is rejected")


def run(seed: int, count: int, folder: Path, decoder: str) -> Tally:
    """Process damaged messages in groups with the service's code, and check the results.

    Args:
        seed: seed of all random choices.
        count: number of damaged messages.
        folder: folder for a database.
        decoder: name of the decoder in `DECODERS`.

    Raises:
        AssertionError: a result is not as documented.
    """
    # The symbols for the first backtrace of a panic in ptars would take 50 MiB.
    os.environ["RUST_BACKTRACE"] = "0"
    checker, chance = Checker(DECODERS[decoder]), random.Random(seed)
    damaged = _damaged(seed, count)
    store = DuckDBStore(folder / f"{seed}.duckdb")
    writer = GroupWriter(store, lambda: NOW, decoder=DECODERS[decoder])
    before = 0
    for number in itertools.count():
        payloads = list(itertools.islice(damaged, GROUP - _GOOD))
        if not payloads:
            break
        if number == count // (GROUP - _GOOD) // 2:
            before = psutil.Process().memory_info().rss
        group, good = mixed(payloads, number * GROUP, chance)
        began = time.perf_counter()
        checker.check(group, good, chance)
        if number % _STORED == 0:
            _check_outcomes(group, outcomes_of(writer, group), good)
            checker.tally.stored += len(group)
        assert time.perf_counter() - began < _SLOW_SECONDS, [payload.hex() for payload in payloads]
    checker.tally.grown = psutil.Process().memory_info().rss - before
    store.close()
    _check_books(folder / f"{seed}.duckdb")
    return checker.tally


def mixed(
    payloads: Sequence[bytes], start: int, chance: random.Random
) -> tuple[list[Message], dict[int, int]]:
    """Return a group of damaged and good messages, each with its own stream and spool.

    Args:
        payloads: the damaged messages.
        start: number of the first spool.
        chance: source of the random order.

    Returns:
        The messages, and the number of predictions of each good message by its index.
    """
    parts: list[bytes | int] = [*payloads, *(chance.randint(1, 3) for _ in range(_GOOD))]
    chance.shuffle(parts)
    group, good = [], {}
    for at, part in enumerate(parts):
        if isinstance(part, bytes):
            # Sometimes as a later message, which must have no header.
            first = chance.random() < 0.9
            group.append(message(payload=part, of=spool(start + at), stream=at, first=first))
        else:
            group.append(message(*predictions(1, part), of=spool(start + at), stream=at))
            good[at] = part
    return group, good


class Checker:
    """A checker of groups of messages."""

    def __init__(self, decoder: Decoder) -> None:
        self.tally = Tally()
        self._decoder = decoder

    def check(
        self, group: Sequence[Message], good: Mapping[int, int], chance: random.Random
    ) -> None:
        """Fail unless the result of every message of the group is as documented.

        Args:
            group: the messages.
            good: number of predictions of each good message, by its index.
            chance: source of the random watermarks of the damaged messages.
        """
        prepared = prepare(group, self._decoder, NOW)
        watermarks = {
            received.opening.spool: 0 if at in good else chance.choice((0, 0, 0, 1, 2, 3, 4, 2**62))
            for at, received in enumerate(group)
        }
        committed = {
            spool: Watermark(through, generations=(Generation("", 0),) if through else ())
            for spool, through in watermarks.items()
        }
        changes, outcomes = decide(prepared, committed)
        _check_outcomes(group, outcomes, good, [watermarks[key] for key in prepared.spools])
        assert changes.predictions.num_rows == sum(outcome.accepted for outcome in outcomes)
        self._count(outcomes, good)
        self._compare(prepared, good)

    def _count(self, outcomes: Sequence[MessageOutcome], good: Mapping[int, int]) -> None:
        self.tally.neighbours += len(good)
        for at, outcome in enumerate(outcomes):
            if at in good:
                continue
            self.tally.messages += 1
            self.tally.accepted += outcome.accepted
            self.tally.rejected.update(rejection.reason for rejection in outcome.rejections)
            if outcome.error is not None:
                self.tally.refused[outcome.error.reason] += 1

    def _compare(self, prepared: Prepared, good: Mapping[int, int]) -> None:
        """Fail unless the read messages have the values that protobuf reads."""
        both, whose = [], []
        for at, received in enumerate(prepared.messages):
            malformed = _is_malformed(prepared.refused.get(at))
            read = _by_protobuf(received.payload)
            if read is not None and not malformed:
                self.tally.compared += at not in good
                both.append(read)
                whose.append(at)
            elif read is not None or not malformed:
                self._note_difference(received.payload, malformed=malformed)
        expected = oracle.by_protobuf(both)
        values = self._read(prepared, whose)
        if values != expected:
            self._compare_each(prepared, whose, both, values)

    def _compare_each(
        self,
        prepared: Prepared,
        whose: Sequence[int],
        both: Sequence[PredictionLogRequest],
        values: oracle.Columns,
    ) -> None:
        row = gap = 0
        for at, read in zip(whose, both, strict=True):
            rows = slice(row, row := row + len(read.predictions))
            gaps = slice(gap, gap := gap + len(read.gaps))
            expected = oracle.by_protobuf([read])
            own = {name: values[name][gaps if name == "gaps" else rows] for name in values}
            if own != expected:
                self._note_other_values(prepared.messages[at].payload, own, expected)

    def _note_other_values(
        self, payload: bytes, values: oracle.Columns, expected: oracle.Columns
    ) -> None:
        """Fail unless the values that differ are documented to differ."""
        differing = {name for name in expected if expected[name] != values[name]}
        odd = wire.oddities(payload, PredictionLogRequest.DESCRIPTOR)
        if "labels" in differing and "foreign field in a label" in odd:
            differing -= {"labels"}
            self.tally.odd["label kept"] += 1
        if differing & oracle.MERGED and "message twice" in odd:
            differing -= oracle.MERGED
            self.tally.odd["last one counts"] += 1
        assert not differing, (payload.hex(), {n: (expected[n], values[n]) for n in differing})

    def _note_difference(self, payload: bytes, *, malformed: bool) -> None:
        odd = wire.oddities(payload, PredictionLogRequest.DESCRIPTOR)
        expected = oracle.PROTOBUF_READS if malformed else oracle.PTARS_READS
        assert odd & expected, (payload.hex(), odd)
        self.tally.odd["refused" if malformed else "read all the same"] += 1

    def _read(self, prepared: Prepared, selected: Sequence[int]) -> oracle.Columns:
        """Return the values that the service has read from these messages."""
        mask = np.zeros(prepared.claims.messages, dtype=np.bool_)
        mask[list(selected)] = True
        return oracle.by_arrow(
            prepared.predictions.filter(pa.array(mask[prepared.claims.message])),
            prepared.gaps.filter(pa.array(mask[prepared.claims.gap_message])),
        )


def _damaged(seed: int, count: int) -> Iterator[bytes]:
    """Yield three messages with damaged fields for each with damaged bytes."""
    fields, raw = hostile(seed, count), mutated(seed, count)
    return (next(raw if at % 4 == 3 else fields) for at in range(count))


def _is_malformed(error: SightlineError | None) -> bool:
    return error is not None and error.reason == "MALFORMED_MESSAGE"


def _by_protobuf(payload: bytes) -> PredictionLogRequest | None:
    """Return protobuf's reading, or None if it refuses; check the reason of a refused header."""
    assert _header_error(payload) in {None, *REFUSED}, payload.hex()
    try:
        return PredictionLogRequest.FromString(payload)
    except DecodeError:
        return None


def _header_error(payload: bytes) -> str | None:
    try:
        parse_header(payload, NOW)
    except SightlineError as error:
        return error.reason
    return None


def _check_outcomes(
    group: Sequence[Message],
    outcomes: Sequence[MessageOutcome],
    good: Mapping[int, int],
    low: Sequence[int] | None = None,
) -> None:
    """Fail unless all reasons are documented, the counts add up and good messages are complete."""
    for at, (outcome, payload) in enumerate(zip(outcomes, group, strict=True)):
        if at in good:
            assert outcome == MessageOutcome(committed_through=good[at], accepted=good[at])
            continue
        why = payload.payload.hex()
        assert {rejection.reason for rejection in outcome.rejections} <= REJECTED, why
        new = outcome.accepted + len(outcome.rejections) + outcome.gap_sequences
        if outcome.error is not None:
            assert outcome.error.reason in REFUSED, why
        if outcome.error is not None and outcome.error.reason != "SEQUENCE_HOLE":
            assert new == 0, why
        else:
            assert outcome.committed_through - (low[at] if low else 0) == new, why


def _check_books(database: Path) -> None:
    """Fail unless the database agrees with its ledger and has every good message complete."""
    with duckdb.connect(str(database), read_only=True) as connection:
        balances = connection.execute("SELECT DISTINCT balanced FROM ledger").fetchall()
        original = connection.execute(
            "SELECT count(*) FROM rejected_predictions WHERE original IS NULL"
        ).fetchone()
    assert balances == [(True,)]
    assert original == (0,)
