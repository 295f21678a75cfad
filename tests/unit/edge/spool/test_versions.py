"""Files of other versions of the spool: `version1.db` was written by the code of version 1."""

import shutil
import sqlite3
from pathlib import Path

import pytest
from sightline.types.v1 import prediction_pb2

from edge.spool import identity as identities
from edge.spool.entries import Row
from edge.spool.identity import VERSION, Identity
from edge.spool.inspect import verify
from edge.spool.spool import Spool
from edge.spool.superblock import FileLocation, SpoolClockReading, Superblock, SuperblockFile
from servicekit.errors import SightlineError
from tests.unit.edge.spool.test_spool import Opened, body, opened, sequences

OLD = Path(__file__).with_name("version1.db")
EXPECTED = [
    *(3, 4, 5),
    (6, 7, "DROPPED_OLDEST"),
    8,
    (9, 9, "SPOOL_WRITE_FAILED"),
    10,
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(OLD, tmp_path / "spool.db")
    return tmp_path


def images(rig: Opened, after: int) -> list[str]:
    return [
        prediction_pb2.Prediction.FromString(entry.prediction).image_id
        for entry in rig.spool.read(rig.id, after, 100, 1 << 20)
        if isinstance(entry, Row)
    ]


def test_a_file_of_version_1_goes_on(folder: Path) -> None:
    rig = opened(folder)
    assert rig.spool.identity.acknowledged == 2
    assert sequences(rig, 2) == EXPECTED
    assert images(rig, 2) == [f"part-{n}.jpg" for n in (3, 4, 5, 8, 10)]
    rig.spool.append([body("new")])
    rig.spool.close()
    assert verify(folder / "spool.db").is_sound
    rig = opened(folder)
    assert sequences(rig, 2) == [*EXPECTED, 11]
    rig.spool.acknowledge(rig.id, 4)
    rig.spool.renew(rig.id)
    assert images(rig, 0) == [f"part-{n}.jpg" for n in (5, 8, 10)] + ["new"]
    rig.spool.close()


def test_a_damaged_row_of_version_1_is_noticed(folder: Path) -> None:
    with sqlite3.connect(folder / "spool.db") as db:
        db.execute("UPDATE predictions SET prediction = x'08' WHERE sequence = 4")
        db.execute("UPDATE predictions SET checksum = checksum + 1 WHERE sequence = 8")
    db.close()
    rig = opened(folder)
    assert sequences(rig, 2)[1] == (4, 4, "SPOOL_DAMAGED")
    assert sequences(rig, 7)[0] == (8, 8, "SPOOL_DAMAGED")
    rig.spool.close()


def test_a_damaged_file_of_version_1_is_salvaged(folder: Path) -> None:
    rig = opened(folder)
    rig.spool._recover(RuntimeError("as if"))
    assert sequences(rig, 2) == EXPECTED
    rig.spool.close()


def test_a_note_of_a_later_version_keeps_even_a_damaged_file_untouched(tmp_path: Path) -> None:
    superblock_file = SuperblockFile(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identities, "VERSION", VERSION + 1)
        identities.encode.cache_clear()
        superblock_file.write(
            Superblock(Identity("gate-1", "x"), 0, FileLocation(), SpoolClockReading(0.0, 0.0, ""))
        )
        identities.encode.cache_clear()
    superblock_file.close()
    (tmp_path / "spool.db").write_bytes(b"who knows" * 1000)
    with pytest.raises(SightlineError, match="later version") as caught:
        opened(tmp_path)
    assert caught.value.reason == "SPOOL_TOO_NEW"
    assert (tmp_path / "spool.db").read_bytes() == b"who knows" * 1000


def test_what_is_set_aside_of_version_1_is_readable(folder: Path) -> None:
    """Without a note, and with its header gone."""
    data = (folder / "spool.db").read_bytes()
    (folder / "spool.db").write_bytes(bytes(100) + data[100:])
    spool = Spool(folder, "gate-1", opened.__defaults__[0], lambda _: None)  # type: ignore[index]
    spool.close()
    (fork,) = (folder / "forks").iterdir()
    rig = opened(fork)
    assert [entry for entry in sequences(rig, 2) if isinstance(entry, int)] == [3, 4, 5, 8, 10]
    rig.spool.close()
