"""Restored and cloned spools, in one thread: real spools and shippers, and a fake server.

Every prediction has its own image id, so that the store can be compared with the remaining
folders, whatever spool_id and sequence a prediction was sent under.
"""

import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from sightline.types.v1 import prediction_pb2

from edge.log.encode import prediction_body
from edge.records import Prediction
from edge.ship.progress import Progress
from edge.ship.shipper import Shipper
from edge.spool.caps import SpoolLimits
from edge.spool.directories import fork_directories
from edge.spool.entries import GapReason, Row
from edge.spool.spool import Spool
from edge.spool.superblock import FILE_NAME as MARK
from servicekit.errors import SightlineError
from tests.fakes.ingest import FakeIngest, Stored
from tests.faults.lab import DEVICE, Crashes, Line, _EndpointTo

LIMITS = SpoolLimits(1 << 40, 0.0, 0)
How = Literal["over the files", "anew", "without the mark", "without the folders below"]


@dataclass(frozen=True)
class Backup:
    """The contents of a folder, and the predictions that had been spooled there."""

    files: dict[str, bytes]
    images: frozenset[str]
    below: frozenset[str]
    """Spooled predictions that waited in the fork directories."""


@dataclass
class Folder:
    """The spool of a node, with its shipper; the node can be killed and restarted."""

    path: Path
    line: Line
    stream_size: int
    names: dict[str, set[tuple[str, int]]]
    """Spool_ids and sequences under which each prediction of the fleet was pending."""
    images: set[str] = field(default_factory=set)
    """Predictions spooled here, and in backups that were restored here."""

    def start(self) -> None:
        """Open the spool and start the node."""
        self.spool = Spool(self.path, DEVICE, LIMITS, lambda _: None)
        self.shipper = self._shipper(self.spool)

    def log(self, images: list[str]) -> None:
        """Spool predictions."""
        self.spool.append([prediction_body(Prediction(image, "m"), 1.0) for image in images])
        self.images |= set(images)
        self._note_names()

    def ship(self) -> None:
        """Take the next step of the shipper's thread, fork directories included."""
        _round(self.spool, self.shipper)
        self._note_names()

    def kill(self) -> None:
        """End the node, leaving the disk as SIGKILL does."""
        files = self._files()
        self.close()
        self._write(files)

    def close(self) -> None:
        """End the node."""
        self.spool.close()

    def restart(self, *, killed: bool) -> None:
        """End the node, by SIGKILL or not, and restart it."""
        if killed:
            self.kill()
        else:
            self.close()
        self.start()

    def back_up(self) -> Backup:
        """Copy the current contents of the disk."""
        below: set[str] = set()
        for fork in fork_directories(self.path):
            with closing(Spool(fork, DEVICE, LIMITS, lambda _: None)) as spool:
                below |= {image for image, _ in _pending(spool)}
        return Backup(self._files(), frozenset(self.images), frozenset(below))

    def put_back(self, backup: Backup, how: How) -> None:
        """End the node, replace the contents of its folder, and restart it."""
        self.close()
        if how == "anew":
            shutil.rmtree(self.path)
        else:
            for file in self._all():
                is_below = file.parent != self.path
                stays = file.name == MARK if how == "without the mark" else False
                if file.relative_to(self.path).as_posix() not in backup.files and not stays:
                    if is_below and how != "without the folders below":
                        continue
                    file.unlink()
        self._write(
            {
                name: data
                for name, data in backup.files.items()
                if not (how == "without the mark" and name == MARK)
                and not (how == "without the folders below" and "/" in name)
            }
        )
        self.images = set(backup.images)
        if how == "without the folders below":
            self.images -= backup.below  # not in the backup: they are not restored
        self.start()

    def drain(self) -> None:
        """Ship everything that remains, fork directories included."""
        for fork in fork_directories(self.path):
            spool = Spool(fork, DEVICE, LIMITS, lambda _: None)
            shipper = self._shipper(spool)
            _ship_all(spool, shipper, partial(self._note_names, spool))
            spool.remove()
        self._note_names()
        _ship_all(self.spool, self.shipper, self._note_names)

    def _note_names(self, spool: Spool | None = None) -> None:
        spool = spool or self.spool
        for image, sequence in _pending(spool):
            self.names.setdefault(image, set()).add((spool.identity.spool_id, sequence))

    def _all(self) -> list[Path]:
        return [
            file for file in self.path.rglob("*") if file.is_file() and file.name != "spool.lock"
        ]

    def _files(self) -> dict[str, bytes]:
        return {
            file.relative_to(self.path).as_posix(): file.read_bytes()
            for file in self._all()
            if not file.name.endswith("-shm")
        }

    def _write(self, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def _shipper(self, spool: Spool) -> Shipper:
        shipper = Shipper(
            spool,
            _EndpointTo(self.line),
            Progress(),
            batch_size=2,
            batch_timeout_seconds=0.0,
            stream_size=self.stream_size,
        )
        shipper._sleep = lambda _: None  # type: ignore[assignment,method-assign] # no real time
        return shipper


class Fleet:
    """Folders that can be copies of one another, and their server."""

    def __init__(self, folder: Path, stream_size: int, *, keeps_generations: bool = True) -> None:
        self.folder = folder
        self.stream_size = stream_size
        self.server = FakeIngest(keeps_generations=keeps_generations)
        self.line = Line(self.server, Crashes(folder))
        self.count = 0
        self.names: dict[str, set[tuple[str, int]]] = {}
        self.folders: list[Folder] = []
        self._folder().start()

    def images(self, count: int) -> list[str]:
        """Return image ids for new predictions."""
        self.count += count
        return [f"i{number}" for number in range(self.count - count + 1, self.count + 1)]

    def clone(self, backup: Backup) -> Folder:
        """Start another node on a copy of the folder."""
        folder = self._folder()
        folder._write(backup.files)
        folder.images = set(backup.images)
        folder.start()
        return folder

    def drain(self) -> None:
        """Ship everything that remains, without faults."""
        self.line.calm()
        for faults in (self.server.before, self.server.after, self.server.watermark_errors):
            faults.clear()
        for _ in range(2):  # the first may learn from what the second has shipped
            for folder in self.folders:
                folder.drain()

    def check(self) -> None:
        """Fail unless every spooled prediction that remains is in the store exactly once."""
        stored = Counter(self.server.images())
        doubled = [image for image, count in stored.items() if count > 1]
        assert not doubled, f"stored twice: {doubled}"
        for spool in self.server.spools.values():
            spool.check()
        required = set[str]().union(*(folder.images for folder in self.folders))
        lost = {image for image in required - stored.keys() if not self._is_declared(image)}
        assert len(lost) <= self.released, f"lost: {sorted(lost)}"

    @property
    def released(self) -> int:
        """The number of declared sequences that the server's store had lost."""
        return sum(
            last - first + 1
            for spool in self.server.spools.values()
            for first, last, reason in spool.gaps
            if reason == GapReason.RELEASED
        )

    def _is_declared(self, image: str) -> bool:
        """Return True if a copy declared a prediction lost because its file had lost its end."""
        return any(
            first <= sequence <= last
            for spool_id, sequence in self.names[image]
            for first, last, _ in self.server.spools.get((DEVICE, spool_id), Stored()).gaps
        )

    def close(self) -> None:
        for folder in self.folders:
            folder.close()

    def _folder(self) -> Folder:
        path = self.folder / f"node{len(self.folders)}"
        path.mkdir()
        folder = Folder(path, self.line, self.stream_size, self.names)
        self.folders.append(folder)
        return folder


def _pending(spool: Spool) -> list[tuple[str, int]]:
    """Return image ids and sequences of the predictions pending in a spool."""
    identity = spool.identity
    return [
        (prediction_pb2.Prediction.FromString(entry.prediction).image_id, entry.sequence)
        for entry in spool.read(identity.spool_id, identity.acknowledged, 1 << 20, 1 << 30)
        if isinstance(entry, Row)
    ]


def _round(spool: Spool, shipper: Shipper) -> None:
    identity = spool.identity
    is_same = identity.spool_id == shipper._spool_id
    if identity.last <= (shipper._core.position if is_same else identity.acknowledged):
        return  # the thread would wait here
    with suppress(SightlineError):
        shipper._round()


def _ship_all(spool: Spool, shipper: Shipper, after: Callable[[], None] = lambda: None) -> None:
    patience = 30 + 8 * spool.identity.pending
    while spool.identity.pending:
        patience -= 1
        assert patience, "it does not come to an end"
        _round(spool, shipper)
        after()
