import sqlite3
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from servicekit.auth.caller import Scope
from servicekit.auth.key_file import CHECK_SECONDS, KeyFile, KeyFileError, KeyReader


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self) -> None:
        self.now += CHECK_SECONDS


SOON = datetime.now(UTC) + timedelta(days=1)


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.db")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make(file: KeyFile, name: str = "gate-1") -> str:
    return file.create(name, devices=[name], scopes=[Scope.LOG])[1].id


def test_what_is_made_is_listed(file: KeyFile, tmp_path: Path) -> None:
    end = datetime(2027, 1, 1, tzinfo=UTC)
    text, key = file.create(
        "é", devices=["a", "b-*"], scopes=[Scope.LOG, Scope.READ], expires_at=end
    )
    make(file)
    first, second = file.all()
    assert first == key
    assert (first.devices, first.scopes) == (("a", "b-*"), (Scope.LOG, Scope.READ))
    assert (first.expires_at, first.revoked_at) == (end, None)
    assert second.name == "gate-1"
    assert text[-43:].encode() not in (tmp_path / "keys.db").read_bytes()


def test_only_its_owner_may_read_the_file(file: KeyFile, tmp_path: Path) -> None:
    make(file)
    assert stat.S_IMODE((tmp_path / "keys.db").stat().st_mode) == 0o600


def test_a_rotated_key_has_an_heir_and_an_end(file: KeyFile) -> None:
    _, old = file.create("gate-1", devices=["a", "b-*"], scopes=[Scope.LOG, Scope.READ])
    _, new = file.rotate(old.id, old_ends_at=SOON)
    ending, heir = file.all()
    assert heir == new
    assert (heir.name, heir.devices, heir.scopes) == (old.name, old.devices, old.scopes)
    assert (ending.id, ending.expires_at, heir.expires_at) == (old.id, SOON, None)


def test_rotating_lets_no_key_live_longer(file: KeyFile) -> None:
    sooner = SOON - timedelta(hours=1)
    _, old = file.create("g", devices=["*"], scopes=[Scope.LOG], expires_at=sooner)
    file.rotate(old.id, old_ends_at=SOON, expires_at=SOON)
    ending, heir = file.all()
    assert (ending.expires_at, heir.expires_at) == (sooner, SOON)


def test_a_key_that_has_ended_has_no_heir(file: KeyFile) -> None:
    key_id = make(file)
    file.revoke(key_id)
    for gone, why in ((key_id, "has ended"), ("0123456789ab", "no key")):
        with pytest.raises(KeyFileError, match=why):
            file.rotate(gone, old_ends_at=SOON)
    assert len(file.all()) == 1


def test_revoking_is_for_good(file: KeyFile) -> None:
    key_id = make(file)
    assert file.revoke(key_id)
    (first,) = file.all()
    assert first.revoked_at is not None
    assert not file.revoke(key_id)
    assert file.all() == [first]
    with pytest.raises(KeyFileError, match="has no key 0123"):
        file.revoke("0123")


@pytest.mark.parametrize(
    ("name", "devices", "scopes", "complaint"),
    [
        ("", ["a"], [Scope.LOG], "name: must be 1 to 256 bytes"),
        ("x" * 257, ["a"], [Scope.LOG], "name: must be"),
        ("\udcff", ["a"], [Scope.LOG], "name: must be"),  # an argument that is no UTF-8
        ("a", ["\udcff"], [Scope.LOG], "devices: "),
        ("a", ["a*b"], [Scope.LOG], r"devices: may have one \*, at its end"),
        ("a", ["a"], [], "scopes: must be at least one"),
    ],
)
def test_a_bad_key_is_not_made(
    file: KeyFile,
    tmp_path: Path,
    name: str,
    devices: list[str],
    scopes: list[Scope],
    complaint: str,
) -> None:
    with pytest.raises(KeyFileError, match=complaint):
        file.create(name, devices=devices, scopes=scopes)
    assert not (tmp_path / "keys.db").exists()


def test_a_file_that_is_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE spool (x)")
    before = path.read_bytes()
    for use in (make, KeyFile.all, lambda file: file.revoke("0")):
        with pytest.raises(KeyFileError, match="cannot be used as a file of API keys: its version"):
            use(KeyFile(path))
    assert path.read_bytes() == before
    (tmp_path / "text").write_text("no database" * 100)
    with pytest.raises(KeyFileError, match="not a database"):
        KeyReader(tmp_path / "text")


def test_a_file_that_is_not_there_says_how_to_make_it(tmp_path: Path) -> None:
    for use in (
        KeyReader,
        lambda path: KeyFile(path).all(),
        lambda path: KeyFile(path).revoke("0"),
    ):
        with pytest.raises(
            KeyFileError, match="does not exist: `sightline keys create` creates it"
        ):
            use(tmp_path / "keys.db")
    with pytest.raises(KeyFileError, match="its folder does not exist"):
        make(KeyFile(tmp_path / "nowhere" / "keys.db"))


def test_a_reader_sees_each_change_and_asks_seldom(
    file: KeyFile, tmp_path: Path, clock: Clock
) -> None:
    first = make(file)
    reader = KeyReader(tmp_path / "keys.db", clock)
    assert set(reader.current()) == {first}
    for number in range(20):  # faster than a file's time stamp moves
        made = make(file, f"n{number}")
        assert made not in reader.current()
        clock.pass_by()
        assert made in reader.current()
        file.revoke(made)
        assert reader.current()[made].revoked_at is None
        clock.pass_by()
        assert reader.current()[made].revoked_at is not None
    unchanged = reader.current()
    clock.pass_by()
    assert reader.current() is unchanged  # not read again


def test_a_reader_follows_a_file_that_is_replaced(
    file: KeyFile, tmp_path: Path, clock: Clock
) -> None:
    make(file)
    reader = KeyReader(tmp_path / "keys.db", clock)
    made = make(KeyFile(tmp_path / "new.db"), "gate-2")
    (tmp_path / "new.db").replace(tmp_path / "keys.db")
    clock.pass_by()
    assert set(reader.current()) == {made}


def test_a_reader_keeps_what_it_knows_when_the_file_is_gone(
    file: KeyFile, tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    made = make(file)
    reader = KeyReader(tmp_path / "keys.db", clock)
    (tmp_path / "keys.db").unlink()
    for _ in range(3):
        clock.pass_by()
        assert set(reader.current()) == {made}
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "the keys that were read last stay in use" in caplog.text
    other = make(file, "gate-2")
    clock.pass_by()
    assert set(reader.current()) == {other}


def test_a_reader_comes_back_to_the_file_it_knew(
    file: KeyFile, tmp_path: Path, clock: Clock
) -> None:
    """Something else took its place for a while: a key that was revoked must not live on."""
    path, aside = tmp_path / "keys.db", tmp_path / "aside"
    made = make(file)
    reader = KeyReader(path, clock)
    path.rename(aside)
    path.mkdir()
    clock.pass_by()
    assert set(reader.current()) == {made}
    path.rmdir()
    aside.rename(path)
    file.revoke(made)
    clock.pass_by()
    assert reader.current()[made].revoked_at is not None


def test_a_reader_does_not_wait_for_a_writer(file: KeyFile, tmp_path: Path, clock: Clock) -> None:
    made = make(file)
    reader = KeyReader(tmp_path / "keys.db", clock)
    with sqlite3.connect(tmp_path / "keys.db", isolation_level=None) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        clock.pass_by()
        assert set(reader.current()) == {made}
        writer.execute("ROLLBACK")
    writer.close()
