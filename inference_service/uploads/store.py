"""Uploaded images in a folder, each in a file that is named by its SHA-256.

Bytes go to a file `*.part` first, which its writer locks, and which is renamed once hash and size
were right; a reader opens it by its hash and reads it whole, so that removing it meanwhile does no
harm. The same content is one file, whoever has uploaded it.

Nothing is synced to the disk: an image is kept for an hour, and its device still has it. After a
power cut a file may be short or gone; its hash is checked whenever it is read, the caller learns
`REFERENCE_GONE` and uploads it again.
"""

import errno
import fcntl
import hashlib
import logging
import math
import os
import secrets
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from inference_service.uploads.errors import UploadStoreError, reference_gone, store_full
from inference_service.uploads.index import Arrival, Index, StoreLimits
from inference_service.uploads.reference import KEY_BYTES, Claim
from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)

_INDEX = "uploads.sqlite"
_KEY = "reference.key"
_PART = ".part"
_CLEARED_AT_ONCE = 256  # files removed while the index is locked
_DISK_RETRY_SECONDS = 60.0
_SHA256_HEX = 64
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(slots=True, eq=False)
class Incoming:
    """An upload under way; one thread at a time may use it."""

    arrival: Arrival
    path: Path
    file: FileIO
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    lock: threading.Lock = field(default_factory=threading.Lock)


