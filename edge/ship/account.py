"""The node's own account of its log, which the header of each stream carries."""

import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from sightline.ingest.v1 import ingest_pb2

from edge.spool.entries import GapReason
from edge.spool.spool import Spool


@dataclass(frozen=True, slots=True)
class LogCounts:
    """The counts of a process since it began to log."""

    in_memory: int = 0
    """Predictions that wait in memory for the spool."""
    logged: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Predictions by the name of a `GapReason`, in lower case."""
    uptime_seconds: float | None = None
    """None: not known."""


def node_account(spools: Iterable[Spool], counts: LogCounts) -> ingest_pb2.NodeAccount:
    """Return the account of a process.

    Args:
        spools: the open spools that it ships.
        counts: its counts.
    """
    account = ingest_pb2.NodeAccount(
        waiting_predictions=counts.in_memory,
        logged=counts.logged,
        dropped=[
            # The stubs have a type of their own for the numbers.
            ingest_pb2.DroppedCount(reason=GapReason[name.upper()].value, count=count)  # type: ignore[arg-type]
            for name, count in counts.dropped.items()
        ],
    )
    ages = []
    for spool in spools:
        account.waiting_predictions += spool.identity.pending
        account.spool_bytes += spool.bytes_in_use
        with suppress(OSError, sqlite3.Error):  # shipping will meet and report the same error
            ages.append(spool.oldest_age())
    if known := [age for age in ages if age is not None]:
        account.oldest_waiting.FromMilliseconds(round(max(known) * 1000))
    if counts.uptime_seconds is not None:
        account.uptime.FromMilliseconds(round(counts.uptime_seconds * 1000))
    return account
