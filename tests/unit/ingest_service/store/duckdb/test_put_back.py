"""Item 9: an older database or log that was put in the place of the current one is refused."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from ingest_service.store.duckdb import opening as duckdb_open
from ingest_service.store.duckdb.commit_record import commit_record_path, log_path
from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.duckdb.opening import StoreOpenError
from tests.unit.ingest_service.samples import spool
from tests.unit.ingest_service.stores import (
    ask,
    checkpoint,
    leave,
    log,
    make_of_old_format,
    opened,
    sequences,
    version,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.duckdb"


def bytes_of(path: Path) -> dict[str, bytes]:
    """Return the contents of a store's files, except the commit record."""
    return {
        file.name: file.read_bytes()
        for file in path.parent.glob(f"{path.name}*")
        if file != commit_record_path(path)
    }


def refused(path: Path, why: str) -> None:
    """Assert that the store is refused, and that its files are unchanged."""
    before = bytes_of(path)
    with pytest.raises(StoreOpenError, match=why) as caught:
        DuckDBStore(path)
    assert "\n" not in str(caught.value)
    assert bytes_of(path) == before


def two_moments(path: Path) -> tuple[Path, Path]:
    """Return the files of a service that was killed early, and of one killed after checkpoints."""
    with opened(path) as store:
        log(store, 1, 10)
        checkpoint(store)
        log(store, 11, 20)
        early = leave(path, path.parent / "early")
        checkpoint(store)
        log(store, 21, 30)
        checkpoint(store)
        log(store, 31, 40)
        late = leave(path, path.parent / "late")
    return early, late


def test_an_older_database_beside_a_newer_log_is_refused(path: Path) -> None:
    early, late = two_moments(path)
    shutil.copy(early, late)
    refused(late, r"older than its log .*put back the database and its log")
    commit_record_path(late).unlink()
    refused(late, "older than its log")


def test_duckdb_itself_refuses_a_log_of_another_checkpoint(path: Path) -> None:
    """DuckDB's own check, without ours, which comes first because its message says what to do."""
    early, late = two_moments(path)
    shutil.copy(early, late)
    with pytest.raises(duckdb.IOException, match="checkpoint iteration"):
        duckdb.connect(str(late))


def test_an_older_log_beside_a_newer_database_is_refused(path: Path) -> None:
    early, late = two_moments(path)
    shutil.copy(log_path(early), log_path(late))
    refused(late, "its log is (older than the database|missing, older or cut off)")


