"""Simulated power failures: unsynced pages reach the disk or not, page by page."""

import random
import shutil
import subprocess
from pathlib import Path

PAGE = 4096
LOGS = (".wal", ".wal.checkpoint")


class Disk:
    """A disk that records which writes it has confirmed to a process.

    Args:
        folder: existing folder for the library and its records.
        delay: maximum delay of a sync of a log, s, so that a kill interrupts one more often.
    """

    def __init__(self, folder: Path, delay: float = 0.03) -> None:
        compiler = shutil.which("cc")
        assert compiler, "a C compiler is among what a machine must have"
        library, self._record = folder / "power.so", folder / "synced"
        self._record.mkdir()
        source = Path(__file__).with_name("power.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        self.environment = {
            "LD_PRELOAD": str(library),
            "POWER_RECORD": str(self._record),
            "POWER_DELAY_US": str(round(delay * 1e6)),
        }

    def fail(self, database: Path, chance: random.Random) -> int:
        """Change the files of a killed server as a power failure would.

        The database itself is left alone: DuckDB syncs it before it depends on it.

        Returns:
            The number of bytes that had not been confirmed.
        """
        lost = 0
        for end in LOGS:
            log = database.with_name(f"{database.name}{end}")
            if log.exists():
                whole, confirmed = log.read_bytes(), self.confirmed(log)
                log.write_bytes(lose_pages(whole, confirmed, chance))
                lost += len(whole) - confirmed
        mark = database.with_name(f"{database.name}.mark")
        synced = self._of(mark, ".mark")
        if synced.exists() and chance.random() < 0.5:
            mark.write_bytes(synced.read_bytes())
        return lost

    def confirmed(self, log: Path) -> int:
        """Return the number of confirmed bytes of a log."""
        size_file = self._of(log, ".size")
        return min(int(size_file.read_text()), log.stat().st_size) if size_file.exists() else 0

    def _of(self, path: Path, end: str) -> Path:
        return self._record / f"{path.stat().st_ino}{end}"


def lose_pages(whole: bytes, confirmed: int, chance: random.Random) -> bytes:
    """Return the contents of a file after a power failure, with only the first bytes synced.

    Each later page reached the disk or did not, and so did the new size of the file.
    """
    size = chance.choice([len(whole), len(whole), chance.randrange(confirmed, len(whole) + 1)])
    left = bytearray(whole[:size])
    for page in range(confirmed // PAGE, (size + PAGE - 1) // PAGE):
        if chance.random() < 0.5:
            start, end = max(page * PAGE, confirmed), min((page + 1) * PAGE, size)
            left[start:end] = bytes(end - start)
    return bytes(left)
