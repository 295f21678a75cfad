"""The interface of a decoder, which turns the bytes of messages into Arrow columns.

There are two implementations, `PtarsDecoder` and `ProtobufDecoder`. They refuse the same messages
and return the same columns, except for the bytes listed in docs/reference/errors.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc
import pyarrow as pa
from google.protobuf.message import DecodeError
from sightline.ingest.v1.ingest_service_pb2 import PredictionLogRequest

from servicekit.errors import SightlineError, invalid
from servicekit.parsing import parse

LIMITS = {"predictions": 10_000, "gaps": 10_000}
"""Maximum number of entries of a message, by field."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """The messages of a group as columns."""

    batch: pa.RecordBatch
    """Columns header, predictions and gaps; row i is message i."""
    refused: dict[int, SightlineError]
    """Errors of messages that cannot be decoded or have too many entries; their rows are empty."""


class Decoder(Protocol):
    """A decoder of groups of PredictionLogRequest messages."""

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Return the messages as columns; a malformed message is refused without an exception.

        Raises:
            MemoryError: there is not enough memory.
        """
        ...


def parse_message(payload: bytes) -> PredictionLogRequest | SightlineError:
    """Return the message as parsed by protobuf, or the error that refuses it.

    Raises:
        MemoryError: there is not enough memory.
    """
    try:
        return parse(PredictionLogRequest.FromString, payload)
    except DecodeError as error:
        return malformed_error(str(error))


def malformed_error(reason: str) -> SightlineError:
    """Return the error for a message that cannot be decoded."""
    return SightlineError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "MALFORMED_MESSAGE",
        f"the message is not a PredictionLogRequest: {reason}",
    )


def too_many_error(message: PredictionLogRequest) -> SightlineError | None:
    """Return the error for a message with too many entries; None: it has few enough."""
    counts = {"predictions": len(message.predictions), "gaps": len(message.gaps)}
    for field, limit in LIMITS.items():
        if counts[field] > limit:
            return limit_error(field, counts[field])
    return None


def limit_error(field: str, count: int) -> SightlineError:
    """Return the error for a message with too many entries in a field."""
    return invalid(field, f"must be at most {LIMITS[field]} in a message, got {count}")