def test_a_log_of_another_database_is_refused(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.duckdb"
    with opened(other) as store:
        log(store, 1, 5)
        stranger = leave(other, tmp_path / "stranger")
    _, late = two_moments(path)
    shutil.copy(log_path(stranger), log_path(late))
    refused(late, "its log belongs to another database")


def test_a_missing_log_is_refused(path: Path) -> None:
    _, late = two_moments(path)
    log_path(late).unlink()
    refused(late, r"log is missing, older or cut off \(0 bytes of at least \d+ that were committed")


def test_a_log_that_was_cut_off_is_refused(path: Path) -> None:
    _, late = two_moments(path)
    whole = log_path(late).read_bytes()
    log_path(late).write_bytes(whole[: len(whole) // 2])
    refused(late, "log is missing, older or cut off")


def test_an_older_database_with_its_own_log_is_refused(path: Path) -> None:
    early, late = two_moments(path)
    shutil.copy(early, late)
    shutil.copy(log_path(early), log_path(late))
    refused(late, r"older than what the service committed \(it has had \d+ checkpoints of \d+\)")
    with opened(late, trust=True) as store:
        assert sequences(store) == list(range(1, 21))
    with opened(late) as store:
        log(store, 21, 22)


def test_another_database_is_refused(path: Path, tmp_path: Path) -> None:
    with opened(path) as store:
        log(store, 1, 5)
    other = tmp_path / "other.duckdb"
    with opened(other) as store:
        log(store, 1, 5)
    shutil.copy(other, path)
    refused(path, "another database than the one that the service wrote")


def test_a_database_that_is_gone_is_refused(path: Path) -> None:
    with opened(path) as store:
        log(store, 1, 5)
    path.unlink()
    refused(path, "it is gone, and it held committed predictions")
    with opened(path, trust=True) as store:
        assert sequences(store) == []


@pytest.mark.parametrize("moment", ["early", "late"])
def test_what_was_left_in_one_piece_is_taken(path: Path, moment: str) -> None:
    left = dict(zip(("early", "late"), two_moments(path), strict=True))[moment]
    with opened(left) as store:
        assert sequences(store) == list(range(1, 21 if moment == "early" else 41))


def test_a_database_that_duckdb_has_written_to_meanwhile_is_taken(path: Path) -> None:
    with opened(path) as store:
        log(store, 1, 5)
    with duckdb.connect(str(path)) as somebody:
        somebody.execute("CREATE TABLE notes (text VARCHAR)")
    with opened(path) as store:
        assert sequences(store) == list(range(1, 6))


def lose_rows(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("DELETE FROM predictions WHERE sequence > 3")


def jump(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("UPDATE watermarks SET committed_through = committed_through + 1000")


def double(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("INSERT INTO predictions SELECT * FROM predictions")


@pytest.mark.parametrize("change", [lose_rows, jump, double])
def test_books_that_do_not_balance_are_refused(
    path: Path, change: Callable[[duckdb.DuckDBPyConnection], None]
) -> None:
    with opened(path) as store:
        log(store, 1, 5, of=spool(7))
        log(store, 1, 5, of=spool(8))
    with duckdb.connect(str(path)) as somebody:
        change(somebody)
    refused(
        path,
        rf"books do not balance: the rows of spool {spool(7).spool_id} of device gate-7 .*restore",
    )
    with opened(path, trust=True) as store:
        store.check()


def test_a_file_of_the_old_format_is_brought_to_the_new_one_once(path: Path) -> None:
    make_of_old_format(path, 1000)
    assert version(path) == 64
    before = ask(path, "SELECT * FROM ledger")
    with opened(path) as store:
        assert sequences(store) == list(range(1, 1001))
        log(store, 1001, 1002)
    assert version(path) >= 67
    assert [row[:2] for row in ask(path, "SELECT * FROM ledger")] == [row[:2] for row in before]
    inode = path.stat().st_ino
    with opened(path) as store:
        assert len(sequences(store)) == 1002
    assert path.stat().st_ino == inode, "it was copied again"
    assert sorted(file.name for file in path.parent.iterdir()) == ["log.duckdb", "log.duckdb.mark"]


@pytest.mark.parametrize("step", ["copy_database", "sync_file"])
def test_a_migration_that_is_cut_short_is_begun_again(
    path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_of_old_format(path, 50)

    def die(*_: object) -> None:
        raise KeyboardInterrupt  # like a power failure: no cleanup follows

    with monkeypatch.context() as patched:
        patched.setattr(duckdb_open, step, die)
        with pytest.raises(KeyboardInterrupt):
            DuckDBStore(path)
    path.with_name(f"{path.name}.new-format").write_bytes(b"half of it")
    with opened(path) as store:
        assert sequences(store) == list(range(1, 51))
    assert version(path) >= 67


def test_a_log_from_before_the_new_format_is_refused(path: Path, tmp_path: Path) -> None:
    make_of_old_format(path, 50)
    with duckdb.connect(str(path)) as old:
        old.execute("DELETE FROM streams")
        shutil.copy(log_path(path), tmp_path / "old.wal")
    DuckDBStore(path).close()
    shutil.copy(tmp_path / "old.wal", log_path(path))
    refused(path, "written before the database was brought to a newer format")


def test_every_refusal_is_one_sentence_that_says_what_to_do(path: Path) -> None:
    early, late = two_moments(path)
    shutil.copy(early, late)
    with pytest.raises(StoreOpenError) as caught:
        DuckDBStore(late)
    assert re.search("put back", str(caught.value))
    assert str(late) in str(caught.value)


@pytest.fixture
def link(path: Path, tmp_path: Path) -> Path:
    """Create a link to the database at `path`, in a folder of its own."""
    link = tmp_path / "etc" / "sightline.duckdb"
    link.parent.mkdir()
    link.symlink_to(path)
    return link


def test_a_database_behind_a_link_is_held_against_its_log(path: Path, link: Path) -> None:
    """DuckDB keeps the log beside the file itself, not beside the link."""
    early, late = two_moments(path)
    shutil.copy(early, path)
    shutil.copy(log_path(late), path.with_name(f"{path.name}.wal"))
    with pytest.raises(StoreOpenError, match="older than its log"):
        DuckDBStore(link)
    shutil.copy(late, path)
    path.with_name(f"{path.name}.wal").unlink()
    shutil.copy(commit_record_path(late), commit_record_path(path))
    with pytest.raises(StoreOpenError, match="its log is missing"):
        DuckDBStore(link)
    assert [file.name for file in link.parent.iterdir()] == [link.name]


def test_a_migration_leaves_a_link_a_link(path: Path, link: Path) -> None:
    """The database stays on the disk to which the link leads."""
    make_of_old_format(path, 50)
    with opened(link) as store:
        assert sequences(store) == list(range(1, 51))
    assert link.is_symlink()
    assert version(path) >= 67
    assert sorted(file.name for file in link.parent.iterdir()) == [link.name]


def test_a_database_has_one_mark_by_whatever_name_it_is_opened(path: Path, link: Path) -> None:
    with opened(link) as store:
        log(store, 1, 5)
        with pytest.raises(StoreOpenError, match="another process has it open"):
            DuckDBStore(path)
    with opened(path) as store:
        assert sequences(store) == [1, 2, 3, 4, 5]