class UploadStore:
    """The folder. Its methods block; threads and processes may share it.

    Args:
        folder: made if missing; empty: a temporary one, which ends with the store.
        limits: what may be stored.

    Raises:
        UploadStoreError: the folder cannot be used.
    """

    def __init__(self, folder: str, limits: StoreLimits) -> None:
        self._limits = limits
        with _reporting("the folder of uploads cannot be used"):
            self._temporary = (
                None if folder else tempfile.TemporaryDirectory(prefix="sightline-uploads-")
            )
            self._folder = Path(self._temporary.name if self._temporary else folder)
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._index = Index(self._folder / _INDEX)
            self.sweep()

    def key(self) -> bytes:
        """Return the folder's own key, made at random by whichever process asks first.

        Raises:
            UploadStoreError: it cannot be read or written, or is not 32 bytes.
        """
        path = self._folder / _KEY
        with _reporting(f"{path} cannot be used"):
            with self._index.writing():  # one process makes it, the others find it
                if not path.exists():
                    _write(path, secrets.token_bytes(KEY_BYTES))
            key = path.read_bytes()
        if len(key) != KEY_BYTES:
            raise UploadStoreError(f"{path} must hold {KEY_BYTES} bytes (has {len(key)})")
        return key

    def begin(self, owner: str, name: str, sha256: bytes, size: int, now: float) -> Incoming:
        """Make room for an upload.

        Args:
            owner: who uploads, as `Caller.identity`.
            name: who that is in messages.
            sha256: as declared.
            size: as declared, bytes.
            now: Unix seconds.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED: `UPLOAD_QUOTA_EXCEEDED`, `UPLOAD_STORE_FULL`.
            UploadStoreError: the store does not work.
        """
        arrival = Arrival(f"{uuid.uuid4().hex}{_PART}", owner, name, sha256, size)
        path = self._folder / arrival.part
        with _reporting("an upload cannot be begun"):
            self._check_disk(size)
            # Under the index's lock, or a sweep could take the file for a leftover.
            with self._index.writing():
                self._clear(now)
                self._index.reserve(arrival, self._limits, now)
                file = _locked_file(path)
        return Incoming(arrival, path, file)

    def append(self, incoming: Incoming, data: bytes) -> None:
        """Write the next bytes of an upload.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED, `UPLOAD_STORE_FULL`: the disk is full.
            UploadStoreError: the disk does not work.
        """
        with incoming.lock, _reporting("an upload cannot be written"):
            incoming.digest.update(data)
            left = memoryview(data)
            while left:  # a disk that is nearly full takes a piece of it
                left = left[incoming.file.write(left) :]

    def content(self, incoming: Incoming) -> bytes:
        """Return what was written of an upload.

        Raises:
            UploadStoreError: the disk does not work.
        """
        with incoming.lock, _reporting("an upload cannot be read"):
            incoming.file.seek(0)
            return incoming.file.read()

    def finish(self, incoming: Incoming, until: float) -> None:
        """Keep a whole upload, whose size and hash were right, until then (Unix seconds).

        Raises:
            UploadStoreError: the store does not work; the upload is to be aborted.
        """
        arrival = incoming.arrival
        with incoming.lock, _reporting("an upload cannot be stored"):
            with self._index.writing():
                self._index.put(arrival, until)
                incoming.path.replace(self._path(arrival.sha256))
            incoming.file.close()

    def abort(self, incoming: Incoming) -> None:
        """Remove what came of an upload; does nothing after `finish`. Raises nothing."""
        try:
            with incoming.lock, _reporting("an upload cannot be removed"):
                if incoming.file.closed:
                    return
                # The file is closed whatever happens: the next sweep can then take it away.
                with incoming.file, self._index.writing():
                    self._index.release(incoming.arrival.part)
                    incoming.path.unlink(missing_ok=True)
        except (SightlineError, UploadStoreError):
            logger.exception("left behind until the next clean-up")

    def read(self, claim: Claim) -> bytes:
        """Return the image that a reference stands for, whose hash is right.

        Raises:
            SightlineError: NOT_FOUND, `REFERENCE_GONE`: it is not there, or it is damaged.
            UploadStoreError: the disk does not work.
        """
        path = self._path(claim.sha256)
        with _reporting("an upload cannot be read"):
            try:
                with path.open("rb") as file:
                    data = file.read(claim.size + 1)
            except FileNotFoundError:
                raise reference_gone(claim.sha256) from None
        if hashlib.sha256(data).digest() != claim.sha256:
            logger.error("the upload %s is damaged on the disk", path)
            raise reference_gone(claim.sha256)
        return data

    def clean(self, now: float, latest: float = math.inf) -> int:
        """Remove what has expired, and what killed processes left behind.

        Args:
            now: Unix seconds.
            latest: until when an upload is kept at most, Unix seconds.

        Returns:
            How many uploads have expired.

        Raises:
            UploadStoreError: the store does not work.
        """
        total = 0
        with _reporting("uploads cannot be cleaned up"):
            with self._index.writing():
                self._index.shorten(latest)
            while True:
                with self._index.writing():
                    count = self._clear(now)
                total += count
                if count < _CLEARED_AT_ONCE:
                    break
            self.sweep()
        return total

    def sweep(self) -> None:
        """Remove what killed processes left behind: parts that nobody writes, unknown files."""
        with _reporting("uploads cannot be cleaned up"), self._index.writing():
            parts = self._index.parts()
            for entry in os.scandir(self._folder):
                if entry.name.endswith(_PART):
                    parts.discard(entry.name)
                    if _remove_unless_locked(Path(entry.path)):
                        self._index.release(entry.name)
                elif _is_content(entry.name) and not self._index.holds(bytes.fromhex(entry.name)):
                    Path(entry.path).unlink(missing_ok=True)
            for part in parts:  # whose file is gone
                self._index.release(part)

    def close(self) -> None:
        """Close the store; a temporary folder is removed."""
        self._index.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _path(self, sha256: bytes) -> Path:
        return self._folder / sha256.hex()

    def _clear(self, now: float) -> int:
        """Remove some of what has expired; only within `writing`; return how many uploads."""
        count, contents = self._index.expire(now, _CLEARED_AT_ONCE)
        for sha256 in contents:
            self._path(sha256).unlink(missing_ok=True)
        return count

    def _check_disk(self, size: int) -> None:
        reserve = self._limits.disk_reserve_bytes
        if shutil.disk_usage(self._folder).free - size < reserve:
            raise store_full(f"{reserve} bytes of the disk are left free", _DISK_RETRY_SECONDS)


@contextmanager
def _reporting(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise store_full("the disk has no room", _DISK_RETRY_SECONDS) from error
        raise UploadStoreError(f"{what}: {error}") from error


def _write(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read: whole, or not at all."""
    part = path.with_suffix(_PART)  # a sweep would remove what is left of it
    with _locked_file(part) as file:
        file.write(content)
        os.fsync(file.fileno())  # whatever it has signed would be worth nothing without it
        part.replace(path)


def _locked_file(path: Path) -> FileIO:
    file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "r+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        path.unlink()
        raise
    return file


def _remove_unless_locked(path: Path) -> bool:
    """Remove a part whose writer is gone; return whether it is."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return True
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        path.unlink(missing_ok=True)
        return True


def _is_content(name: str) -> bool:
    return len(name) == _SHA256_HEX and set(name) <= set("0123456789abcdef")
