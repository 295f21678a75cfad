"""Detection of nodes that are ahead of the database, because it is an older or an empty one."""

import logging
import time
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
from prometheus_client import CollectorRegistry, Counter

from ingest_service.receive.group import MessageOutcome

logger = logging.getLogger(__name__)

_LOG_SECONDS = 60.0
_RELEASED = "released"


class NodesAhead:
    """A counter of sequences that were acknowledged to nodes but are not in the database.

    A node has deleted them. When `GetWatermark` returns less than was acknowledged, it declares
    them as a gap (`released`). A client that does not is refused for the hole before its first
    sequence. The first case is logged at once, later ones once a minute.

    Metrics: `sightline_ingest_released_sequences_total`, `sightline_ingest_streams_ahead_total`.

    Args:
        registry: the registry of the metrics.
        was_empty: True if the database was empty when it was opened.
    """

    def __init__(self, registry: CollectorRegistry, *, was_empty: bool) -> None:
        self._was_empty = was_empty
        self._sequences = Counter(
            "sightline_ingest_released_sequences",
            "Sequences that nodes had been told are committed, and the database does not have",
            registry=registry,
        )
        self._streams = Counter(
            "sightline_ingest_streams_ahead",
            "Messages refused because a spool that is not known does not begin with sequence 1",
            registry=registry,
        )
        self._released = self._refused = 0
        self._logged = -_LOG_SECONDS

    def committed(self, gaps: pa.Table, outcomes: Sequence[MessageOutcome]) -> None:
        """Count the sequences of a committed group. Not thread-safe."""
        released = _released(gaps) if gaps.num_rows else 0
        refused = sum(map(_begins, outcomes))
        if not released and not refused:
            return
        self._released += released
        self._refused += refused
        self._sequences.inc(released)
        self._streams.inc(refused)
        if time.monotonic() >= self._logged + _LOG_SECONDS:
            self._logged = time.monotonic()
            self._log()

    def _log(self) -> None:
        logger.error(
            "nodes are ahead of this database%s: %d sequences that were acknowledged are not in it"
            " and are recorded as gaps, and %d streams were refused for a missing first sequence."
            " If an older or an empty database is in this place, stop the service and put the right"
            " one back",
            ", which was empty at the start" if self._was_empty else "",
            self._released,
            self._refused,
        )


def _released(gaps: pa.Table) -> int:
    chosen = gaps.filter(pc.equal(gaps.column("reason"), _RELEASED))
    pairs = zip(
        chosen.column("first_sequence").to_pylist(),
        chosen.column("last_sequence").to_pylist(),
        strict=True,
    )
    return sum(last - first + 1 for first, last in pairs)


def _begins(outcome: MessageOutcome) -> bool:
    """Return True if a message was refused because sequence 1 of its spool is missing."""
    error = outcome.error
    return error is not None and error.metadata.get("expected_sequence") == "1"
