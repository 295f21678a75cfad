"""The predictions of a spool as JSON, also while a node runs, also of a damaged file."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.json_format import MessageToDict
from sightline.types.v1 import prediction_pb2

from edge.spool.entries import Entry, Gap, Row
from edge.spool.identity import EmptyError, Identity
from edge.spool.inspect import salvaged_copy
from edge.spool.reader import SUSPICIOUS, SpoolReader, is_damage

POLL_SECONDS = 0.1
_PORTION = 1000


@dataclass
class Exporter:
    """Reads predictions, oldest first.

    Args:
        path: of the spool file.
        since: the first sequence that is wanted.
        note: is told, in a sentence, what is not there to be exported.
    """

    path: Path
    since: int
    note: Callable[[str], object]

    def __post_init__(self) -> None:
        self._position = max(0, self.since - 1)
        self._spool_id = ""

    def lines(self) -> Iterator[dict[str, object]]:
        """Yield what is there now."""
        try:
            with closing(SpoolReader(self.path)) as reader:
                yield from self._all(reader)
        except SUSPICIOUS as error:
            if not is_damage(error):
                raise
            self.note(f"damaged: {error}; what is readable follows")
            with salvaged_copy(self.path) as reader:
                yield from self._all(reader)

    def follow(self) -> Iterator[dict[str, object] | None]:
        """Yield what is there, and what comes, for ever. None: it waits for more."""
        while True:
            with suppress(EmptyError):  # the node is just making it, or another
                yield from self.lines()
            yield None
            time.sleep(POLL_SECONDS)

    def _all(self, reader: SpoolReader) -> Iterator[dict[str, object]]:
        while True:
            entries, missing = reader.look(self._position, _PORTION)
            identity = reader.identity
            if self._begins_anew(identity):
                continue
            for first, last in missing:
                self.note(f"sequences {first} to {last} cannot be read")
            if identity.acknowledged > self._position and self._position >= self.since:
                first = self._position + 1
                self.note(
                    f"sequences {first} to {identity.acknowledged} left before they were read"
                )
            yield from self._lines(identity, entries)
            last = max([0, *(e.sequence for e in entries), *(last for _, last in missing)])
            if last <= self._position:
                return
            self._position = last

    def _begins_anew(self, identity: Identity) -> bool:
        """Say whether this is another spool than before, which is to be read from its start."""
        before, self._spool_id = self._spool_id, identity.spool_id
        if not before or before == identity.spool_id:
            return False
        self.note(f"a new spool begins: {identity.spool_id}")
        self._position = self.since = 0
        return True

    def _lines(self, identity: Identity, entries: list[Entry]) -> Iterator[dict[str, object]]:
        for entry in entries:
            if isinstance(entry, Gap):
                self.note(f"sequences {entry.first} to {entry.last} are lost: {entry.reason.name}")
            else:
                yield as_json(identity, entry)


def as_json(identity: Identity, row: Row) -> dict[str, object]:
    """Return a prediction in protobuf's JSON, with the contract's names, and whose it is."""
    prediction = prediction_pb2.Prediction.FromString(row.prediction)
    plain = MessageToDict(prediction, preserving_proto_field_name=True)
    return {"device_id": identity.device_id, "spool_id": identity.spool_id, **plain}
