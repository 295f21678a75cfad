"""The fast decoder, which uses the native library ptars.

The messages of a group become one record batch, one row per message, without a Python object for
each prediction. Messages that would make ptars fail are refused or rewritten before: no message may
affect those of other streams.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ptars import HandlerPool, PtarsConfig
from sightline.ingest.v1.ingest_service_pb2 import PredictionLogRequest

from ingest_service.receive.decode import (
    LIMITS,
    Decoded,
    limit_error,
    malformed_error,
    parse_message,
)
from servicekit import memory
from servicekit.errors import SightlineError

_GROUP_STARTS = bytes(byte for byte in range(256) if byte & 7 == 3)
"""Bytes that may start a group, an old kind of nested message that the contract does not use."""
_COLUMNS = 4
"""Approximate bytes of columns per byte of a message."""
_SAFE_DEPTH = 20_000
"""Depth of nested groups that is safe: ptars recurses, with about 90 bytes of stack per group."""


class PtarsDecoder:
    """A `Decoder` that uses ptars."""

    def __init__(self) -> None:
        descriptor = PredictionLogRequest.DESCRIPTOR
        # In ns: a negative inference time of less than 1 us must not be rounded to a valid 0.
        pool = HandlerPool(
            [descriptor.file], config=PtarsConfig(timestamp_unit="us", duration_unit="ns")
        )
        self._handler = pool.get_for_message(descriptor)

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Return the messages as columns; a malformed message is refused without an exception.

        Raises:
            MemoryError: there is not enough memory.
        """
        messages = list(payloads)
        refused: dict[int, SightlineError] = {}
        _refuse_nested(messages, refused)
        batch = self._read(messages, refused)
        if _refuse_long(messages, refused, batch):
            batch = self._read(messages, refused)
        if repeated := _with_repeated_labels(batch):
            _rewrite(messages, repeated, refused)
            batch = self._read(messages, refused)
        return Decoded(batch, refused)

    def _read(self, messages: list[bytes], refused: dict[int, SightlineError]) -> pa.RecordBatch:
        """Return the columns of the messages; refuse those that cannot be decoded."""
        batch, _ = self._attempt(messages)
        if batch is not None:
            return batch
        for index, message in enumerate(messages):
            batch, reason = self._attempt([message])
            if batch is None:
                _refuse(index, malformed_error(reason), messages, refused)
        return self._handler.list_to_record_batch(messages)

    def _attempt(self, messages: list[bytes]) -> tuple[pa.RecordBatch | None, str]:
        """Return the columns, or None and the reason."""
        size = _COLUMNS * sum(map(len, messages))
        memory.require(size)  # ptars ends the process where an allocation fails
        try:
            return self._handler.list_to_record_batch(messages), ""
        except ValueError as error:
            if memory.is_to_blame(error, size):
                raise MemoryError("not enough memory to decode a group") from error
            return None, str(error)
        except BaseException as error:
            # A length near 2**64 makes ptars panic, which is not an Exception.
            if type(error).__name__ != "PanicException":
                raise
            if memory.is_to_blame(error, size):
                raise MemoryError("not enough memory to decode a group") from error
            return None, "a length is out of bounds"


def _refuse(
    index: int, error: SightlineError, messages: list[bytes], refused: dict[int, SightlineError]
) -> None:
    refused[index] = error
    messages[index] = b""


def _refuse_nested(messages: list[bytes], refused: dict[int, SightlineError]) -> None:
    """Refuse messages that would overflow the stack in ptars, which would end the process.

    Groups cannot nest deeper than there are bytes that may start one. Only messages with very many
    such bytes are parsed by protobuf, which refuses a depth of more than 100.
    """
    for index, message in enumerate(messages):
        if len(message) <= _SAFE_DEPTH:
            continue
        if len(message) - len(message.translate(None, _GROUP_STARTS)) > _SAFE_DEPTH:
            _parse(index, messages, refused)


def _parse(
    index: int, messages: list[bytes], refused: dict[int, SightlineError]
) -> PredictionLogRequest | None:
    """Return the message as parsed by protobuf; refuse it if protobuf does."""
    message = parse_message(messages[index])
    if isinstance(message, SightlineError):
        _refuse(index, message, messages, refused)
        return None
    return message


def _refuse_long(
    messages: list[bytes], refused: dict[int, SightlineError], batch: pa.RecordBatch
) -> bool:
    """Refuse the messages with too many entries; return True if there are any."""
    before = len(refused)
    for field, limit in LIMITS.items():
        counts = np.diff(batch.column(field).offsets.to_numpy())
        for index in np.flatnonzero(counts > limit):
            _refuse(int(index), limit_error(field, int(counts[index])), messages, refused)
    return len(refused) > before


def _with_repeated_labels(batch: pa.RecordBatch) -> list[int]:
    """Return the messages in which a prediction has a label more than once.

    Protobuf allows this on the wire, and the last value counts. But ptars returns all of them, and
    DuckDB would refuse the whole insert.
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


def _rewrite(
    messages: list[bytes], indexes: Sequence[int], refused: dict[int, SightlineError]
) -> None:
    """Rewrite these messages by protobuf, with each label once."""
    for index in indexes:
        message = _parse(index, messages, refused)
        if message is not None:
            # A label with a foreign field is an unknown field to protobuf, but a label to ptars.
            message.DiscardUnknownFields()
            messages[index] = message.SerializeToString()
