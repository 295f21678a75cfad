"""Ledgers in which nodes record what they log, for comparison with the store."""

import os
from dataclasses import dataclass
from pathlib import Path


class Ledger:
    """The ledger of one life of a node; its contents survive SIGKILL of the process.

    The predictions of a life are numbered from 0, and `image_id` names them.

    Args:
        folder: folder of a campaign's ledgers.
        name: name of this life, unique in the campaign, without a slash.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._name = name
        flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND
        self._file = os.open(folder / f"{name}.ledger", flags, 0o600)

    def image_id(self, number: int) -> str:
        """Return the image id of a prediction."""
        return f"{self._name}/{number}"

    def will_log(self, count: int) -> None:
        """Record, in advance, the total number of predictions that the node will have logged."""
        os.write(self._file, b"logs %d\n" % count)

    def has_spooled(self, count: int) -> None:
        """Record that this many predictions, from the first on, are spooled."""
        os.write(self._file, b"spooled %d\n" % count)

    def has_ended(self) -> None:
        """Record that the node has ended by itself, as expected."""
        os.write(self._file, b"ended 1\n")


@dataclass(frozen=True)
class Life:
    """The contents of the ledger of one life."""

    name: str
    logs: int
    """Number of predictions that may have been logged, from 0 on."""
    spooled: int
    """Number of them that were certainly spooled."""
    ended: bool
    """True if the node ended by itself."""


def read_lives(folder: Path) -> list[Life]:
    """Return the contents of every ledger in a folder."""
    return [_read(path) for path in sorted(folder.glob("*.ledger"))]


def _read(path: Path) -> Life:
    counts = {"logs": 0, "spooled": 0, "ended": 0}
    for line in path.read_text().split("\n")[:-1]:  # the last line may be cut off
        word, _, number = line.partition(" ")
        counts[word] = int(number)
    return Life(path.stem, counts["logs"], counts["spooled"], bool(counts["ended"]))
