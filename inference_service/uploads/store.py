"""The upload store: a folder of images, each in a file that is named by its SHA-256.

Bytes are first written to a file `*.part`, which its writer locks, and which is renamed once hash
and size have been verified. A reader opens the file by its hash and reads all of it, so that it may
be removed meanwhile. Equal content is stored in one file for all callers.

Nothing is synced to the disk: an image is stored for an hour, and its device still has it. After a
power failure a file may be truncated or missing. The hash is verified at every read; the caller
gets `REFERENCE_GONE` and uploads the image again.
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
_CLEARED_AT_ONCE = 256  # number of files removed while the index is locked
_DISK_RETRY_SECONDS = 60.0
_SHA256_HEX = 64
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(slots=True, eq=False)
class Incoming:
    """An upload in progress; one thread at a time may use it."""

    arrival: Arrival
    path: Path
    file: FileIO
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    lock: threading.Lock = field(default_factory=threading.Lock)


class UploadStore:
    """The folder of uploads. Its methods block; threads and processes may share it.

    Args:
        folder: created if missing; empty: a temporary one, which is removed with the store.
        limits: limits on the stored uploads.

    Raises:
        UploadStoreError: the folder is unusable.
    """

    def __init__(self, folder: str, limits: StoreLimits) -> None:
        self._limits = limits
        with _as_store_error("the folder of uploads is unusable"):
            self._temporary = (
                None if folder else tempfile.TemporaryDirectory(prefix="sightline-uploads-")
            )
            self._folder = Path(self._temporary.name if self._temporary else folder)
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._index = Index(self._folder / _INDEX)
            self.sweep()

    def key(self) -> bytes:
        """Return the folder's key, a random one that the first process creates.

        Raises:
            UploadStoreError: it cannot be read or written, or is not 32 bytes long.
        """
        path = self._folder / _KEY
        with _as_store_error(f"{path} is unusable"):
            with self._index.writing():  # one process creates it, the others read it
                if not path.exists():
                    _write(path, secrets.token_bytes(KEY_BYTES))
            key = path.read_bytes()
        if len(key) != KEY_BYTES:
            raise UploadStoreError(f"{path} must contain {KEY_BYTES} bytes (got {len(key)})")
        return key

    def begin(self, owner: str, name: str, sha256: bytes, size: int, now: float) -> Incoming:
        """Reserve space for an upload and open its file.

        Args:
            owner: identity of the uploader, from `Caller.identity`.
            name: name of the uploader in messages.
            sha256: declared SHA-256.
            size: declared size in bytes.
            now: Unix seconds.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED: `UPLOAD_QUOTA_EXCEEDED`, `UPLOAD_STORE_FULL`.
            UploadStoreError: the store failed.
        """
        arrival = Arrival(f"{uuid.uuid4().hex}{_PART}", owner, name, sha256, size)
        path = self._folder / arrival.part
        with _as_store_error("an upload cannot be started"):
            self._check_disk(size)
            # Under the index's lock, or `sweep` could remove the file as a leftover.
            with self._index.writing():
                self._clear(now)
                self._index.reserve(arrival, self._limits, now)
                file = _locked_file(path)
        return Incoming(arrival, path, file)

    def append(self, incoming: Incoming, data: bytes) -> None:
        """Write the next bytes of an upload.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED, `UPLOAD_STORE_FULL`: the disk is full.
            UploadStoreError: the disk failed.
        """
        with incoming.lock, _as_store_error("an upload cannot be written"):
            incoming.digest.update(data)
            unwritten = memoryview(data)
            while unwritten:  # a nearly full disk may accept only a part
                unwritten = unwritten[incoming.file.write(unwritten) :]

    def content(self, incoming: Incoming) -> bytes:
        """Return the bytes written so far.

        Raises:
            UploadStoreError: the disk failed.
        """
        with incoming.lock, _as_store_error("an upload cannot be read"):
            incoming.file.seek(0)
            return incoming.file.read()

    def finish(self, incoming: Incoming, until: float) -> None:
        """Store a complete, verified upload until `until`, in Unix seconds.

        Raises:
            UploadStoreError: the store failed; the upload must be aborted.
        """
        arrival = incoming.arrival
        with incoming.lock, _as_store_error("an upload cannot be stored"):
            with self._index.writing():
                self._index.put(arrival, until)
                incoming.path.replace(self._path(arrival.sha256))
            incoming.file.close()

    def abort(self, incoming: Incoming) -> None:
        """Remove an unfinished upload; no effect after `finish`. Never raises."""
        try:
            with incoming.lock, _as_store_error("an upload cannot be removed"):
                if incoming.file.closed:
                    return
                # The file is closed in any case, so that the next `sweep` can remove it.
                with incoming.file, self._index.writing():
                    self._index.release(incoming.arrival.part)
                    incoming.path.unlink(missing_ok=True)
        except (SightlineError, UploadStoreError):
            logger.exception("an upload could not be removed: it stays until the next clean-up")

    def read(self, claim: Claim) -> bytes:
        """Return the image of a reference after verifying its hash.

        Raises:
            SightlineError: NOT_FOUND, `REFERENCE_GONE`: it is missing or damaged.
            UploadStoreError: the disk failed.
        """
        path = self._path(claim.sha256)
        with _as_store_error("an upload cannot be read"):
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
        """Remove expired uploads, and leftovers of killed processes.

        Args:
            now: Unix seconds.
            latest: latest permitted expiry of an upload, Unix seconds.

        Returns:
            The number of expired uploads.

        Raises:
            UploadStoreError: the store failed.
        """
        total = 0
        with _as_store_error("uploads cannot be cleaned up"):
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
        """Remove leftovers of killed processes: unlocked parts and unknown files."""
        with _as_store_error("uploads cannot be cleaned up"), self._index.writing():
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
        """Close the store, and remove a temporary folder."""
        self._index.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _path(self, sha256: bytes) -> Path:
        return self._folder / sha256.hex()

    def _clear(self, now: float) -> int:
        """Remove some expired uploads and return their number; only within `writing`."""
        count, contents = self._index.expire(now, _CLEARED_AT_ONCE)
        for sha256 in contents:
            self._path(sha256).unlink(missing_ok=True)
        return count

    def _check_disk(self, size: int) -> None:
        reserve = self._limits.disk_reserve_bytes
        if shutil.disk_usage(self._folder).free - size < reserve:
            raise store_full(f"{reserve} bytes of the disk must stay free", _DISK_RETRY_SECONDS)


@contextmanager
def _as_store_error(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise store_full("the disk is full", _DISK_RETRY_SECONDS) from error
        raise UploadStoreError(f"{what}: {error}") from error


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically, readable by its owner only."""
    part = path.with_suffix(_PART)  # `sweep` removes a leftover
    with _locked_file(part) as file:
        file.write(content)
        os.fsync(file.fileno())  # losing the key would invalidate all references
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
    """Remove a part whose writer is gone; return False if the writer still runs."""
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
