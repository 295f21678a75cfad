"""The folder of uploads: quotas, room, expiry, damage, and what killed processes leave."""

import fcntl
import hashlib
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from inference_service.uploads.errors import UploadStoreError
from inference_service.uploads.index import StoreLimits
from inference_service.uploads.reference import Claim
from inference_service.uploads.store import Incoming, UploadStore
from servicekit.errors import SightlineError

LIMITS = StoreLimits(max_bytes=1000, quota_bytes=500, quota_count=3, disk_reserve_bytes=0)
HOUR = 3600.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[UploadStore]:
    created = UploadStore(str(tmp_path / "uploads"), LIMITS)
    yield created
    created.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "uploads"


def content(size: int, seed: str = "") -> bytes:
    return (seed * size).encode()[:size].ljust(size, b".")


def begin(store: UploadStore, data: bytes, owner: str = "a", now: float = 0.0) -> Incoming:
    return store.begin(owner, owner, hashlib.sha256(data).digest(), len(data), now)


def put(store: UploadStore, data: bytes, owner: str = "a", now: float = 0.0) -> Claim:
    incoming = begin(store, data, owner, now)
    store.append(incoming, data)
    store.finish(incoming, now + HOUR)
    return Claim(incoming.arrival.sha256, len(data), now + HOUR)


def refused(store: UploadStore, data: bytes, owner: str = "a", now: float = 0.0) -> SightlineError:
    with pytest.raises(SightlineError) as caught:
        begin(store, data, owner, now)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    return caught.value


def files(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if not p.name.startswith(("uploads.", "reference."))]


def test_what_was_put_is_read(store: UploadStore, folder: Path) -> None:
    data = content(100)
    claim = put(store, data)
    assert store.read(claim) == data
    assert files(folder) == [hashlib.sha256(data).hexdigest()]


def test_an_upload_under_way_is_not_there_yet(store: UploadStore) -> None:
    data = content(100)
    incoming = begin(store, data)
    store.append(incoming, data)
    assert store.content(incoming) == data
    with pytest.raises(SightlineError, match="REFERENCE_GONE"):
        store.read(Claim(incoming.arrival.sha256, 100, HOUR))


def test_an_aborted_upload_leaves_nothing(store: UploadStore, folder: Path) -> None:
    for _ in range(5):  # nor does its room stay taken
        incoming = begin(store, content(400))
        store.append(incoming, b"some")
        store.abort(incoming)
        store.abort(incoming)
    assert not files(folder)


def test_an_abort_after_the_end_does_nothing(store: UploadStore) -> None:
    data = content(10)
    incoming = begin(store, data)
    store.append(incoming, data)
    store.finish(incoming, HOUR)
    store.abort(incoming)
    assert store.read(Claim(incoming.arrival.sha256, 10, HOUR)) == data


def test_a_quota_of_bytes(store: UploadStore) -> None:
    put(store, content(300, "x"), now=0.0)
    put(store, content(200, "y"), now=100.0)
    error = refused(store, content(1), now=200.0)
    assert error.reason == "UPLOAD_QUOTA_EXCEEDED"
    assert error.quotas[0].description == "500 bytes of images uploaded"
    assert error.retry_after == HOUR - 200  # the first expires
    assert refused(store, content(400), now=200.0).retry_after == HOUR - 100  # both have to
    put(store, content(300), now=HOUR)
    put(store, content(500), "b", now=HOUR)


def test_a_quota_of_images(store: UploadStore) -> None:
    for number in range(3):
        put(store, content(1, str(number)), now=float(number))
    error = refused(store, content(1), now=10.0)
    assert error.quotas[0].description == "3 images uploaded"
    assert error.retry_after == HOUR - 10
    put(store, content(1), "b", now=10.0)


def test_what_is_under_way_counts(store: UploadStore) -> None:
    first = begin(store, content(300, "x"))
    error = refused(store, content(300))
    assert (error.reason, error.retry_after) == ("UPLOAD_QUOTA_EXCEEDED", 1.0)  # it may end soon
    begin(store, content(500), "b")
    assert refused(store, content(300), "c").reason == "UPLOAD_STORE_FULL"
    store.abort(first)
    begin(store, content(300), "c")


def test_an_upload_can_be_repeated_by_who_is_at_its_quota(store: UploadStore) -> None:
    data = content(500)
    put(store, data, now=0.0)
    first = begin(store, data, now=10.0)
    assert refused(store, data, now=10.0).reason == "UPLOAD_QUOTA_EXCEEDED"  # once at a time
    store.append(first, data)
    store.finish(first, 10.0 + HOUR)
    store.clean(HOUR)
    assert store.read(Claim(first.arrival.sha256, 500, 10.0 + HOUR)) == data


