"""Recovery of a write-ahead log whose end is unreadable after a power failure.

DuckDB drops a last transaction that is cut short, but refuses to start if pages within it were
never written. Neither was acknowledged: the log was not synced when the power failed.
"""

import logging
import mmap
import os
from datetime import UTC, datetime
from pathlib import Path

from ingest_service.store.duckdb.file_format import (
    Damage,
    ends_with_commit,
    find_damage,
    has_hole,
    later_commit,
    parse_log,
)
from servicekit.durable import sync_file

logger = logging.getLogger(__name__)


class DamagedLogError(Exception):
    """Committed transactions of a log are damaged. The message is one clause for people."""


def set_tail_aside(
    log: Path, confirmed: int | None, *, verify: bool, trust: bool = False
) -> Path | None:
    """Move the bytes after the last good commit to a file of their own, if none was acknowledged.

    Args:
        log: the file, which may be missing; no process has it open.
        confirmed: number of bytes that are certainly committed; None: not known.
        verify: True: verify checksums as well, which is slow.
        trust: True: move the bytes even if they may have been committed.

    Returns:
        The path of the new file; None: the log is not damaged.

    Raises:
        DamagedLogError: the damaged bytes may have been committed; nothing is changed.
        OSError: the file cannot be read, or the new file cannot be written.
    """
    if not log.exists() or not log.stat().st_size:
        return None
    with (
        log.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as data,
    ):
        damage = find_damage(data, verify=verify)
        if damage is None or not _is_ours(data, damage):
            return None
        if not trust:
            _refuse_committed(data, damage, confirmed, verify)
        tail = bytes(data[damage.good :])
    return _cut(log, damage.good, tail) if tail else None


def _is_ours(data: memoryview, damage: Damage) -> bool:
    """Return True if the log begins like one of this service, or was never written."""
    return parse_log(bytes(data[:256])) is not None or has_hole(data[:4096], damage)


def _refuse_committed(
    data: memoryview, damage: Damage, confirmed: int | None, verify: bool
) -> None:
    behind = later_commit(data, damage)
    acknowledged = confirmed is not None and damage.good < confirmed
    # Wrong bytes, unlike missing ones, do not come from a power failure: they may have been good.
    whole = verify or ends_with_commit(data)
    strange = confirmed is None and whole and not has_hole(data, damage)
    if behind or acknowledged or strange:
        raise DamagedLogError(
            f"its log is damaged at byte {damage.damaged}, within what was committed"
            if behind or acknowledged
            else f"its log is damaged at byte {damage.damaged}"
        )


def _cut(log: Path, good: int, tail: bytes) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    aside = log.with_name(f"{log.name}.tail-{stamp}")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(tail)
        file.flush()
        os.fsync(file.fileno())
    sync_file(log.parent)
    with log.open("r+b") as file:
        file.truncate(good)
        os.fsync(file.fileno())
    logger.warning(
        "the last %d bytes of %s cannot be read: they were moved to %s",
        len(tail),
        log,
        aside,
    )
    return aside
