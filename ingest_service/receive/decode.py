"""From the bytes of messages to Arrow columns.

The bytes of a group become one record batch, one row a message, in native code (ptars). What that
code cannot bear is kept from it here: one message must never harm those of other streams.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf.message import DecodeError
from ptars import HandlerPool, PtarsConfig
from sightline.ingest.v1.ingest_service_pb2 import PredictionLogRequest

from servicekit import memory
from servicekit.errors import SightlineError, invalid
from servicekit.parsing import parse

MAX_PREDICTIONS = 10_000
MAX_GAPS = 10_000

_GROUP_STARTS = bytes(byte for byte in range(256) if byte & 7 == 3)
"""Bytes that may open a group, an old kind of nested message that the contract does not use."""
_COLUMNS = 4
"""Bytes that columns take for each of a message's own, about."""
_SAFE_DEPTH = 20_000
"""Nested groups that ptars bears: it follows them by recursion, in about 90 bytes of stack each."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """The messages of a group as columns."""

    batch: pa.RecordBatch
    """Columns header, predictions and gaps; row i is message i."""
    refused: dict[int, SightlineError]
    """Messages that cannot be read or hold too much, and why; their rows are empty."""


class Decoder:
    """Reads groups of PredictionLogRequest messages."""

    def __init__(self) -> None:
        descriptor = PredictionLogRequest.DESCRIPTOR
        # Inference times in ns: a negative one of less than 1 us must not be rounded to a valid 0.
        pool = HandlerPool(
            [descriptor.file], config=PtarsConfig(timestamp_unit="us", duration_unit="ns")
        )
        self._handler = pool.get_for_message(descriptor)

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Return the messages as columns; never fails for what a message says.

        Raises:
            MemoryError: there is no memory to read them.
        """
        messages = list(payloads)
        refused: dict[int, SightlineError] = {}
        _refuse_nested(messages, refused)
        batch = self._read(messages, refused)
        if _refuse_long(messages, refused, batch):
            batch = self._read(messages, refused)
        if repeated := _repeat_a_label(batch):
            _write_anew(messages, repeated, refused)
            batch = self._read(messages, refused)
        return Decoded(batch, refused)

    def _read(self, messages: list[bytes], refused: dict[int, SightlineError]) -> pa.RecordBatch:
        """Return the columns of the messages; refuses those that cannot be read."""
        batch, _ = self._attempt(messages)
        if batch is not None:
            return batch
        for index, message in enumerate(messages):
            batch, why = self._attempt([message])
            if batch is None:
                _refuse(index, malformed_error(why), messages, refused)
        return self._handler.list_to_record_batch(messages)

    def _attempt(self, messages: list[bytes]) -> tuple[pa.RecordBatch | None, str]:
        """Return the columns, or None and why there are none."""
        size = _COLUMNS * sum(map(len, messages))
        memory.require(size)  # ptars ends the process where an allocation fails
        try:
            return self._handler.list_to_record_batch(messages), ""
        except ValueError as error:
            if memory.is_to_blame(error, size):
                raise MemoryError("no memory to decode a group") from error
            return None, str(error)
        except BaseException as error:
            # A length near 2**64 makes ptars panic, which is no Exception.
            if type(error).__name__ != "PanicException":
                raise
            if memory.is_to_blame(error, size):
                raise MemoryError("no memory to decode a group") from error
            return None, "a length is out of bounds"


def malformed_error(why: str) -> SightlineError:
    """Return the error for a message that cannot be read."""
    return SightlineError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "MALFORMED_MESSAGE",
        f"the message is not a PredictionLogRequest: {why}",
    )


def _refuse(
    index: int, error: SightlineError, messages: list[bytes], refused: dict[int, SightlineError]
) -> None:
    refused[index] = error
    messages[index] = b""


def _refuse_nested(messages: list[bytes], refused: dict[int, SightlineError]) -> None:
    """Refuse what would overflow the stack of ptars, and with it end the process.

    Groups cannot nest deeper than there are bytes that may open one; only a message with very many
    of these is worth a reading by protobuf, which refuses a depth of more than 100.
    """
    for index, message in enumerate(messages):
        if len(message) <= _SAFE_DEPTH:
            continue
        if len(message) - len(message.translate(None, _GROUP_STARTS)) > _SAFE_DEPTH:
            _parse(index, messages, refused)


def _parse(
    index: int, messages: list[bytes], refused: dict[int, SightlineError]
) -> PredictionLogRequest | None:
    """Return the message as protobuf reads it; refuses it where it cannot."""
    try:
        return parse(PredictionLogRequest.FromString, messages[index])
    except DecodeError as error:
        _refuse(index, malformed_error(str(error)), messages, refused)
        return None


def _refuse_long(
    messages: list[bytes], refused: dict[int, SightlineError], batch: pa.RecordBatch
) -> bool:
    """Refuse the messages that hold too much; return whether there are any."""
    before = len(refused)
    for field, limit in (("predictions", MAX_PREDICTIONS), ("gaps", MAX_GAPS)):
        counts = np.diff(batch.column(field).offsets.to_numpy())
        for index in np.flatnonzero(counts > limit):
            error = invalid(field, f"must be at most {limit} in a message")
            _refuse(int(index), error, messages, refused)
    return len(refused) > before


def _repeat_a_label(batch: pa.RecordBatch) -> list[int]:
    """Return the messages in which a prediction gives a label more than once.

    Protobuf allows it on the wire and says that the last one counts; ptars hands on all of them,
    and DuckDB refuses the whole insert.
    """
    predictions = batch.column("predictions")
    labels = predictions.values.field("labels")
    counts = np.diff(labels.offsets.to_numpy())
    if not (counts > 1).any():
        return []
    keys = pc.dictionary_encode(labels.keys)
    ids = keys.indices.to_numpy().astype(np.int64)
    rows = np.repeat(np.arange(len(counts)), counts)
    pairs, seen = np.unique(rows * len(keys.dictionary) + ids, return_counts=True)
    repeating = np.unique(pairs[seen > 1] // max(len(keys.dictionary), 1))
    owners = np.searchsorted(predictions.offsets.to_numpy(), repeating, side="right") - 1
    return [int(owner) for owner in np.unique(owners)]


def _write_anew(
    messages: list[bytes], which: Sequence[int], refused: dict[int, SightlineError]
) -> None:
    """Rewrite these messages as protobuf reads them, with each label once."""
    for index in which:
        message = _parse(index, messages, refused)
        if message is not None:
            # A label with a foreign field is unknown to protobuf, and a label again to ptars.
            message.DiscardUnknownFields()
            messages[index] = message.SerializeToString()