def test_the_store_is_full(store: UploadStore) -> None:
    put(store, content(500, "x"), "a", now=0.0)
    put(store, content(500, "y"), "b", now=50.0)
    error = refused(store, content(1), "c", now=60.0)
    assert error.reason == "UPLOAD_STORE_FULL"
    assert "1000 bytes in total" in error.message
    assert error.retry_after == HOUR - 60


def test_content_that_several_have_counts_once_and_stays_for_the_last(
    store: UploadStore, folder: Path
) -> None:
    data = content(400)
    for number, owner in enumerate("abc"):
        claim = put(store, data, owner, now=100.0 * number)
    put(store, content(500), "d", now=200.0)
    assert store.clean(HOUR + 100) == 2
    assert store.read(claim) == data
    assert store.clean(HOUR + 200) == 2
    assert not files(folder)


def test_a_new_upload_removes_what_has_expired(store: UploadStore, folder: Path) -> None:
    put(store, content(500, "x"), "a")
    put(store, content(500, "y"), "b")
    put(store, content(500), "c", now=HOUR)
    assert len(files(folder)) == 1


def test_more_than_fits_one_step_is_cleaned_up(tmp_path: Path) -> None:
    roomy = StoreLimits(10**6, 10**6, 10**6, 0)
    with closing(UploadStore(str(tmp_path / "many"), roomy)) as store:
        for number in range(600):
            put(store, content(8, f"{number:8}"))
        assert store.clean(HOUR) == 600
        assert not files(tmp_path / "many")


def test_a_file_that_is_being_read_can_be_removed(store: UploadStore, folder: Path) -> None:
    data = content(400)
    claim = put(store, data)
    with (folder / hashlib.sha256(data).hexdigest()).open("rb") as file:
        store.clean(HOUR)
        assert not files(folder)
        assert file.read() == data
    with pytest.raises(SightlineError, match="REFERENCE_GONE"):
        store.read(claim)


@pytest.mark.parametrize("damage", [b"", b"x" * 400, content(401)])
def test_a_damaged_file_is_not_handed_out(store: UploadStore, folder: Path, damage: bytes) -> None:
    data = content(400)
    claim = put(store, data)
    (folder / hashlib.sha256(data).hexdigest()).write_bytes(damage)
    with pytest.raises(SightlineError, match="REFERENCE_GONE"):
        store.read(claim)
    put(store, data)
    assert store.read(claim) == data


def test_leftovers_of_a_killed_process_are_removed(store: UploadStore, folder: Path) -> None:
    kept = put(store, content(10))
    running = begin(store, content(20), "b")
    killed = begin(store, content(450, "k"), "c")
    killed.file.close()  # as its end does
    lost = begin(store, content(30), "d")
    lost.path.unlink()
    lost.file.close()
    orphan = hashlib.sha256(b"renamed, but its commit was not made").hexdigest()
    (folder / orphan).touch()
    (folder / "somebody's file").touch()
    with closing(UploadStore(str(folder), LIMITS)) as again:
        expected = {kept.sha256.hex(), running.arrival.part, "somebody's file"}
        assert set(files(folder)) == expected
        begin(again, content(450), "c")
        begin(again, content(500), "d")
    store.append(running, content(20))
    store.finish(running, HOUR)


def test_leftovers_of_others_are_removed_while_serving(store: UploadStore, folder: Path) -> None:
    killed = begin(store, content(20))
    killed.file.close()
    store.clean(0.0)
    assert not files(folder)


def test_two_stores_on_one_folder_share_quotas_and_key(store: UploadStore, folder: Path) -> None:
    with closing(UploadStore(str(folder), LIMITS)) as twin:
        assert twin.key() == store.key()
        claim = put(twin, content(400))
        assert store.read(claim) == content(400)
        assert refused(store, content(200)).reason == "UPLOAD_QUOTA_EXCEEDED"


def test_the_key_is_made_once_by_whoever_is_first(tmp_path: Path) -> None:
    stores = [UploadStore(str(tmp_path / "uploads"), LIMITS) for _ in range(8)]
    barrier = threading.Barrier(len(stores))

    def key(store: UploadStore) -> bytes:
        barrier.wait()
        return store.key()

    with ThreadPoolExecutor(len(stores)) as pool:
        assert len(set(pool.map(key, stores))) == 1
    path = tmp_path / "uploads" / "reference.key"
    assert path.stat().st_mode & 0o777 == 0o600
    for store in stores:
        store.close()


def test_a_key_that_is_none(store: UploadStore, folder: Path) -> None:
    (folder / "reference.key").write_bytes(b"short")
    with pytest.raises(UploadStoreError, match=r"reference.key must contain 32 bytes \(got 5\)"):
        store.key()


