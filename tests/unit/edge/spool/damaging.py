"""Spools that are damaged, and a server that notes what it gets, for tests."""

import random
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from edge.log.encode import prediction_body
from edge.records import Prediction
from edge.spool.caps import Lost, SpoolLimits
from edge.spool.directories import FILE_NAME, fork_directories
from edge.spool.entries import Gap, GapReason, Row
from edge.spool.spool import Spool
from edge.spool.superblock import SuperblockFile, location_of
from edge.wire import sequence_field

NO_LIMITS = SpoolLimits(1 << 40, 0.0, 0)


def body(name: str, size: int = 0) -> bytes:
    return prediction_body(Prediction(name, "m" * size or "m"), 0.0)


@contextmanager
def opened(folder: Path, lost: list[Lost] | None = None) -> Iterator[Spool]:
    spool = Spool(folder, "gate-1", NO_LIMITS, ([] if lost is None else lost).append)
    try:
        yield spool
    finally:
        spool.close()


@dataclass
class Server:
    """A model of the server that stores predictions by spool and relies only on its watermarks."""

    watermarks: Counter[str] = field(default_factory=Counter)
    stored: list[bytes] = field(default_factory=list)
    declared: Counter[GapReason] = field(default_factory=Counter)

    def take(self, spool: Spool, through: int | None = None) -> None:
        """Ships as the shipper does, up to a sequence, without telling the spool of the end."""
        self._ask(spool)
        identity = spool.identity
        for entry in spool.read(identity.spool_id, identity.acknowledged, 1 << 20, 1 << 30):
            if through is not None and entry.sequence > through:
                break
            spool.sending(identity.spool_id, entry.sequence)
            self._store(identity.spool_id, entry)

    def drain(self, folder: Path) -> None:
        with opened(folder):  # which may make fork directories
            pass
        for fork in [folder, *fork_directories(folder)]:
            with opened(fork) as spool:
                self.take(spool)
                self._ask(spool)
                if spool.identity.pending:  # it was renewed
                    self.take(spool)
                    self._ask(spool)
                assert spool.identity.pending == 0

    def _ask(self, spool: Spool) -> None:
        spool_id, watermark = spool.identity.spool_id, self.watermarks[spool.identity.spool_id]
        if watermark > spool.sent_through:
            spool.acknowledge(spool_id, spool.sent_through)
            spool.renew(spool_id)
        elif watermark > spool.identity.acknowledged:
            spool.acknowledge(spool_id, watermark)

    def _store(self, spool_id: str, entry: Row | Gap) -> None:
        watermark = self.watermarks[spool_id]
        if entry.sequence <= watermark:
            return
        if isinstance(entry, Gap):
            assert entry.first <= watermark + 1
            self.declared[entry.reason] += entry.last - max(entry.first - 1, watermark)
        else:
            assert entry.sequence == watermark + 1
            self.stored.append(entry.prediction.removeprefix(sequence_field(entry.sequence)))
        self.watermarks[spool_id] = entry.sequence

    def check(self, spooled: list[bytes]) -> int:
        """Checks that nothing is there twice or undeclared; returns how many are missing."""
        assert not [name for name, count in Counter(self.stored).items() if count > 1]
        missing = set(spooled) - set(self.stored)
        assert len(missing) <= self.declared.total()
        assert set(self.stored) <= set(spooled)
        return len(missing)


def crash(folder: Path, image: Path) -> Path:
    """Copies a folder in use, as a process that is killed leaves it."""
    shutil.copytree(folder, image)
    superblock_file = SuperblockFile(image)
    superblock = superblock_file.read()
    assert superblock is not None
    # It must not look like a copy.
    superblock_file.write(replace(superblock, location=location_of(db(image))))
    superblock_file.close()
    return image


def flip(chance: random.Random, path: Path, *, of: int = 1) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(of):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def db(folder: Path) -> Path:
    return folder / FILE_NAME


def wal(folder: Path) -> Path:
    return folder / f"{FILE_NAME}-wal"


def put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def header(chance: random.Random, folder: Path) -> None:
    put(db(folder), chance.randbytes(100) + db(folder).read_bytes()[100:])
