"""Tests that damaged messages get the documented answer, and harm no other message."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import pytest

from tests.faults import mutations
from tests.faults.campaign import Campaign
from tests.faults.mutations import REJECTED, Tally

PATIENT = pytest.mark.timeout(600)
SOAK = [pytest.mark.soak, pytest.mark.timeout(7200)]
SLICES = min(os.cpu_count() or 1, 8)
"""Number of processes; each must run long enough to tell growth from warm-up."""
NEED_MANY = {"TOO_MANY_DETECTIONS", "TOO_MANY_LABELS"}
"""Reasons that no damage to a small message causes."""


@pytest.mark.parametrize(
    ("decoder", "count"),
    [
        pytest.param("ptars", 10_000, marks=PATIENT),
        pytest.param("protobuf", 5_000, marks=PATIENT),
        pytest.param("ptars", 1_000_000, marks=SOAK),
        pytest.param("protobuf", 1_000_000, marks=SOAK),
    ],
)
def test_damaged_messages(
    tmp_path: Path, report: Callable[[Campaign], None], decoder: str, count: int
) -> None:
    total = Tally()
    size = -(-count // SLICES)
    # Separate processes, so that a crash or hang in one does not end this one.
    with ProcessPoolExecutor(SLICES, mp_context=multiprocessing.get_context("spawn")) as pool:
        for tally in pool.map(
            mutations.run,
            *(range(SLICES), repeat(size), repeat(tmp_path), repeat(decoder)),
            timeout=count / 100 + 60,
        ):
            total.add(tally)
    assert total.messages == size * SLICES >= count
    assert total.grown < 32 << 20
    assert total.refused.total() + total.accepted > count * 0.7
    assert 0.3 < total.compared / count < 0.9, "the messages must be of both kinds"
    if count >= 1_000_000:
        assert set(total.rejected) == REJECTED - NEED_MANY
        kinds = {"refused", "read all the same", "label kept", "last one counts"}
        assert total.odd.keys() == (kinds if decoder == "ptars" else set())
    assert decoder == "ptars" or not total.odd
    refused, rejected = total.refused.total(), total.rejected.total()
    note = (
        f"{refused} refused; of the others' predictions {rejected} rejected, {total.accepted} kept;"
        f" {total.compared} held against protobuf; {total.grown / 2**20:.0f} MiB grown"
    )
    report(Campaign(f"damaged messages, {decoder}", total.messages, 0, 0, 0, note))


def test_the_documentation_names_every_reason() -> None:
    source = (Path(mutations.__file__).parents[2] / "ingest_service/receive/checks.py").read_text()
    assert {reason for reason in REJECTED if reason in source} >= NEED_MANY
    of_contents = {"MALFORMED_MESSAGE", "INVALID_FIELD", "MESSAGE_TOO_LARGE"}
    assert of_contents | {"SEQUENCE_HOLE", "SEQUENCE_CONFLICT"} == mutations.REFUSED