def test_free_disk_space_is_left_alone(tmp_path: Path) -> None:
    limits = StoreLimits(1000, 500, 3, disk_reserve_bytes=1 << 60)
    with closing(UploadStore(str(tmp_path), limits)) as store:
        error = refused(store, content(1))
        assert error.reason == "UPLOAD_STORE_FULL"
        assert str(1 << 60) in error.message


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_disk_that_is_full(store: UploadStore) -> None:
    incoming = begin(store, content(100))
    with open("/dev/full", "r+b", buffering=0) as full:  # noqa: PTH123 - a device
        incoming.file.close()
        incoming.file = full
        with pytest.raises(SightlineError) as caught:
            store.append(incoming, content(100))
    assert caught.value.reason == "UPLOAD_STORE_FULL"


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "uploads.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(UploadStoreError, match="cannot open"):
        UploadStore(str(tmp_path), LIMITS)


def test_a_database_that_is_locked_is_reported(store: UploadStore, folder: Path) -> None:
    store._index._database.execute("PRAGMA busy_timeout = 0")
    with closing(sqlite3.connect(folder / "uploads.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UploadStoreError, match="locked"):
            begin(store, content(1))
    begin(store, content(1))


def test_a_temporary_folder_ends_with_the_store() -> None:
    store = UploadStore("", LIMITS)
    put(store, content(10))
    folder = store._folder
    assert folder.stat().st_mode & 0o777 == 0o700
    store.close()
    assert not folder.exists()


def test_a_part_is_locked_by_its_writer(store: UploadStore) -> None:
    incoming = begin(store, content(1))
    with incoming.path.open("rb") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


class UploadStoreMachine(RuleBasedStateMachine):
    """Whatever order uploads begin, end, expire and are lost in: the folder and the bounds hold."""

    @initialize()
    def open(self) -> None:
        self.store = UploadStore("", LIMITS)
        self.folder = self.store._folder
        self.now = 0.0
        self.running: list[tuple[Incoming, bytes]] = []
        self.stored: dict[tuple[str, bytes], float] = {}

    @rule(owner=st.sampled_from("abc"), size=st.sampled_from([1, 200, 500]), seed=st.integers(0, 3))
    def begin(self, owner: str, size: int, seed: int) -> None:
        data = content(size, str(seed))
        try:
            self.running.append((begin(self.store, data, owner, self.now), data))
        except SightlineError as error:
            assert error.reason in {"UPLOAD_QUOTA_EXCEEDED", "UPLOAD_STORE_FULL"}  # noqa: PT017
            assert error.retry_after  # noqa: PT017

    @precondition(lambda self: self.running)
    @rule(index=st.integers(0, 100), good=st.booleans())
    def end(self, index: int, good: bool) -> None:
        incoming, data = self.running.pop(index % len(self.running))
        if good:
            self.store.append(incoming, data)
            self.store.finish(incoming, self.now + HOUR)
            self.stored[incoming.arrival.owner, data] = self.now + HOUR
        else:
            self.store.abort(incoming)

    @precondition(lambda self: self.running)
    @rule(index=st.integers(0, 100))
    def kill(self, index: int) -> None:
        incoming, _ = self.running.pop(index % len(self.running))
        incoming.file.close()

    @rule(seconds=st.sampled_from([1.0, HOUR / 2, HOUR]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.store.clean(self.now)
        self.stored = {key: until for key, until in self.stored.items() if until > self.now}
        assert len(self.parts()) == len(self.running)

    def parts(self) -> list[str]:
        return [name for name in files(self.folder) if name.endswith(".part")]

    @invariant()
    def bounds_hold(self) -> None:
        if not hasattr(self, "store"):
            return
        contents = {data for _, data in self.stored}
        assert sum(map(len, contents)) <= LIMITS.max_bytes
        for owner in "abc":
            own = [len(data) for who, data in self.stored if who == owner]
            assert len(own) <= LIMITS.quota_count
            assert sum(own) <= LIMITS.quota_bytes
        for data in contents:
            claim = Claim(hashlib.sha256(data).digest(), len(data), 0)
            assert self.store.read(claim) == data

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()


TestModel = UploadStoreMachine.TestCase
TestModel.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


def test_the_folder_is_for_the_process_s_owner_only(store: UploadStore, folder: Path) -> None:
    claim = put(store, content(10))
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / claim.sha256.hex()).stat().st_mode & 0o777 == 0o600


def test_an_upload_from_a_clock_that_was_ahead_takes_no_quota_until_then(
    store: UploadStore,
) -> None:
    for number in range(3):
        put(store, content(1, str(number)), now=60 * 24 * HOUR)
    assert refused(store, content(1), now=0.0).retry_after == 60 * 24 * HOUR + HOUR
    assert store.clean(0.0, 0.0 + HOUR) == 0
    assert refused(store, content(1), now=0.0).retry_after == HOUR
    assert store.clean(HOUR, HOUR + HOUR) == 3
    put(store, content(1), now=HOUR)
