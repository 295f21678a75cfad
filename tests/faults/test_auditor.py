"""Tests that the auditor detects each kind of error."""

from pathlib import Path

import duckdb
import pytest

from ingest_service.store.duckdb.file_store import DuckDBStore
from tests.faults.auditor import Audit, audit
from tests.faults.ledger import Ledger, Life, read_lives

LIVES = [Life("a", 4, 3, ended=False), Life("b", 3, 3, ended=True)]
SOUND = [
    *(("INSERT", n, f"a/{n - 1}") for n in (1, 2, 3)),
    *(("INSERT", n, f"b/{n - 5}") for n in (5, 6)),
]
ROW = """
INSERT INTO predictions BY NAME SELECT 'gate-1' AS device_id, 's' AS spool_id, ? AS sequence,
    ? AS image_id, now() AS received_at, now() AS captured_at, 0 AS image_width,
    0 AS image_height, 'm' AS model_name, '' AS model_version, 'device' AS source,
    [{class_id: 1, class_name: if(sequence = 2, 'posed', 'thing'), confidence: 0.5, box: NULL,
        track_id: NULL}] AS detections, MAP {} AS labels, '' AS trace_id
"""
SHAPES = """
INSERT INTO prediction_shapes SELECT device_id, spool_id, sequence, received_at, NULL,
    [[{x: split_part(image_id, '/', 2)::FLOAT, y: 0, confidence: NULL}]], NULL
FROM predictions WHERE sequence = 2
"""
REJECTED = """
INSERT INTO rejected_predictions VALUES
    ('gate-1', 's', 7, now(), 'image_id', 'TOO_LONG', '{"image_id": "b/2"}')
"""
GAP = "INSERT INTO gaps VALUES ('gate-1', 's', 4, 4, now(), 'DROPPED_NEWEST', NULL)"
WATERMARK = """
    INSERT INTO watermarks (device_id, spool_id, committed_through, duplicates, updated_at)
    VALUES ('gate-1', 's', 7, 0, now())
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Return a store that agrees with the lives: a/0 to a/2, a gap, b/0, b/1, and b/2 rejected."""
    path = tmp_path / "log.duckdb"
    DuckDBStore(path).close()
    with duckdb.connect(str(path)) as connection:
        for _, sequence, image_id in SOUND:
            connection.execute(ROW, [sequence, image_id])
        for statement in (SHAPES, REJECTED, GAP, WATERMARK):
            connection.execute(statement)
    return path


def spoiled(database: Path, *statements: str) -> Audit:
    with duckdb.connect(str(database)) as connection:
        for statement in statements:
            connection.execute(statement)
    return audit(database, LIVES)


def test_a_sound_store(database: Path) -> None:
    counts = audit(database, LIVES)
    counts.check()
    assert counts == Audit(
        stored=6,
        spooled=6,
        missing=0,
        gap_sequences=1,
        doubled=0,
        claimed_twice=0,
        undeclared=0,
        strange=0,
        misshapen=0,
        balanced=True,
        spools=1,
    )


def test_what_is_missing_and_in_no_gap_is_lost(database: Path) -> None:
    counts = spoiled(database, "DELETE FROM predictions WHERE sequence IN (1, 2)")
    assert (counts.missing, counts.lost, counts.undeclared, counts.balanced) == (2, 1, 2, False)
    counts = spoiled(database, "DELETE FROM gaps")
    assert (counts.missing, counts.lost, counts.undeclared) == (2, 2, 3)


def test_a_rejected_one_without_an_image_id_hides_nothing(database: Path) -> None:
    counts = spoiled(database, "UPDATE rejected_predictions SET original = '{}'")
    assert (counts.missing, counts.strange) == (1, 1)
    counts = spoiled(database, "DELETE FROM predictions WHERE sequence IN (1, 2)")
    assert (counts.missing, counts.lost) == (3, 2)


def test_what_is_missing_in_the_middle_is_undeclared(database: Path) -> None:
    counts = spoiled(database, "DELETE FROM rejected_predictions")
    assert (counts.lost, counts.undeclared) == (0, 1)


def test_twins(database: Path) -> None:
    again = "INSERT INTO predictions SELECT * FROM predictions WHERE sequence = 2"
    counts = spoiled(database, again)
    assert (counts.doubled, counts.claimed_twice, counts.balanced) == (1, 1, False)


def test_a_twin_in_another_spool(database: Path) -> None:
    again = "INSERT INTO predictions SELECT * REPLACE ('t' AS spool_id, 1 AS sequence)"
    counts = spoiled(database, f"{again} FROM predictions WHERE sequence = 2")
    assert (counts.doubled, counts.claimed_twice) == (1, 0)


def test_a_gap_over_what_is_stored(database: Path) -> None:
    counts = spoiled(database, "UPDATE gaps SET first_sequence = 2")
    assert (counts.doubled, counts.claimed_twice) == (0, 2)


def test_what_nobody_logged_is_strange(database: Path) -> None:
    counts = spoiled(database, "UPDATE predictions SET image_id = 'a/4' WHERE image_id = 'b/0'")
    assert (counts.strange, counts.missing) == (1, 1)
    with pytest.raises(AssertionError):
        counts.check()


@pytest.mark.parametrize(
    ("statement", "count"),
    [
        ("DELETE FROM prediction_shapes", 1),
        ("DELETE FROM predictions WHERE sequence = 2", 1),
        ("INSERT INTO prediction_shapes SELECT * FROM prediction_shapes", 1),
        # The prediction has lost its own, and another has some.
        ("UPDATE prediction_shapes SET sequence = 3", 2),
        ("UPDATE prediction_shapes SET keypoints = [[{x: 7, y: 0, confidence: NULL}]]", 2),
    ],
)
def test_shapes_that_are_lost_or_doubled_or_of_another(
    database: Path, statement: str, count: int
) -> None:
    counts = spoiled(database, statement)
    assert counts.misshapen == count
    with pytest.raises(AssertionError):
        counts.check()


def test_a_ledger_whose_last_line_is_cut_off(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "a")
    ledger.will_log(20)
    ledger.has_spooled(10)
    with (tmp_path / "a.ledger").open("a") as file:
        file.write("spooled 2")
    assert read_lives(tmp_path) == [Life("a", 20, 10, ended=False)]
    assert ledger.image_id(3) == "a/3"
