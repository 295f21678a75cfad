"""The writer of groups of messages: decoding and checks first, then one transaction."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Protocol

import grpc
import pyarrow as pa

from ingest_service.receive.decision import CONFLICT, decide
from ingest_service.receive.decode import Decoder
from ingest_service.receive.group import Message, MessageOutcome, Prepared, prepare
from ingest_service.receive.ptars_decoder import PtarsDecoder
from ingest_service.store.protocol import Changes, PredictionStore
from servicekit.errors import SightlineError

_LEFT_OUT = SightlineError(
    grpc.StatusCode.ABORTED, "STREAM_ENDED", "the stream had ended before this message"
)


class CommitObserver(Protocol):
    """An observer of the commits of groups, called on the committing thread."""

    def committed(self, changes: Changes, at: float, seconds: float) -> object:
        """Observe what was committed.

        Args:
            changes: of at least one spool.
            at: the server's wall clock at the commit, s since 1970.
            seconds: duration of the transaction until it is durable, s.
        """
        ...

    def failed(self) -> object:
        """Observe that a group was not committed."""
        ...


class GroupWriter:
    """A writer of groups of messages. One thread may prepare while another commits.

    Args:
        store: the store to write to.
        now: the server's wall clock, UTC.
        steady: the server's steady clock, s.
        on_committed: called with the gaps and the outcomes of each committed group.
        on_conflict: called, on the committing thread, with the kind of each `SEQUENCE_CONFLICT`.
        observer: observes the commits; None: nobody does.
        decoder: decodes the messages. None: a `PtarsDecoder`.
        date_undated: give predictions without a plausible capture time the server's time.
    """

    def __init__(
        self,
        store: PredictionStore,
        now: Callable[[], datetime],
        steady: Callable[[], float] = time.monotonic,
        on_committed: Callable[[pa.Table, Sequence[MessageOutcome]], object] = lambda _gaps, _all: (
            None
        ),
        on_conflict: Callable[[str], object] = lambda _: None,
        observer: CommitObserver | None = None,
        decoder: Decoder | None = None,
        date_undated: bool = False,
    ) -> None:
        self._store = store
        self._now = now
        self._steady = steady
        self._on_committed = on_committed
        self._on_conflict = on_conflict
        self._observer = observer
        self._decoder = decoder or PtarsDecoder()
        self._date_undated = date_undated

    def prepare(self, messages: Sequence[Message]) -> Prepared:
        """Decode and check the messages of a group.

        Args:
            messages: the messages in the order of their arrival.
        """
        return prepare(
            messages,
            self._decoder,
            self._now(),
            self._steady(),
            date_undated=self._date_undated,
        )

    def commit(
        self,
        group: Prepared,
        left_out: Collection[int] = (),
        on_commit: Callable[[], object] = lambda: None,
    ) -> Sequence[MessageOutcome]:
        """Commit a group, and return the outcome of each message when it is durable.

        Args:
            group: a result of `prepare`; groups are committed in the order of their preparation.
            left_out: indexes of messages to skip, because their streams have ended.
            on_commit: called when only COMMIT is left, which needs no Python.

        Raises:
            SightlineError: the store failed, and nothing is acknowledged.
        """
        if left_out:
            group = replace(group, refused={**group.refused, **dict.fromkeys(left_out, _LEFT_OUT)})
        try:
            changes, outcomes = self._commit(group, on_commit)
        except BaseException:
            if self._observer is not None:
                self._observer.failed()
            raise
        self._on_committed(changes.gaps, outcomes)
        for outcome in outcomes:
            if outcome.error is not None and outcome.error.reason == CONFLICT:
                self._on_conflict(outcome.error.metadata["kind"])
        return outcomes

    def _commit(
        self, group: Prepared, on_commit: Callable[[], object]
    ) -> tuple[Changes, Sequence[MessageOutcome]]:
        began = self._steady()
        received_at: datetime | None = None
        with self._store.transaction() as transaction:
            # Read in the transaction that moves them: another writer may have moved them too.
            watermarks = transaction.watermarks(set(group.spools))
            changes, outcomes = decide(group, watermarks)
            if changes.watermarks.num_rows:
                received_at = self._now()
                transaction.write_bookkeeping(changes, received_at)
                transaction.write_predictions(changes.predictions, received_at)
            on_commit()
        if self._observer is not None and received_at is not None:
            self._observer.committed(changes, received_at.timestamp(), self._steady() - began)
        return changes, outcomes
