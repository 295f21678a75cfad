"""Commits one group of messages: decode and check, then one transaction."""

from collections.abc import Callable, Sequence
from datetime import datetime

from ingest_service.decision import decide
from ingest_service.decode import Decoder
from ingest_service.group import Message, Outcome, prepare
from ingest_service.store import Store


class GroupWriter:
    """Writes groups of messages to a store, from one thread.

    Args:
        store: where they go.
        now: the server's wall clock, UTC.
    """

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store = store
        self._now = now
        self._decoder = Decoder()

    def commit(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        """Returns one outcome a message, once all that the outcomes say is durable.

        Args:
            messages: in the order in which they came.

        Raises:
            SightlineError: the store failed, and nothing is said to be committed.
        """
        group = prepare(messages, self._decoder, self._now())
        with self._store.transaction() as transaction:
            # Read in the transaction that moves them: another writer may have moved them too.
            watermarks = transaction.watermarks(set(group.spools))
            changes, outcomes = decide(group, watermarks)
            if changes.watermarks.num_rows:
                transaction.write(changes, self._now())
        return outcomes
