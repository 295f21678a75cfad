"""The time that retention goes by: never later than what passed since the last note explains.

Pure, except for `read_uptime`. Retention compares `received_at` with "now". A wall clock that jumps
ahead by months would make everything in the store old at once, so each reading of it is held
against a note in the store: the time that was trusted last, and the machine's uptime then. Uptime
says how much time really passed while the machine stayed up. Anything beyond it must fit into a
slack of one day, which covers restarts, short outages and corrections by NTP, or be confirmed by an
operator.
"""

import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

SLACK_US = 24 * 3600 * 10**6
"""How far the clock may move beyond the uptime before an operator must confirm it, us."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PROC = Path("/proc")
_PROCESS = uuid.uuid4().hex


class Uptime(NamedTuple):
    """How long the machine has been up."""

    boot: str
    """Tells this boot from others; empty: not known."""
    seconds: float
    """Since that boot, suspended time included."""


class Note(NamedTuple):
    """What the store keeps between two readings of the clock."""

    reached_us: int
    """Latest time that was trusted, us since 1970."""
    uptime: Uptime
    """At that moment."""
    slack_us: int
    """What is left of `SLACK_US`. It grows again as fast as time passes."""


class Reading(NamedTuple):
    """Verdict on one reading of the clock."""

    note: Note
    """To be kept for the next reading."""
    trusted_us: int
    """The time that retention may go by, us since 1970."""
    jump_us: int
    """How far the wall clock is beyond the time that passed; 0: it is trusted."""


def judge(
    note: Note | None, wall_us: int, uptime: Uptime, confirmed_until_us: int | None = None
) -> Reading:
    """Return how much of the wall clock's time is to be trusted.

    Args:
        note: from the last reading; None: there was none, and the store is empty.
        wall_us: the wall clock, us since 1970.
        uptime: now.
        confirmed_until_us: an operator vouches for the wall clock up to this time, us since 1970.
    """
    if note is None or (
        confirmed_until_us is not None and note.reached_us < wall_us <= confirmed_until_us
    ):
        return Reading(Note(wall_us, uptime, SLACK_US), wall_us, 0)
    passed = _passed_us(note.uptime, uptime)
    explained = note.reached_us + passed
    slack = min(SLACK_US, note.slack_us + passed)
    beyond = wall_us - explained
    if beyond > slack:
        return Reading(Note(explained, uptime, slack), explained, beyond)
    # While the clock is behind, what was reached stands still: a clock that was ahead wears off.
    reached = max(note.reached_us, wall_us)
    return Reading(Note(reached, uptime, slack - max(0, beyond)), wall_us, 0)


def _passed_us(before: Uptime, now: Uptime) -> int:
    """Return the time that certainly passed; 0 after a reboot, which says nothing about it."""
    if not before.boot or before.boot != now.boot:
        return 0
    return max(0, round((now.seconds - before.seconds) * 1e6))


def read_uptime() -> Uptime:
    """Return the machine's uptime, as the kernel counts it; nobody can set it.

    Where the kernel does not say, the time of this process, which explains nothing to the next one.
    """
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return Uptime(boot, float((_PROC / "uptime").read_text().split()[0]))
    except (OSError, ValueError, IndexError):
        return Uptime(_PROCESS, time.monotonic())


def to_us(moment: datetime) -> int:
    """Return a time as us since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def to_time(us: int) -> datetime:
    """Return us since 1970 as a time, UTC."""
    return _EPOCH + timedelta(microseconds=us)
