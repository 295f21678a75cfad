"""Rotated boxes, keypoints and masks in their table, and files from before there was one."""

import contextlib
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import duckdb
import pytest
from sightline.types.v1.prediction_pb2 import Detection, Prediction

from ingest_service.receive.decode import Decoder
from ingest_service.receive.group_writer import GroupWriter
from ingest_service.store.duckdb import database_copy, migrations
from ingest_service.store.duckdb.database_copy import copy_database
from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.duckdb.restore import restore
from ingest_service.store.protocol import Filter, SpoolKey
from ingest_service.translate import stored_to_proto
from tests.unit.ingest_service.receive.conftest import decoder as decoder
from tests.unit.ingest_service.samples import (
    NOW,
    detection,
    message,
    prediction,
    predictions,
    shapes,
)
from tests.unit.ingest_service.store_conformance import (
    BeforeCommit,
    MovableClock,
    commit,
    everything,
    exported,
    outcomes_of,
    page,
    update_rollups,
)
from tests.unit.ingest_service.stores import ask, checkpoint, leave, opened, sequences

OLD = (1, 2, 3)
"""Versions of the schema that have no table of shapes."""
NEW_COLUMNS = ("rotated_boxes", "keypoints", "masks")
NEW_TABLES = {"prediction_shapes", "predictions_with_shapes"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.duckdb"


def sent_back(store: DuckDBStore) -> list[Prediction]:
    """Return the stored predictions as messages, by sequence."""
    stored = [stored_to_proto(row).prediction for row in everything(store)]
    return sorted(stored, key=lambda row: row.sequence)


def mixed(count: int, chance: random.Random | None = None) -> list[list[Detection]]:
    """Return detections of all kinds, in every order and number, and predictions without any."""
    chance = chance or random.Random(count)
    kinds = [detection(), detection(box=None), *shapes()]
    return [[chance.choice(kinds) for _ in range(chance.randrange(5))] for _ in range(count)]


def numbered(rows: Sequence[Sequence[Detection]]) -> list[Prediction]:
    return [prediction(number, detections=row) for number, row in enumerate(rows, 1)]


def test_mixed_detections_come_back_in_any_group(path: Path, decoder: Decoder) -> None:
    rows = [*mixed(60), shapes(), *[[shape] for shape in shapes()], [], [detection()]]
    sent = numbered(rows)
    cuts = [0, 1, 10, 10, 40, len(sent)]
    with opened(path) as store:
        writer = GroupWriter(store, lambda: NOW, decoder=decoder)
        for start, end in pairwise(cuts):
            (outcome,) = outcomes_of(writer, [message(*sent[start:end])])
            assert (outcome.error, outcome.rejections) == (None, ())
        assert sent_back(store) == sent
        checkpoint(store)
        assert sent_back(store) == sent
    with opened(path) as store:
        assert sent_back(store) == sent


def test_what_keeps_the_rules_is_stored_beside_what_breaks_one(path: Path) -> None:
    sent = numbered([shapes(), [detection(), detection(mask={})], [], shapes()[::-1]])
    with opened(path) as store:
        commit(store, message(*sent))
        assert sent_back(store) == [sent[0], sent[2], sent[3]]
        rejected = "SELECT sequence, field, reason FROM rejected_predictions"
        with contextlib.closing(store._cursor()) as cursor:
            assert cursor.execute(rejected).fetchall() == [(2, "detections[1].mask", "MASK_EMPTY")]


def test_a_prediction_without_shapes_has_null_in_their_columns(path: Path) -> None:
    pose, turned = shapes()[2:]
    with opened(path) as store:
        commit(store, message(*numbered([[detection()], [detection(), pose], [turned, pose], []])))
    rows = ask(
        path,
        "SELECT rotated_boxes, keypoints, masks FROM predictions_with_shapes ORDER BY sequence",
    )
    points = [
        {"x": 5.0, "y": -6.5, "confidence": 0.25},
        {"x": 7.0, "y": 8.0, "confidence": None},
    ]
    box = {"center_x": 15.0, "center_y": 20.0, "width": 9.0, "height": 4.0, "angle": 0.5}
    assert rows == [
        (None, None, None),
        (None, [[], points], None),
        ([box, None], [[], points], None),
        (None, None, None),
    ]


_KEYS = "SELECT device_id, spool_id, sequence, received_at::VARCHAR"


def shaped(path: Path) -> list[int]:
    """Return the sequences in the table of shapes, each of which has its prediction."""
    ((alone,),) = ask(
        path,
        f"SELECT count(*) FROM ({_KEYS} FROM prediction_shapes EXCEPT {_KEYS} FROM predictions)",
    )
    assert alone == 0
    rows = ask(path, "SELECT sequence FROM prediction_shapes ORDER BY ALL")
    return [sequence for (sequence,) in rows]


def test_shapes_are_stored_once_and_with_their_prediction(path: Path) -> None:
    sent = numbered([shapes(), [detection()], shapes()[:1], [], shapes()[3:], shapes()])

    def fail() -> None:
        raise RuntimeError("power")

    with opened(path) as store:
        commit(store, message(*sent[:2]))
        with pytest.raises(RuntimeError, match="power"):
            outcomes_of(GroupWriter(BeforeCommit(store, fail), lambda: NOW), [message(*sent)])
        assert sent_back(store) == sent[:2]
        commit(store, message(*sent[:4]))
        commit(store, message(*sent), message(*sent, stream=1))
        assert sent_back(store) == sent
    assert shaped(path) == [1, 3, 5, 6]


def test_shapes_are_deleted_with_their_prediction(path: Path) -> None:
    clock = MovableClock()
    with opened(path) as store:
        for number in (1, 2, 3):
            commit(store, message(prediction(number, detections=shapes())), now=clock)
            update_rollups(store)
            clock.time += timedelta(days=1)
        before = NOW + timedelta(hours=36)
        assert store.maintenance().expire(before, exported_only=False) == 2
        assert sent_back(store) == [prediction(3, detections=shapes())]
    assert shaped(path) == [3]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_pages_have_the_shapes_of_their_own_rows(path: Path, size: int) -> None:
    """The same sequences of several devices and spools, in one commit and in several."""
    spools = [SpoolKey(device, name) for device in ("gate-1", "gate-2") for name in ("a", "b")]
    chance, clock = random.Random(size), MovableClock()
    sent: dict[tuple[object, ...], Prediction] = {}
    with opened(path) as store:
        for start in (1, 4):
            parts = {of: numbered(mixed(6, chance))[start - 1 : start + 2] for of in spools}
            sent |= {(*of, part.sequence): part for of, rows in parts.items() for part in rows}
            messages = [
                message(*rows, of=of, stream=at) for at, (of, rows) in enumerate(parts.items())
            ]
            commit(store, *messages, now=clock)
            clock.tick()
        for filter_ in (Filter(), Filter(device_ids=("gate-2",)), Filter(min_confidence=0.5)):
            seen: dict[tuple[object, ...], Prediction] = {}
            after = None
            while rows := page(store, size, after, filter_):
                after = rows[-1].position
                seen |= {row.position[1:]: stored_to_proto(row).prediction for row in rows}
            assert seen == {
                key: part
                for key, part in sent.items()
                if key[0] in (filter_.device_ids or key)
                and (part.detections or filter_.min_confidence is None)
            }


def test_shapes_are_exported_and_copied(path: Path, tmp_path: Path) -> None:
    sent = numbered(mixed(30))
    with opened(path) as store:
        commit(store, message(*sent))
        update_rollups(store)
        assert store.maintenance().export(tmp_path / "out", NOW) == 1
        with contextlib.closing(store._cursor()) as cursor:
            copied = copy_database(cursor, tmp_path / "copy.duckdb", lambda *_: None)
    assert copied.predictions == 30
    with opened(tmp_path / "copy.duckdb", trust=True) as store:
        assert sent_back(store) == sent
    rows = sorted(exported(tmp_path / "out"), key=lambda row: row["sequence"])
    for row, stored in zip(rows, ask(path, _SHAPES), strict=True):
        assert tuple(row[name] for name in NEW_COLUMNS) == stored


def test_a_copy_takes_large_rows_in_small_parts(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_copy, "_STATEMENT_BYTES", 1)
    calls: list[int] = []
    with opened(path) as store, contextlib.closing(store._cursor()) as cursor:
        commit(store, message(*predictions(1, 5000)))
        copy_database(cursor, tmp_path / "copy.duckdb", lambda done, _: calls.append(done))
    assert calls[:3] == [2048, 4096, 5000]


_SHAPES = f"SELECT {', '.join(NEW_COLUMNS)} FROM predictions_with_shapes ORDER BY sequence"


@pytest.fixture(params=OLD)
def old(request: pytest.FixtureRequest, path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file of an older version with three predictions."""
    if request.param == 3:  # from here on, the store of today can write it
        with monkeypatch.context() as patch:
            patch.setattr(migrations, "VERSIONS", migrations.VERSIONS[:3])
            with opened(path) as store:
                commit(store, message(*predictions(1, 3)))
        return path
    new = path.with_name("new.duckdb")
    with opened(new) as store:
        commit(store, message(*predictions(1, 3)))
    with monkeypatch.context() as patch, duckdb.connect(path) as connection:
        patch.setattr(migrations, "VERSIONS", migrations.VERSIONS[: request.param])
        migrations.migrate(connection)
        connection.execute(f"ATTACH '{new}' AS new")
        for table in ("predictions", "watermarks", "streams"):
            columns = ", ".join(connection.table(table).columns)
            connection.execute(f"INSERT INTO {table} SELECT {columns} FROM new.{table}")
    return path


def test_an_old_file_gets_the_table_and_keeps_its_rows(old: Path) -> None:
    before = predictions(1, 3)
    with opened(old) as store:
        assert sent_back(store) == before
        added = [prediction(4, detections=shapes()), prediction(5)]
        commit(store, message(*added))
        assert sent_back(store) == [*before, *added]
    with opened(old) as store:
        assert sent_back(store) == [*before, *added]
    newest = len(migrations.VERSIONS)
    assert ask(old, "SELECT max(version), count(*) FROM schema_version")[0][0] == newest


KILLED = """
import os, signal, sys
from pathlib import Path
from ingest_service.store.duckdb import migrations, opening
from ingest_service.store.duckdb.file_store import DuckDBStore

class Killing:
    def __init__(self, connection):
        self.connection, self.calls = connection, 0

    def execute(self, *statement):
        result = self.connection.execute(*statement)
        self.calls += 1
        if self.calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

opening.migrate = lambda connection: migrations.migrate(Killing(connection))
DuckDBStore(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("old", [3], indirect=True)
def test_a_migration_that_is_killed_anywhere_is_begun_again(old: Path, tmp_path: Path) -> None:
    # Statements: the table of versions, its version, BEGIN, the script, the new version, COMMIT.
    copies = {calls: leave(old, tmp_path / f"killed-{calls}") for calls in (4, 5, 6)}
    running = [
        subprocess.Popen([sys.executable, "-c", KILLED, str(copy), str(calls)])
        for calls, copy in copies.items()
    ]
    assert [process.wait(60) for process in running] == [-signal.SIGKILL] * 3
    for calls, copy in copies.items():
        with duckdb.connect(leave(copy, tmp_path / f"seen-{calls}")) as connection:
            rows = connection.execute("SELECT max(version) FROM schema_version").fetchall()
            names = {name for (name,) in connection.execute("SHOW TABLES").fetchall()}
        committed = calls == 6
        assert rows == [(4 if committed else 3,)]
        assert names & NEW_TABLES == (NEW_TABLES if committed else set())
        with opened(copy) as store:
            commit(store, message(prediction(4, detections=shapes())))
            assert sequences(store) == [1, 2, 3, 4]


def test_a_backup_of_an_old_file_is_restored_and_migrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, backup = tmp_path / "old.duckdb", tmp_path / "backup.duckdb"
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "VERSIONS", migrations.VERSIONS[:3])
        with opened(path) as store, contextlib.closing(store._cursor()) as cursor:
            commit(store, message(*predictions(1, 3)))
            copy_database(cursor, backup, lambda *_: None)
    restore(backup, tmp_path / "new.duckdb")
    with opened(tmp_path / "new.duckdb") as store:
        assert sent_back(store) == predictions(1, 3)
