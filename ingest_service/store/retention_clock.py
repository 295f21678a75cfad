"""The clock of retention: the wall clock, as far as the elapsed time explains it.

Pure, except for `read_uptime`. Retention compares `received_at` with "now". If the wall clock
jumped ahead by months, retention would delete everything at once. So each reading of the wall clock
is compared with a record in the store: the last trusted time, and the machine's uptime at that
time. The uptime shows how much time has passed since, as long as the machine was not restarted. Any
further progress of the wall clock must fit into a slack of one day, which covers restarts, short
outages and corrections by NTP, or an operator must confirm it.
"""

import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

SLACK_US = 24 * 3600 * 10**6
"""Maximum jump of the clock beyond the uptime without an operator's confirmation, us."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PROC = Path("/proc")
_PROCESS = uuid.uuid4().hex


class Uptime(NamedTuple):
    """The time since the machine booted."""

    boot: str
    """Identifier of the boot; empty: not known."""
    seconds: float
    """Since that boot, including suspended time."""


class ClockRecord(NamedTuple):
    """The state that the store keeps between two readings of the clock."""

    reached_us: int
    """Latest time that was trusted, us since 1970."""
    uptime: Uptime
    """At that moment."""
    slack_us: int
    """The unused part of `SLACK_US`. It grows again as fast as time passes."""


class ClockReading(NamedTuple):
    """Verdict on one reading of the clock."""

    record: ClockRecord
    """The record to keep for the next reading."""
    trusted_us: int
    """The time that retention uses, us since 1970."""
    jump_us: int
    """The time by which the wall clock is ahead of the trusted time, us; 0 if it is trusted."""


def judge(
    record: ClockRecord | None, wall_us: int, uptime: Uptime, confirmed_until_us: int | None = None
) -> ClockReading:
    """Return the time to trust, given the wall clock and the last record.

    Args:
        record: from the last reading; None: there was none, and the store is empty.
        wall_us: the wall clock, us since 1970.
        uptime: the current uptime.
        confirmed_until_us: an operator has confirmed the wall clock up to this time, us since 1970.
    """
    if record is None or (
        confirmed_until_us is not None and record.reached_us < wall_us <= confirmed_until_us
    ):
        return ClockReading(ClockRecord(wall_us, uptime, SLACK_US), wall_us, 0)
    passed = _passed_us(record.uptime, uptime)
    explained = record.reached_us + passed
    slack = min(SLACK_US, record.slack_us + passed)
    beyond = wall_us - explained
    if beyond > slack:
        return ClockReading(ClockRecord(explained, uptime, slack), explained, beyond)
    # While the clock is behind, the reached time does not move: an earlier jump is absorbed.
    reached = max(record.reached_us, wall_us)
    return ClockReading(ClockRecord(reached, uptime, slack - max(0, beyond)), wall_us, 0)


def _passed_us(before: Uptime, now: Uptime) -> int:
    """Return the time that has certainly passed, us; 0 after a reboot: then it is not known."""
    if not before.boot or before.boot != now.boot:
        return 0
    return max(0, round((now.seconds - before.seconds) * 1e6))


def read_uptime() -> Uptime:
    """Return the machine's uptime as counted by the kernel, which nobody can set.

    Where the kernel does not provide it, return the steady clock of this process, which is not
    comparable with that of the next process.
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
