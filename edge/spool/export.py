"""Export of the predictions in a spool as JSON, even while a node runs or the file is damaged."""

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
    """A reader that yields the predictions of a spool file, oldest first.

    Args:
        path: the spool file.
        since: the first sequence to export.
        warn: callback invoked with one sentence about each thing that cannot be exported.
    """

    path: Path
    since: int
    warn: Callable[[str], object]

    def __post_init__(self) -> None:
        self._position = max(0, self.since - 1)
        self._spool_id = ""

    def lines(self) -> Iterator[dict[str, object]]:
        """Yield the predictions that are in the spool now."""
        try:
            with closing(SpoolReader(self.path)) as reader:
                yield from self._all(reader)
        except SUSPICIOUS as error:
            if not is_damage(error):
                raise
            self.warn(f"the file is damaged ({error}); its readable predictions follow")
            with salvaged_copy(self.path) as reader:
                yield from self._all(reader)

    def follow(self) -> Iterator[dict[str, object] | None]:
        """Yield present and future predictions without end; None while waiting for more."""
        while True:
            with suppress(EmptyError):  # the node is creating the file, or replacing it
                yield from self.lines()
            yield None
            time.sleep(POLL_SECONDS)

    def _all(self, reader: SpoolReader) -> Iterator[dict[str, object]]:
        while True:
            entries, missing = reader.look(self._position, _PORTION)
            identity = reader.identity
            if self._has_new_spool(identity):
                continue
            for first, last in missing:
                self.warn(f"sequences {first} to {last} cannot be read")
            if identity.acknowledged > self._position and self._position >= self.since:
                first = self._position + 1
                self.warn(
                    f"sequences {first} to {identity.acknowledged} were committed and deleted "
                    "before they were read"
                )
            yield from self._lines(identity, entries)
            last = max([0, *(e.sequence for e in entries), *(last for _, last in missing)])
            if last <= self._position:
                return
            self._position = last

    def _has_new_spool(self, identity: Identity) -> bool:
        """Return True if the spool was replaced; reading then starts again at its beginning."""
        old, self._spool_id = self._spool_id, identity.spool_id
        if not old or old == identity.spool_id:
            return False
        self.warn(f"the spool was replaced by a new one: {identity.spool_id}")
        self._position = self.since = 0
        return True

    def _lines(self, identity: Identity, entries: list[Entry]) -> Iterator[dict[str, object]]:
        for entry in entries:
            if isinstance(entry, Gap):
                self.warn(f"sequences {entry.first} to {entry.last} are lost: {entry.reason.name}")
            else:
                yield as_json(identity, entry)


def as_json(identity: Identity, row: Row) -> dict[str, object]:
    """Return a prediction as protobuf JSON with the contract's field names, device and spool id."""
    prediction = prediction_pb2.Prediction.FromString(row.prediction)
    fields = MessageToDict(prediction, preserving_proto_field_name=True)
    return {"device_id": identity.device_id, "spool_id": identity.spool_id, **fields}
