"""What a node writes down about what it logs, so that it can be held against the store."""

import os
from dataclasses import dataclass
from pathlib import Path


class Ledger:
    """The ledger of one life of a node; what is in it survives SIGKILL of the process.

    The predictions of a life are numbered from 0, and `image_id` names them.

    Args:
        folder: of the ledgers of a campaign.
        name: of this life, unique in the campaign, without a slash.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._name = name
        flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND
        self._file = os.open(folder / f"{name}.ledger", flags, 0o600)

    def image_id(self, number: int) -> str:
        """Returns the image id of a prediction."""
        return f"{self._name}/{number}"

    def will_log(self, count: int) -> None:
        """Says, before it does, that the node will have logged so many in all."""
        os.write(self._file, b"logs %d\n" % count)

    def has_spooled(self, count: int) -> None:
        """Says that the first so many are spooled for certain."""
        os.write(self._file, b"spooled %d\n" % count)

    def has_ended(self) -> None:
        """Says that the node has ended by itself, as it should."""
        os.write(self._file, b"ended 1\n")


@dataclass(frozen=True)
class Life:
    """What the ledger of one life says."""

    name: str
    logs: int
    """Predictions that may have been logged: those from 0 to before this number."""
    spooled: int
    """Of them, those that were spooled for certain."""
    ended: bool
    """Whether the node ended by itself."""


def read_lives(folder: Path) -> list[Life]:
    """Returns what every ledger in a folder says."""
    return [_read(path) for path in sorted(folder.glob("*.ledger"))]


def _read(path: Path) -> Life:
    said = {"logs": 0, "spooled": 0, "ended": 0}
    for line in path.read_text().split("\n")[:-1]:  # the last line may be cut off
        word, _, number = line.partition(" ")
        said[word] = int(number)
    return Life(path.stem, said["logs"], said["spooled"], bool(said["ended"]))
